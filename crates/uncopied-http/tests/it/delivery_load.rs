//! Many clients: slow ones, greedy ones, and ones that disconnect early.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{Read, Write};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use rustix::net::RecvFlags;
use tokio::io::AsyncReadExt;
use uncopied::Mechanism;
use uncopied_http::{FileBody, Listener, StreamOptions, Totals};

use crate::delivery_harness::{
    Files, Rng, ServerConfig, Stack, TestServer, Transport, assert_same, content_length,
    in_own_process, runtime, serve_http1, with_timeout,
};
use crate::delivery_pages::{Freeze, pages_of, serve_bodies};

#[tokio::test]
async fn slow_readers_with_tiny_buffers_get_every_byte() {
    let files = Files::of(&[1_500_001]);
    for transport in [Transport::Tcp, Transport::Unix] {
        for (at, mechanism) in Mechanism::FILE_TO_SOCKET.into_iter().enumerate() {
            for mode in ["default", "buffered"] {
                let served = Arc::clone(&files);
                let config = ServerConfig {
                    transport,
                    mechanisms: &[mechanism, Mechanism::Copy],
                    buffers: Some(2048),
                    ..ServerConfig::default()
                };
                let server = TestServer::start(&config, move |parts| served.body_for(parts));
                let mut client = server.connect().await;
                let mut rng = Rng(at as u64);
                client.request(&format!("/0/{mode}")).await;
                let head = with_timeout(client.head()).await.unwrap();
                let mut body = vec![0; content_length(&head)];
                let mut got = 0;
                while got < body.len() {
                    let most = (got + 1 + rng.below(20_000)).min(body.len());
                    got += with_timeout(client.io.read(&mut body[got..most]))
                        .await
                        .unwrap();
                    if rng.below(40) == 0 {
                        tokio::time::sleep(Duration::from_micros(300)).await;
                    }
                }
                let what = format!("{transport:?} {mechanism} {mode}");
                assert_same(&body, &files.contents[0], &what);
            }
        }
    }
}

/// Counts the resources that this process could leak: its open descriptors, by the kind of object
/// that they refer to, and its mappings of files beneath `dir`.
fn resources(dir: &Path) -> BTreeMap<String, usize> {
    let mut resources = BTreeMap::new();
    for link in std::fs::read_dir("/proc/self/fd").unwrap() {
        let Ok(to) = std::fs::read_link(link.unwrap().path()) else {
            continue;
        };
        let to = to.to_string_lossy();
        let kind = to.split(['[', ':']).next().unwrap().to_owned();
        *resources.entry(kind).or_default() += 1;
    }
    let dir = dir.to_str().unwrap();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let of_files = maps.lines().filter(|line| line.contains(dir)).count();
    resources.insert("mappings".to_owned(), of_files);
    resources
}

#[test]
fn clients_that_disconnect_leave_nothing_behind() {
    let test = "delivery_load::clients_that_disconnect_leave_nothing_behind";
    in_own_process(test, &[], || runtime().block_on(disconnect_many()));
}

