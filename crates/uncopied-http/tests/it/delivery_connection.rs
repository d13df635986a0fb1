//! Behaviour of a connection over time: idle and stalled connections, delays, and several requests
//! on one connection.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use socket2::SockRef;
use tokio::io::{AsyncWriteExt, BufReader};
use uncopied_http::{BodyPart, FileBody, StreamOptions};

use crate::delivery_harness::{
    Files, ServerConfig, Stack, TestClient, TestServer, assert_same, serve_http1, stream_pair,
    with_timeout,
};

/// A future that counts how often it is polled.
struct Counted<F> {
    inner: Pin<Box<F>>,
    polls: Arc<AtomicUsize>,
}

impl<F: Future> Future for Counted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.polls.fetch_add(1, Ordering::Relaxed);
        self.inner.as_mut().poll(cx)
    }
}

/// Connects to a server of `files`. Returns the client, and the number of times that the task of
/// the server's connection has been polled.
async fn connection(files: &Arc<Files>) -> (TestClient, Arc<AtomicUsize>) {
    let served = Arc::clone(files);
    connection_to(StreamOptions::default(), move |parts| {
        served.body_for(parts)
    })
    .await
}

/// Connects to a server that responds with the bodies of `make_body`. Returns the client, and the
/// number of times that the task of the server's connection has been polled.
pub(crate) async fn connection_to(
    options: StreamOptions,
    make_body: impl Fn(&http::request::Parts) -> FileBody + Clone + Send + Sync + 'static,
) -> (TestClient, Arc<AtomicUsize>) {
    let (stream, theirs) = stream_pair(options).await;
    SockRef::from(&stream)
        .set_send_buffer_size(64 << 10)
        .unwrap();
    SockRef::from(&theirs)
        .set_recv_buffer_size(64 << 10)
        .unwrap();
    let polls = Arc::new(AtomicUsize::new(0));
    let connection = serve_http1(stream, make_body);
    tokio::spawn(Counted {
        inner: Box::pin(connection),
        polls: Arc::clone(&polls),
    });
    let io: Box<dyn crate::delivery_harness::ClientIo> = Box::new(theirs);
    let client = TestClient {
        io: BufReader::new(io),
    };
    (client, polls)
}

/// Waits for `time`, and returns the number of polls during that time.
pub(crate) async fn polls_in(polls: &AtomicUsize, time: Duration) -> usize {
    let before = polls.load(Ordering::Relaxed);
    tokio::time::sleep(time).await;
    polls.load(Ordering::Relaxed) - before
}

