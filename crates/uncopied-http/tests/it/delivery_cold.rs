//! Cold files: files that are not in the page cache.
//!
//! Only threads of tokio's blocking pool may wait for the disk. The tests check that by keeping the
//! pool busy. While it is busy, the response with a cold file must make no progress, and all other
//! responses must continue.
//!
//! The first frame of a body, and every frame of a `buffered` body, is read from the file, at first
//! without waiting. That attempt makes the kernel read ahead, and a fast disk may deliver the bytes
//! before the attempt returns. So the tests that count bytes keep the beginning of the file in the
//! page cache: the rest is then sent from the mapping.

use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::AsyncReadExt;
use uncopied::{Mechanism, residency};
use uncopied_http::{BodyPart, FileBody};

use crate::delivery_harness::{
    FIRST_FRAME_BYTES, Files, ServerConfig, TestServer, assert_same, with_timeout,
};

/// Returns a single-threaded runtime whose blocking pool has only one thread.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .unwrap()
}

/// Keeps the only thread of the blocking pool busy until the returned sender is dropped.
fn hold_pool() -> mpsc::Sender<()> {
    let (release, held) = mpsc::channel::<()>();
    // Nothing is ever sent on the channel, so `recv` returns when the sender is dropped.
    tokio::task::spawn_blocking(move || held.recv());
    release
}

fn is_resident(files: &Files, at: usize, start: u64, len: u64) -> bool {
    residency::is_resident(File::open(files.path(at)).unwrap(), start, len)
}

const MIB: usize = 1 << 20;

/// How much of the beginning of a file is kept in the page cache.
const CACHED_BYTES: usize = 64 << 10;

#[test]
fn a_cold_file_waits_on_the_pool_and_holds_up_no_other_connection() {
    runtime().block_on(async {
        for mechanism in Mechanism::FILE_TO_SOCKET {
            for (mode, cached) in [("default", 0), ("default", CACHED_BYTES), ("buffered", 0)] {
                let files = Files::of(&[6 * MIB, 100_000]);
                let served = Arc::clone(&files);
                let config = ServerConfig {
                    mechanisms: &[mechanism, Mechanism::Copy],
                    ..ServerConfig::default()
                };
                let server = TestServer::start(&config, move |parts| served.body_for(parts));
                let (mut cold, mut warm) = (server.connect().await, server.connect().await);
                files.evict_from(0, cached as u64);
                let held = hold_pool();

                cold.request(&format!("/0/{mode}")).await;
                with_timeout(cold.head()).await.unwrap();
                for _ in 0..5 {
                    let body = with_timeout(warm.get(&format!("/1/{mode}"))).await;
                    assert_same(&body, &files.contents[1], "the warm file");
                }
                let mut got = 0;
                if cached > 0 {
                    got = bytes_until_quiet(&mut cold).await;
                    let expected = FIRST_FRAME_BYTES..=cached;
                    assert!(expected.contains(&got), "{mechanism}: {got} bytes");
                }

                drop(held);
                let mut rest = vec![0; 6 * MIB - got];
                with_timeout(cold.io.read_exact(&mut rest)).await.unwrap();
                let what = format!("{mechanism} {mode} {cached}");
                assert_same(&rest, &files.contents[0][got..], &what);
                assert!(is_resident(&files, 0, 0, 6 * MIB as u64));
            }
        }
    });
}

/// Bytes in front of a slice of a file must not be held back to share a packet with the slice
/// (`MSG_MORE`) if the slice must first be read from disk. If they were held back, they would
/// arrive only after 200 ms, when the kernel stops waiting for more bytes.
#[test]
fn bytes_in_front_of_a_cold_file_arrive_without_delay() {
    let mut fastest = Duration::MAX;
    runtime().block_on(async {
        for _ in 0..4 {
            let files = Files::of(&[100, 6 * MIB]);
            let served = Arc::clone(&files);
            let server = TestServer::start(&ServerConfig::default(), move |_| {
                FileBody::from_parts([
                    BodyPart::File(Arc::clone(&served.open[0]), 0..100),
                    BodyPart::Memory(Bytes::from_static(b"in front")),
                    BodyPart::File(Arc::clone(&served.open[1]), 0..6 * MIB as u64),
                ])
            });
            let mut client = server.connect().await;
            files.evict_from(1, 0);
            let held = hold_pool();
            let start = Instant::now();
            client.request("/").await;
            with_timeout(client.head()).await.unwrap();
            let mut front = vec![0; 108];
            let read = client.io.read_exact(&mut front);
            with_timeout(read).await.unwrap();
            fastest = fastest.min(start.elapsed());
            assert_same(&front[..100], &files.contents[0], "the first part");
            assert_eq!(front[100..], *b"in front");
            assert_eq!(bytes_until_quiet(&mut client).await, 0, "the pool is held");
            drop(held);
            let mut rest = vec![0; 6 * MIB];
            with_timeout(client.io.read_exact(&mut rest)).await.unwrap();
            assert_same(&rest, &files.contents[1], "the cold part");
        }
    });
    assert!(fastest < Duration::from_millis(150), "{fastest:?}");
}

