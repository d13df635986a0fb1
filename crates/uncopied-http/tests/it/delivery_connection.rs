//! What a connection does between and around its responses.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use uncopied_http::{Activity, FileBody, Options, Phase};

use crate::delivery_rig::{
    Client, Files, Plan, Server, Stack, assert_same, serve_http1, soon, stream_pair,
};

/// Counts the polls of what it wraps.
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

/// A connection to a server of `files`, with its activity and the number of polls of its task.
async fn connection(files: &Arc<Files>) -> (Client, Arc<Activity>, Arc<AtomicUsize>) {
    let answering = Arc::clone(files);
    connection_to(Options::default(), move |parts| answering.answer(parts)).await
}

/// The same, to a server that answers so.
pub(crate) async fn connection_to(
    options: Options,
    answer: impl Fn(&http::request::Parts) -> FileBody + Clone + Send + Sync + 'static,
) -> (Client, Arc<Activity>, Arc<AtomicUsize>) {
    let (mut stream, theirs) = stream_pair(options).await;
    SockRef::from(&stream)
        .set_send_buffer_size(64 << 10)
        .unwrap();
    SockRef::from(&theirs)
        .set_recv_buffer_size(64 << 10)
        .unwrap();
    let activity = stream.activity();
    let polls = Arc::new(AtomicUsize::new(0));
    let served = serve_http1(stream, answer);
    tokio::spawn(Counted {
        inner: Box::pin(served),
        polls: Arc::clone(&polls),
    });
    let io: Box<dyn crate::delivery_rig::Io> = Box::new(theirs);
    let client = Client {
        io: BufReader::new(io),
    };
    (client, activity, polls)
}

pub(crate) async fn polls_in(polls: &AtomicUsize, time: Duration) -> usize {
    let before = polls.load(Ordering::Relaxed);
    tokio::time::sleep(time).await;
    polls.load(Ordering::Relaxed) - before
}

