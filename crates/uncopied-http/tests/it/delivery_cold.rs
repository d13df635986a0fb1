//! Cold files: files that are not in the page cache.
//!
//! Only threads of tokio's blocking pool may wait for the disk. The tests check that by keeping the
//! pool busy. While it is busy, the response with a cold file must make no progress, and all other
//! responses must continue.
//!
//! In modes other than `direct`, a body with a cold file may still make progress, because it first
//! tries to read without waiting. That attempt makes the kernel read ahead, and a fast disk may
//! deliver the bytes before the attempt returns.

use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use uncopied::{Mechanism, residency};

use crate::delivery_harness::{Files, ServerConfig, TestServer, assert_same, with_timeout};

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

#[test]
fn a_cold_file_waits_on_the_pool_and_holds_up_no_other_connection() {
    let mut fastest_head = Duration::MAX;
    runtime().block_on(async {
        for mechanism in Mechanism::FILE_TO_SOCKET {
            for mode in ["default", "direct", "buffered"] {
                let files = Files::of(&[6 * MIB, 100_000]);
                let served = Arc::clone(&files);
                let config = ServerConfig {
                    mechanisms: &[mechanism, Mechanism::Copy],
                    ..ServerConfig::default()
                };
                let server = TestServer::start(&config, move |parts| served.body_for(parts));
                let (mut cold, mut warm) = (server.connect().await, server.connect().await);
                files.evict_from(0, 0);
                let held = hold_pool();

                let start = Instant::now();
                cold.request(&format!("/0/{mode}")).await;
                with_timeout(cold.head()).await.unwrap();
                if mode == "direct" {
                    fastest_head = fastest_head.min(start.elapsed());
                }
                for _ in 0..5 {
                    let body = with_timeout(warm.get(&format!("/1/{mode}"))).await;
                    assert_same(&body, &files.contents[1], "the warm file");
                }
                let mut body = vec![0; files.contents[0].len()];
                if mode == "direct" {
                    let pause = Duration::from_millis(30);
                    let read = tokio::time::timeout(pause, cold.io.read(&mut body)).await;
                    assert!(read.is_err(), "{mechanism}: bytes arrive without the pool");
                }

                drop(held);
                with_timeout(cold.io.read_exact(&mut body)).await.unwrap();
                assert_same(&body, &files.contents[0], &format!("{mechanism} {mode}"));
                assert!(is_resident(&files, 0, 0, 6 * MIB as u64));
            }
        }
    });
    // The head must not be held back to share a packet with the file's first bytes (`MSG_MORE`),
    // because those must first be read from disk. If heads were held back, each would arrive only
    // after 200 ms, when the kernel stops waiting for more bytes.
    let limit = Duration::from_millis(150);
    assert!(fastest_head < limit, "{fastest_head:?}");
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
            client.request("/0/direct").await;
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
        client.request("/0/direct").await;
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
        for mode in ["default", "direct", "buffered"] {
            files.evict_from(0, 0);
            let held = hold_pool();
            let mut client = server.connect().await;
            client.request(&format!("/0/{mode}")).await;
            with_timeout(client.head()).await.unwrap();
            drop(client);
            tokio::time::sleep(Duration::from_millis(20)).await;
            drop(held);
            let body = with_timeout(server.connect().await.get("/0/direct")).await;
            assert_same(&body, &files.contents[0], mode);
        }
    });
}