async fn disconnect_many() {
    let files = Files::of(&[3_000_000, 100, 70_000]);
    let dir = files.path(0).parent().unwrap().to_owned();
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let mut rng = Rng(3);
    for (at, mechanism) in Mechanism::FILE_TO_SOCKET.into_iter().enumerate() {
        for transport in [Transport::Tcp, Transport::Unix] {
            let served = Arc::clone(&files);
            let config = ServerConfig {
                transport,
                stack: [Stack::Http1, Stack::Auto][at % 2],
                mechanisms: &[mechanism, Mechanism::Copy],
                buffers: Some(16 << 10),
            };
            let server = TestServer::start(&config, move |parts| served.body_for(parts));
            // Request every file before counting, so that descriptors that are opened only once and
            // then kept do not look like leaks.
            for file in 0..3 {
                let mut client = server.connect().await;
                with_timeout(client.get(&format!("/{file}"))).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            let (before, tasks_before) = (resources(&dir), tasks());
            let mut clients = Vec::new();
            for round in 0..120 {
                let mut client = server.connect().await;
                let mode = ["default", "default", "buffered"][round % 3];
                client.request(&format!("/{}/{mode}", round % 5 % 3)).await;
                let mut some = vec![0; rng.below(200_000)];
                let timeout = Duration::from_millis(rng.below(4) as u64);
                let read = client.io.read_exact(&mut some);
                let _ = tokio::time::timeout(timeout, read).await;
                clients.push(client);
                if clients.len() > rng.below(20) {
                    clients.clear();
                }
            }
            clients.clear();
            let what = format!("{mechanism} {transport:?}");
            with_timeout(async {
                while resources(&dir) != before || tasks() != tasks_before {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
            .await;
            let body = with_timeout(server.connect().await.get("/0")).await;
            assert_same(&body, &files.contents[0], &what);
        }
    }
    let path = files.path(0);
    drop(files);
    with_timeout(async {
        // Wait for the last server's task to end, because it holds the last handles to the files.
        // Dropping those handles removes the files' directory and mappings.
        while path.exists() || resources(&dir)["mappings"] > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// A body of permanent pages is sent through a pipe (`vmsplice`). A connection must keep its pipe
/// only while the pipe holds bytes. Each thread caches a few empty pipes, and their number must not
/// depend on the number of connections.
#[test]
fn idle_connections_keep_no_pipes() {
    let test = "delivery_load::idle_connections_keep_no_pipes";
    in_own_process(test, &[], || {
        runtime().block_on(keep_alive_and_disconnect())
    });
}

async fn keep_alive_and_disconnect() {
    let content = crate::delivery_harness::random_bytes(2_000_000, 1);
    let pages = Bytes::from(pages_of(&content, Freeze::Permanent));
    let config = ServerConfig {
        buffers: Some(32 << 10),
        ..ServerConfig::default()
    };
    let server = TestServer::start(&config, serve_bodies(vec![pages]));
    let pipes = || {
        resources(Path::new("/proc"))
            .get("pipe")
            .copied()
            .unwrap_or(0)
    };
    let before = pipes();
    let mut clients = Vec::new();
    for _ in 0..40 {
        let mut client = server.connect().await;
        let body = with_timeout(client.get("/0")).await;
        assert_same(&body, &content, "the body");
        clients.push(client);
    }
    let idle = pipes() - before;
    assert!((1..=16).contains(&idle), "{idle} ends of pipes are open");
    for client in &mut clients {
        client.request("/0").await;
        with_timeout(client.head()).await.unwrap();
    }
    assert!(pipes() - before >= 80, "every connection is within a body");
    clients.clear();
    with_timeout(async {
        while pipes() - before > 16 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let body = with_timeout(server.connect().await.get("/0")).await;
    assert_same(&body, &content, "the next client's body");
    assert_eq!(server.totals.bytes(Mechanism::SendZc), 0);
}

/// Returns the number of bytes of files and pages that were sent without copying.
fn sent(totals: &Totals) -> u64 {
    totals.bytes(Mechanism::Sendfile) + totals.bytes(Mechanism::Vmsplice)
}

/// A wrapper of a connection that records the largest number of bytes sent during a single poll.
struct Metered {
    connection: Pin<Box<dyn Future<Output = ()> + Send>>,
    totals: Arc<Totals>,
    most: Arc<AtomicU64>,
}

impl Future for Metered {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let before = sent(&self.totals);
        let end = self.connection.as_mut().poll(cx);
        let now = sent(&self.totals);
        self.most.fetch_max(now - before, Ordering::Relaxed);
        end
    }
}

/// Serves every connection, and records in `most` the largest number of bytes that any connection
/// has sent during a single poll.
async fn serve_metered(
    listener: std::net::TcpListener,
    make_body: impl Fn(&http::request::Parts) -> FileBody + Clone + Send + Sync + 'static,
    totals: Arc<Totals>,
    most: Arc<AtomicU64>,
) {
    let options = StreamOptions::default().totals(Arc::clone(&totals));
    let listener = Listener::from_tcp(listener, options).unwrap();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let connection = serve_http1(stream, make_body.clone());
        tokio::spawn(Metered {
            connection: Box::pin(connection),
            totals: Arc::clone(&totals),
            most: Arc::clone(&most),
        });
    }
}

const GREEDY_BODY_BYTES: usize = 3 << 20;

/// Runs a client that reads faster than the server can send, and that sends eight requests at a
/// time, so that the server almost always has another request to process.
fn run_greedy_client(address: std::net::SocketAddr, path: &str, stop: &AtomicBool) {
    let mut socket = std::net::TcpStream::connect(address).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
    let mut buffer = vec![0; 4 << 20];
    while !stop.load(Ordering::Relaxed) {
        socket.write_all(request.repeat(8).as_bytes()).unwrap();
        let mut left = 8 * GREEDY_BODY_BYTES;
        while left > 0 && !stop.load(Ordering::Relaxed) {
            // Let the kernel discard the received bytes instead of copying them (`MSG_TRUNC`, see
            // `tcp(7)`), so that this client is faster than the server.
            let (_, read) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::TRUNC).unwrap();
            assert!(read > 0);
            left = left.saturating_sub(read);
        }
    }
}

#[test]
fn a_greedy_client_does_not_hold_up_the_others() {
    for path in ["/0", "/pages"] {
        let files = Files::of(&[GREEDY_BODY_BYTES, 500]);
        let pages = Bytes::from(pages_of(&files.contents[0], Freeze::Permanent));
        let served = Arc::clone(&files);
        let make_body = move |parts: &http::request::Parts| match parts.uri.path() {
            "/pages" => FileBody::from_bytes(pages.clone()),
            _ => served.body_for(parts),
        };
        let (totals, most) = (Arc::new(Totals::default()), Arc::new(AtomicU64::new(0)));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let serve = serve_metered(listener, make_body, Arc::clone(&totals), Arc::clone(&most));
        let server = std::thread::spawn(move || {
            runtime().block_on(async {
                tokio::spawn(serve);
                let _ = ended.await;
            });
        });
        let stop = Arc::new(AtomicBool::new(false));
        let greedy = {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || run_greedy_client(address, path, &stop))
        };
        let mut socket = std::net::TcpStream::connect(address).unwrap();
        let timeout = Some(Duration::from_secs(20));
        socket.set_read_timeout(timeout).unwrap();
        let mut responses = 0;
        while responses < 40 || sent(&totals) < 600 << 20 {
            let request = b"GET /1/buffered HTTP/1.1\r\nhost: x\r\n\r\n";
            socket.write_all(request).unwrap();
            let mut got = Vec::new();
            while !got.ends_with(&files.contents[1]) {
                let mut some = [0; 2000];
                let read = socket.read(&mut some).unwrap();
                assert!(read > 0);
                got.extend_from_slice(&some[..read]);
            }
            responses += 1;
        }
        stop.store(true, Ordering::Relaxed);
        greedy.join().unwrap();
        drop(end);
        server.join().unwrap();
        // A connection must yield once it has sent 4 MiB. The step that reaches this limit may
        // exceed it by up to 2 MiB.
        let most = most.load(Ordering::Relaxed);
        assert!(most <= 6 << 20, "{path}: {most} bytes without yielding");
    }
}

/// A body marks its first frame in a thread-local variable, so that the stream can tell whether the
/// frame arrives unread. In a multi-threaded runtime, a connection may then move to another thread,
/// which leaves the mark behind on the old thread. Every byte must still arrive.
#[test]
fn many_connections_on_many_threads_get_every_byte() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .unwrap();
    let files = Files::of(&[0, 900, 4097, 30_000, 200_000, 1_200_000]);
    runtime.block_on(async {
        for (transport, stack) in [
            (Transport::Tcp, Stack::Http1),
            (Transport::Unix, Stack::Auto),
            (Transport::Tcp, Stack::Axum),
        ] {
            let served = Arc::clone(&files);
            let config = ServerConfig {
                transport,
                stack,
                ..ServerConfig::default()
            };
            let server = TestServer::start(&config, move |parts| served.body_for(parts));
            let mut clients = tokio::task::JoinSet::new();
            for number in 0..60 {
                let mut client = server.connect().await;
                let files = Arc::clone(&files);
                clients.spawn(async move {
                    let mut rng = Rng(number);
                    for _ in 0..12 {
                        let at = rng.below(6);
                        let mode = ["default", "default", "buffered"][rng.below(3)];
                        let body = with_timeout(client.get(&format!("/{at}/{mode}"))).await;
                        assert_same(&body, &files.contents[at], &format!("{at} {mode}"));
                        tokio::task::yield_now().await;
                    }
                });
            }
            while let Some(done) = clients.join_next().await {
                done.unwrap();
            }
            assert!(server.totals.bytes(Mechanism::Sendfile) > 0);
        }
    });
}