#[tokio::test]
async fn an_idle_connection_and_a_stalled_one_do_not_spin() {
    let files = Files::of(&[100_000, 8 << 20]);
    for mode in ["default", "direct", "read"] {
        let (mut client, _, polls) = connection(&files).await;
        for _ in 0..3 {
            soon(client.get(&format!("/0/{mode}"))).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        let idle = polls_in(&polls, Duration::from_millis(300)).await;
        assert_eq!(idle, 0, "{mode}, idle");

        client.request(&format!("/1/{mode}")).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let stalled = polls_in(&polls, Duration::from_millis(300)).await;
        assert!(stalled <= 1, "{mode}, stalled: {stalled} polls");
        let body = soon(client.response()).await.unwrap();
        assert_same(&body, &files.contents[1], mode);
    }
}

async fn until(activity: &Activity, phase: Phase) {
    soon(async {
        while activity.phase() != phase {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

const STALLED: Duration = Duration::from_millis(150);

/// Waits until nothing has gone out for a while.
async fn stalled(activity: &Activity) {
    soon(async {
        while activity.phase() != Phase::Sending || activity.waiting() < STALLED {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn the_phases_of_a_real_connection() {
    let files = Files::of(&[8 << 20]);
    for mode in ["default", "direct", "read"] {
        let (mut client, activity, _) = connection(&files).await;
        for _ in 0..2 {
            assert_eq!(activity.phase(), Phase::Idle);
            let request = format!("GET /0/{mode} HTTP/1.1\r\nhost: x\r\n\r\n");
            for piece in request.as_bytes().chunks(request.len() - 1) {
                client.io.write_all(piece).await.unwrap();
                client.io.flush().await.unwrap();
                tokio::time::sleep(Duration::from_millis(60)).await;
                if piece.len() > 1 {
                    assert_eq!(activity.phase(), Phase::Head);
                    assert!(activity.waiting() >= Duration::from_millis(40));
                }
            }
            stalled(&activity).await;

            let since = activity.since();
            // Progress starts the time anew.
            let head = soon(client.head()).await.unwrap();
            let mut body = vec![0; crate::delivery_rig::content_length(&head)];
            let (some, rest) = body.split_at_mut(3 << 20);
            soon(client.io.read_exact(some)).await.unwrap();
            stalled(&activity).await;
            assert!(activity.since() > since, "{mode}");
            soon(client.io.read_exact(rest)).await.unwrap();
            until(&activity, Phase::Idle).await;
        }
    }
}

/// Bytes that are held back come after 200 ms. None may be.
#[tokio::test]
async fn responses_come_without_delay() {
    let files = Files::of(&[1, 5000, 20_000, 100_000, 3_000_000]);
    for stack in [Stack::Http1, Stack::Axum] {
        let answering = Arc::clone(&files);
        let plan = Plan {
            stack,
            ..Plan::default()
        };
        let server = Server::start(&plan, move |parts| answering.answer(parts));
        for mode in ["default", "direct", "read"] {
            for at in 0..files.contents.len() {
                let mut client = server.connect().await;
                let mut times = Vec::new();
                for _ in 0..9 {
                    let start = Instant::now();
                    soon(client.get(&format!("/{at}/{mode}"))).await;
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

/// A file that fails behind its head leaves neither the head nor the end of the connection waiting.
#[tokio::test]
async fn a_head_without_its_body_comes_without_delay() {
    let mut times = Vec::new();
    for _ in 0..9 {
        let files = Files::of(&[100_000]);
        files.set_len(0, 0);
        let (mut client, _, _) = connection(&files).await;
        let start = Instant::now();
        client.request("/0/direct").await;
        soon(client.head()).await.unwrap();
        assert_eq!(soon(client.rest()).await.len(), 0);
        times.push(start.elapsed());
    }
    times.sort();
    assert!(times[4] < Duration::from_millis(150), "{times:?}");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let files = Files::of(&[0, 1, 100, 5000, 70_000, 2_500_000]);
    for stack in [Stack::Http1, Stack::Auto, Stack::Axum] {
        let answering = Arc::clone(&files);
        let plan = Plan {
            stack,
            buffers: Some(64 << 10),
            ..Plan::default()
        };
        let server = Server::start(&plan, move |parts| answering.answer(parts));
        let mut client = server.connect().await;
        let order: Vec<_> = (0..20_usize)
            .map(|at| (at * 5 % 6, ["default", "direct", "read"][at % 3]))
            .collect();
        let requests: String = order
            .iter()
            .map(|(at, mode)| format!("GET /{at}/{mode} HTTP/1.1\r\nhost: x\r\n\r\n"))
            .collect();
        client.io.write_all(requests.as_bytes()).await.unwrap();
        for (at, mode) in order {
            let body = soon(client.response()).await.unwrap();
            assert_same(
                &body,
                &files.contents[at],
                &format!("{stack:?} {at} {mode}"),
            );
        }
    }
}

/// The body of a request is not the next request.
#[tokio::test]
async fn a_request_within_the_body_of_a_get_is_not_answered() {
    let files = Files::of(&[70_001, 60_002, 80_003]);
    for stack in [Stack::Http1, Stack::Auto, Stack::Axum] {
        let answering = Arc::clone(&files);
        let plan = Plan {
            stack,
            ..Plan::default()
        };
        let server = Server::start(&plan, move |parts| answering.answer(parts));
        let mut client = server.connect().await;
        let hidden = "GET /1 HTTP/1.1\r\nhost: x\r\n\r\n";
        let requests = format!(
            "GET /0 HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{hidden}\
             GET /2 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
            hidden.len()
        );
        client.io.write_all(requests.as_bytes()).await.unwrap();
        let first = soon(client.response()).await.unwrap();
        assert_same(&first, &files.contents[0], "the first response");
        // A server may as well close the connection rather than read the body.
        let rest = soon(client.rest()).await;
        assert!(rest.is_empty() || rest.ends_with(&files.contents[2]));
        assert!(rest.len() < 80_003 + 200, "{} bytes", rest.len());
    }
}