/// Reads until no byte has arrived for 150 ms. Returns the number of bytes read.
async fn bytes_until_quiet(client: &mut crate::delivery_harness::TestClient) -> usize {
    let mut buffer = vec![0; 64 << 10];
    let mut all = 0;
    let pause = Duration::from_millis(150);
    while let Ok(read) = tokio::time::timeout(pause, client.io.read(&mut buffer)).await {
        all += read.unwrap();
    }
    all
}

/// A transfer checks for each part of a file whether the part is in the page cache. A step can move
/// up to 2 MiB, but it must stop where the part that was found in the cache ends, because reading
/// further could block the thread.
#[test]
fn no_step_reaches_beyond_the_bytes_known_to_be_cached() {
    runtime().block_on(async {
        for warm in [2 * MIB, 5 * MIB] {
            let files = Files::of(&[12 * MIB]);
            let served = Arc::clone(&files);
            let config = ServerConfig {
                buffers: Some(32 << 10),
                ..ServerConfig::default()
            };
            let server = TestServer::start(&config, move |parts| served.body_for(parts));
            let mut client = server.connect().await;
            files.evict_from(0, warm as u64);
            let held = hold_pool();
            client.request("/0").await;
            with_timeout(client.head()).await.unwrap();
            let got = bytes_until_quiet(&mut client).await;
            assert!(got <= warm, "{got} bytes of {warm}");
            drop(held);
            let mut rest = vec![0; 12 * MIB - got];
            with_timeout(client.io.read_exact(&mut rest)).await.unwrap();
            assert_same(&rest, &files.contents[0][got..], "the rest");
        }
    });
}

/// A file may be evicted from the page cache while the peer stalls. So the transfer must check the
/// page cache again when it continues, even if the whole file was cached when the transfer began.
#[test]
fn a_file_that_goes_cold_while_the_peer_stalls_waits_on_the_pool() {
    runtime().block_on(async {
        let files = Files::of(&[12 * MIB]);
        let served = Arc::clone(&files);
        let config = ServerConfig {
            buffers: Some(32 << 10),
            ..ServerConfig::default()
        };
        let server = TestServer::start(&config, move |parts| served.body_for(parts));
        let mut client = server.connect().await;
        client.request("/0").await;
        with_timeout(client.head()).await.unwrap();
        let mut some = vec![0; 10_000];
        with_timeout(client.io.read_exact(&mut some)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(700)).await;
        files.evict_from(0, 0);
        let held = hold_pool();
        let got = some.len() + bytes_until_quiet(&mut client).await;
        assert!(got < MIB, "no more than the socket held: {got} bytes");
        drop(held);
        let mut rest = vec![0; 12 * MIB - got];
        with_timeout(client.io.read_exact(&mut rest)).await.unwrap();
        assert_same(&rest, &files.contents[0][got..], "the rest");
    });
}

#[test]
fn a_client_that_leaves_while_its_file_is_loaded_leaves_nothing_behind() {
    runtime().block_on(async {
        let files = Files::of(&[6 * MIB]);
        let served = Arc::clone(&files);
        let server = TestServer::start(&ServerConfig::default(), move |parts| {
            served.body_for(parts)
        });
        for mode in ["default", "buffered"] {
            files.evict_from(0, 0);
            let held = hold_pool();
            let mut client = server.connect().await;
            client.request(&format!("/0/{mode}")).await;
            with_timeout(client.head()).await.unwrap();
            drop(client);
            tokio::time::sleep(Duration::from_millis(20)).await;
            drop(held);
            let body = with_timeout(server.connect().await.get("/0")).await;
            assert_same(&body, &files.contents[0], mode);
        }
    });
}
