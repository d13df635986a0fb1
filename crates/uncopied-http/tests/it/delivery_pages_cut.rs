//! Bodies of pages that are cut off, abandoned, or read late. A client must never get other bytes
//! in place of the body's, and every handle to the pages must eventually be dropped, so that the
//! pages can be reused.

use std::io::{ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use uncopied::Mechanism;
use uncopied::arena::{PageBuffer, Pages};
use uncopied_http::{Stream, StreamOptions, Totals};

use crate::delivery_connection::{connection_to, polls_in};
use crate::delivery_harness::{
    Files, TestClient, assert_same, in_own_process, random_bytes, runtime, serve_http1,
    stream_pair, with_timeout,
};
use crate::delivery_pages::{Freeze, pages_of, serve_bodies};

const BODY_BYTES: usize = 6 << 20;

/// The lists of forced mechanisms for tests with reusable pages. The empty list forces nothing.
/// `vmsplice` is left out, because pages that were sent with it to a peer on this machine are never
/// reused.
const WITH_REUSABLE_PAGES: [&[Mechanism]; 3] = [
    &[],
    &[Mechanism::SendZc, Mechanism::Copy],
    &[Mechanism::Copy],
];

/// Waits until `pages` is the only handle left, and turns the pages into a buffer again.
async fn until_released(mut pages: Pages) -> PageBuffer {
    with_timeout(async {
        loop {
            match pages.try_into_buffer() {
                Ok(buffer) => return buffer,
                Err(handle) => pages = handle,
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
}

async fn until_nothing_is_in_flight() {
    with_timeout(async {
        while uncopied::in_flight_bytes() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// Serves a connection with hyper, with these pages as the body of every response. The client reads
/// only the head and the first bytes of a response, so that the connection stalls within the body.
/// Returns the client and the server's task.
async fn stalled(mechanisms: &[Mechanism], pages: &Pages) -> (TestClient, JoinHandle<()>) {
    let (stream, theirs) = stream_pair(StreamOptions::default().force_mechanisms(mechanisms)).await;
    let body = Bytes::from(pages.clone());
    let serving = tokio::spawn(serve_http1(stream, serve_bodies(vec![body])));
    let mut client = TestClient {
        io: BufReader::with_capacity(16 << 10, Box::new(theirs)),
    };
    client.request("/0").await;
    with_timeout(client.head()).await.unwrap();
    let mut some = vec![0; 100_000];
    with_timeout(client.io.read_exact(&mut some)).await.unwrap();
    assert_same(&some, &pages[..some.len()], "the first bytes");
    tokio::time::sleep(Duration::from_millis(50)).await;
    (client, serving)
}

#[test]
fn pages_are_released_by_a_client_that_leaves() {
    let test = "delivery_pages_cut::pages_are_released_by_a_client_that_leaves";
    in_own_process(test, &[], || {
        runtime().block_on(async {
            for mechanisms in WITH_REUSABLE_PAGES {
                let pages = pages_of(&random_bytes(BODY_BYTES, 1), Freeze::Reusable);
                // Close the client's socket while it holds unread bytes, which resets the
                // connection.
                let (client, serving) = stalled(mechanisms, &pages).await;
                drop(client);
                with_timeout(serving).await.unwrap();
                until_released(pages).await;
                until_nothing_is_in_flight().await;
            }
        });
    });
}

#[test]
fn pages_are_released_by_a_connection_that_is_dropped() {
    let test = "delivery_pages_cut::pages_are_released_by_a_connection_that_is_dropped";
    in_own_process(test, &[], || {
        runtime().block_on(async {
            for mechanisms in WITH_REUSABLE_PAGES {
                let content = random_bytes(BODY_BYTES, 2);
                let pages = pages_of(&content, Freeze::Reusable);
                let (mut client, serving) = stalled(mechanisms, &pages).await;
                serving.abort();
                assert!(with_timeout(serving).await.unwrap_err().is_cancelled());
                // The bytes that the socket accepted before the connection was dropped must still
                // arrive.
                let rest = with_timeout(client.rest()).await;
                assert!(!rest.is_empty() && rest.len() < BODY_BYTES - 100_000);
                assert_same(&rest, &content[100_000..][..rest.len()], "the sent bytes");
                until_released(pages).await;
                until_nothing_is_in_flight().await;
            }
        });
    });
}

#[test]
fn pages_are_released_by_a_runtime_that_is_shut_down() {
    let test = "delivery_pages_cut::pages_are_released_by_a_runtime_that_is_shut_down";
    in_own_process(test, &[], || {
        for mechanisms in WITH_REUSABLE_PAGES {
            let pages = pages_of(&random_bytes(BODY_BYTES, 3), Freeze::Reusable);
            let (serving, outer) = (runtime(), runtime());
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let client = std::net::TcpStream::connect(address).unwrap();
            let (ours, _) = listener.accept().unwrap();
            ours.set_nonblocking(true).unwrap();
            serving.block_on(async {
                let ours = TcpStream::from_std(ours).unwrap();
                let mut stream =
                    Stream::tcp(ours, StreamOptions::default().force_mechanisms(mechanisms));
                let body = Bytes::from(pages.clone());
                tokio::spawn(async move { stream.write_all(&body).await });
                tokio::time::sleep(Duration::from_millis(100)).await;
            });
            drop(serving);
            drop(client);
            outer.block_on(async {
                until_released(pages).await;
                until_nothing_is_in_flight().await;
            });
        }
    });
}

/// If a body fails, hyper drops the bytes that it has queued, and closes the connection.
/// Afterwards, no handle to the pages may be left.
#[test]
fn pages_are_released_by_a_body_that_fails() {
    let test = "delivery_pages_cut::pages_are_released_by_a_body_that_fails";
    in_own_process(test, &[], || {
        runtime().block_on(async {
            for mechanisms in WITH_REUSABLE_PAGES {
                fail_midway(mechanisms).await;
            }
        });
    });
}

async fn fail_midway(mechanisms: &[Mechanism]) {
    let content = random_bytes(BODY_BYTES, 4);
    let pages = pages_of(&content, Freeze::Reusable);
    let (stream, theirs) = stream_pair(StreamOptions::default().force_mechanisms(mechanisms)).await;
    let body = Bytes::from(pages.clone());
    let service = service_fn(move |_| {
        let body = Failing(Some(body.clone()));
        std::future::ready(Ok::<_, std::convert::Infallible>(http::Response::new(body)))
    });
    let serving = tokio::spawn(async move {
        hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .await
    });
    let mut client = TestClient {
        io: BufReader::new(Box::new(theirs)),
    };
    client.request("/").await;
    with_timeout(client.head()).await.unwrap();
    let rest = with_timeout(client.rest()).await;
    assert!(!rest.ends_with(b"\r\n0\r\n\r\n"), "a clean end");
    assert!(with_timeout(serving).await.unwrap().is_err());
    let begin = rest
        .iter()
        .position(|&byte| byte == b'\n')
        .map_or(0, |at| at + 1);
    let got = &rest[begin..rest.len().min(begin + BODY_BYTES)];
    assert_same(got, &content[..got.len()], "the received bytes");
    until_released(pages).await;
    until_nothing_is_in_flight().await;
}

/// A body that yields one frame and then fails.
struct Failing(Option<Bytes>);

impl Body for Failing {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(Some(match self.0.take() {
            Some(bytes) => Ok(Frame::data(bytes)),
            None => Err("the source is gone"),
        }))
    }
}

/// If a write blocks and its future is dropped, the caller may go on to write other bytes. The
/// stream must send exactly those bytes, and must not keep handles to the pages of the abandoned
/// write.
#[test]
fn other_bytes_after_a_blocked_write_are_sent_as_they_are() {
    let test = "delivery_pages_cut::other_bytes_after_a_blocked_write_are_sent_as_they_are";
    in_own_process(test, &[], || {
        runtime().block_on(async {
            for (mechanisms, freeze) in [
                (WITH_REUSABLE_PAGES[0], Freeze::Reusable),
                (WITH_REUSABLE_PAGES[1], Freeze::Reusable),
                (&[], Freeze::Permanent),
                (&[Mechanism::Vmsplice], Freeze::Reusable),
            ] {
                replace_midway(mechanisms, freeze).await;
            }
        });
    });
}

/// Writes pages until the stream is blocked. Then writes other bytes instead: other pages, plain
/// memory, a mapped file, and different slices of the first pages.
async fn replace_midway(mechanisms: &[Mechanism], freeze: Freeze) {
    let files = Files::of(&[300_000]);
    let file = uncopied::arena::FileMapping::new(
        Arc::new(std::fs::File::open(files.path(0)).unwrap()),
        0..300_000,
    );
    let file = file.unwrap().bytes();
    let (content, other) = (random_bytes(8 << 20, 5), random_bytes(2 << 20, 6));
    let (pages, others) = (pages_of(&content, freeze), pages_of(&other, freeze));
    let (mut stream, mut theirs) =
        stream_pair(StreamOptions::default().force_mechanisms(mechanisms)).await;
    let mut at = 0;
    // Write until the socket accepts no more bytes.
    let pause = Duration::from_millis(100);
    while let Ok(written) = tokio::time::timeout(pause, stream.write(&pages[at..])).await {
        at += written.unwrap();
        assert!(at < pages.len(), "the peer does not read");
    }
    let mut expected = content[..at].to_vec();
    for piece in [
        &others[100_000..],
        b"plain",
        &pages[at + 1..at + 100_000],
        &file[7..],
        &pages[at..at + 500_000],
        &others[4096..90_000],
        // Include the bytes that the blocked write may have put into its pipe without sending them.
        // They must arrive exactly as often as they are written below.
        &pages[at..at + 40_000],
    ] {
        expected.extend_from_slice(piece);
    }
    let reading = tokio::spawn(async move {
        let mut got = Vec::new();
        theirs.read_to_end(&mut got).await.unwrap();
        got
    });
    stream.write_all(&others[100_000..]).await.unwrap();
    stream.write_all(b"plain").await.unwrap();
    stream
        .write_all(&pages[at + 1..at + 100_000])
        .await
        .unwrap();
    stream.write_all(&file[7..]).await.unwrap();
    stream.write_all(&pages[at..at + 500_000]).await.unwrap();
    stream.write_all(&others[4096..90_000]).await.unwrap();
    stream.write_all(&pages[at..at + 40_000]).await.unwrap();
    drop(stream);
    let got = with_timeout(reading).await.unwrap();
    assert_same(&got, &expected, &format!("{mechanisms:?} {freeze:?}"));
    if freeze == Freeze::Reusable && mechanisms != [Mechanism::Vmsplice] {
        until_released(pages).await;
        until_released(others).await;
    }
    until_nothing_is_in_flight().await;
}

/// The app drops its pages before the client has read the response, and fills new buffers, which
/// are likely to have the same addresses. The client must still get the bytes of the response.
#[tokio::test]
async fn a_client_that_reads_late_gets_the_original_bytes() {
    const LATE_BODY_BYTES: usize = 256 << 10;
    let rows: [(&[Mechanism], Freeze); 5] = [
        (&[], Freeze::Reusable),
        (&[], Freeze::Permanent),
        (&[Mechanism::Vmsplice], Freeze::Reusable),
        (&[Mechanism::SendZc, Mechanism::Copy], Freeze::Reusable),
        (&[Mechanism::Copy], Freeze::Permanent),
    ];
    for (mechanisms, freeze) in rows {
        let mut seed = 0;
        for round in 0..12 {
            let totals = Arc::new(Totals::default());
            let options = StreamOptions::default()
                .force_mechanisms(mechanisms)
                .totals(Arc::clone(&totals));
            let (stream, theirs) = stream_pair(options).await;
            // Make the send buffer large enough that the body fits into it and into the peer's
            // receive window. So the server can send the whole body before the client reads it.
            SockRef::from(&stream)
                .set_send_buffer_size(4 << 20)
                .unwrap();
            let content = random_bytes(LATE_BODY_BYTES, round);
            let body = Arc::new(Mutex::new(Some(pages_of(&content, freeze))));
            let serving = tokio::spawn(serve_http1(stream, move |_: &http::request::Parts| {
                let pages = body.lock().unwrap().take();
                uncopied_http::FileBody::from_bytes(pages.map(Bytes::from).unwrap_or_default())
            }));
            let mut client = TestClient {
                io: BufReader::with_capacity(1000, Box::new(theirs)),
            };
            client.request("/").await;
            let mut got = Vec::new();
            let head = with_timeout(client.head()).await.unwrap();
            assert_eq!(
                crate::delivery_harness::content_length(&head),
                LATE_BODY_BYTES
            );
            while got.len() < LATE_BODY_BYTES {
                let poison = std::iter::repeat_with(|| {
                    seed += 1;
                    let mut buffer = PageBuffer::zeroed(LATE_BODY_BYTES).unwrap();
                    buffer.fill(seed as u8);
                    buffer.freeze()
                });
                let poison: Vec<_> = poison.take(4).collect();
                let mut some = vec![0; 40_000.min(LATE_BODY_BYTES - got.len())];
                with_timeout(client.io.read_exact(&mut some)).await.unwrap();
                got.extend(some);
                drop(poison);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert_same(&got, &content, &format!("{mechanisms:?} {freeze:?}"));
            serving.abort();
        }
    }
}

#[tokio::test]
async fn idle_and_stalled_connections_do_not_spin() {
    for (mechanisms, freeze) in [
        (WITH_REUSABLE_PAGES[0], Freeze::Reusable),
        (WITH_REUSABLE_PAGES[1], Freeze::Reusable),
        (&[], Freeze::Permanent),
    ] {
        let contents = [random_bytes(100_000, 1), random_bytes(8 << 20, 2)];
        let bodies = contents
            .each_ref()
            .map(|it| Bytes::from(pages_of(it, freeze)));
        let options = StreamOptions::default().force_mechanisms(mechanisms);
        let (mut client, polls) = connection_to(options, serve_bodies(bodies.to_vec())).await;
        for _ in 0..3 {
            with_timeout(client.get("/0")).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        let idle = polls_in(&polls, Duration::from_millis(300)).await;
        assert_eq!(idle, 0, "{mechanisms:?} {freeze:?}, idle");

        client.request("/1").await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let stalled = polls_in(&polls, Duration::from_millis(300)).await;
        assert!(
            stalled <= 1,
            "{mechanisms:?} {freeze:?}, stalled: {stalled}"
        );
        let body = with_timeout(client.response()).await.unwrap();
        assert_same(&body, &contents[1], "the body");
    }
}

#[tokio::test]
async fn a_peer_that_is_gone_causes_an_error_and_no_signal() {
    for mechanism in Mechanism::MEMORY_TO_SOCKET {
        let pages = pages_of(&random_bytes(8 << 20, 1), Freeze::Permanent);
        let options = StreamOptions::default().force_mechanisms(&[mechanism, Mechanism::Copy]);
        let (mut stream, theirs) = stream_pair(options).await;
        drop(theirs);
        let error = with_timeout(stream.write_all(&pages)).await.unwrap_err();
        let kinds = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
        assert!(kinds.contains(&error.kind()), "{mechanism}: {error}");
        let error = with_timeout(stream.write_vectored(&[IoSlice::new(b"more")])).await;
        assert!(kinds.contains(&error.unwrap_err().kind()), "{mechanism}");
    }
}