#[tokio::test]
async fn idle_and_stalled_connections_do_not_spin() {
    let files = Files::of(&[100_000, 8 << 20]);
    for mode in ["default", "buffered"] {
        let (mut client, polls) = connection(&files).await;
        for _ in 0..3 {
            with_timeout(client.get(&format!("/0/{mode}"))).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        let idle = polls_in(&polls, Duration::from_millis(300)).await;
        assert_eq!(idle, 0, "{mode}, idle");

        client.request(&format!("/1/{mode}")).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let stalled = polls_in(&polls, Duration::from_millis(300)).await;
        assert!(stalled <= 1, "{mode}, stalled: {stalled} polls");
        let body = with_timeout(client.response()).await.unwrap();
        assert_same(&body, &files.contents[1], mode);
    }
}

/// If the kernel is told that more bytes follow (`MSG_MORE`) but none do, it holds the last bytes
/// back for up to 200 ms. That must not happen to any response.
#[tokio::test]
async fn responses_arrive_without_delay() {
    let files = Files::of(&[1, 5000, 20_000, 100_000, 3_000_000]);
    for stack in [Stack::Http1, Stack::Axum] {
        let served = Arc::clone(&files);
        let config = ServerConfig {
            stack,
            ..ServerConfig::default()
        };
        let server = TestServer::start(&config, move |parts| served.body_for(parts));
        for mode in ["default", "buffered"] {
            for at in 0..files.contents.len() {
                let mut client = server.connect().await;
                let mut times = Vec::new();
                for _ in 0..9 {
                    let start = Instant::now();
                    with_timeout(client.get(&format!("/{at}/{mode}"))).await;
                    times.push(start.elapsed());
                }
                times.sort();
                assert!(
                    times[4] < Duration::from_millis(150),
                    "{mode} {at}: {times:?}"
                );
            }
        }
    }
}

/// If a part of a body is a file that cannot be sent, the bytes in front of that part must arrive,
/// and the connection must end, both without delay.
#[tokio::test]
async fn bytes_in_front_of_a_truncated_file_arrive_without_delay() {
    let mut times = Vec::new();
    for _ in 0..9 {
        let files = Files::of(&[100, 100_000]);
        files.set_len(1, 0);
        let served = Arc::clone(&files);
        let (mut client, _) = connection_to(StreamOptions::default(), move |_| {
            FileBody::from_parts([
                BodyPart::File(Arc::clone(&served.open[0]), 0..100),
                BodyPart::Memory(Bytes::from_static(b"in front")),
                BodyPart::File(Arc::clone(&served.open[1]), 0..100_000),
            ])
        })
        .await;
        let start = Instant::now();
        client.request("/").await;
        with_timeout(client.head()).await.unwrap();
        let got = with_timeout(client.rest()).await;
        assert_same(&got[..100], &files.contents[0], "the first part");
        assert_same(&got[100..], b"in front", "the second part");
        times.push(start.elapsed());
    }
    times.sort();
    assert!(times[4] < Duration::from_millis(150), "{times:?}");
}

#[tokio::test]
async fn pipelined_requests_get_responses_in_order() {
    let files = Files::of(&[0, 1, 100, 5000, 70_000, 2_500_000]);
    for stack in [Stack::Http1, Stack::Auto, Stack::Axum] {
        let served = Arc::clone(&files);
        let config = ServerConfig {
            stack,
            buffers: Some(64 << 10),
            ..ServerConfig::default()
        };
        let server = TestServer::start(&config, move |parts| served.body_for(parts));
        let mut client = server.connect().await;
        let order: Vec<_> = (0..20_usize)
            .map(|at| (at * 5 % 6, ["default", "default", "buffered"][at % 3]))
            .collect();
        let requests: String = order
            .iter()
            .map(|(at, mode)| format!("GET /{at}/{mode} HTTP/1.1\r\nhost: x\r\n\r\n"))
            .collect();
        client.io.write_all(requests.as_bytes()).await.unwrap();
        for (at, mode) in order {
            let body = with_timeout(client.response()).await.unwrap();
            assert_same(
                &body,
                &files.contents[at],
                &format!("{stack:?} {at} {mode}"),
            );
        }
    }
}

/// The body of a GET request must not be parsed as the next request (request smuggling).
#[tokio::test]
async fn a_request_within_the_body_of_a_get_gets_no_response() {
    let files = Files::of(&[70_001, 60_002, 80_003]);
    for stack in [Stack::Http1, Stack::Auto, Stack::Axum] {
        let served = Arc::clone(&files);
        let config = ServerConfig {
            stack,
            ..ServerConfig::default()
        };
        let server = TestServer::start(&config, move |parts| served.body_for(parts));
        let mut client = server.connect().await;
        let hidden = "GET /1 HTTP/1.1\r\nhost: x\r\n\r\n";
        let requests = format!(
            "GET /0 HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{hidden}\
             GET /2 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
            hidden.len()
        );
        client.io.write_all(requests.as_bytes()).await.unwrap();
        let first = with_timeout(client.response()).await.unwrap();
        assert_same(&first, &files.contents[0], "the first response");
        // Accept a closed connection in place of the last response, because a server may close the
        // connection instead of reading the request's body.
        let rest = with_timeout(client.rest()).await;
        assert!(rest.is_empty() || rest.ends_with(&files.contents[2]));
        assert!(rest.len() < 80_003 + 200, "{} bytes", rest.len());
    }
}
