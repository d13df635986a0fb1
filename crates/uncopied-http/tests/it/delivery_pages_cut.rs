//! Bodies of pages that are cut off, given up, or read late: nobody ever gets other bytes, and the pages
//! come back.

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
use uncopied_http::{Options, Stream, Totals};

use crate::delivery_connection::{connection_to, polls_in};
use crate::delivery_pages::{Frozen, answer, pages_of};
use crate::delivery_rig::{
    Client, Files, assert_same, bytes_of, in_own_process, runtime, serve_http1, soon, stream_pair,
};

const LEN: usize = 6 << 20;

/// How pages that can be written to again get to the socket.
const RETURNING: [&[Mechanism]; 3] = [
    &[],
    &[Mechanism::SendZc, Mechanism::Copy],
    &[Mechanism::Copy],
];

/// The buffer back, once nobody has the pages any more.
async fn come_back(mut pages: Pages) -> PageBuffer {
    soon(async {
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

async fn nothing_is_lent() {
    soon(async {
        while uncopied::in_flight_bytes() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// A connection served by hyper that answers everything with these pages, stalled within the body.
async fn stalled(mechanisms: &[Mechanism], pages: &Pages) -> (Client, JoinHandle<()>) {
    let (stream, theirs) = stream_pair(Options::default().force_mechanisms(mechanisms)).await;
    let body = Bytes::from(pages.clone());
    let serving = tokio::spawn(serve_http1(stream, answer(vec![body])));
    let mut client = Client {
        io: BufReader::with_capacity(16 << 10, Box::new(theirs)),
    };
    client.request("/0").await;
    soon(client.head()).await.unwrap();
    let mut some = vec![0; 100_000];
    soon(client.io.read_exact(&mut some)).await.unwrap();
    assert_same(&some, &pages[..some.len()], "the first bytes");
    tokio::time::sleep(Duration::from_millis(50)).await;
    (client, serving)
}

#[test]
fn pages_come_back_from_a_client_that_leaves() {
    let test = "delivery_pages_cut::pages_come_back_from_a_client_that_leaves";
    in_own_process(test, &[], || {
        runtime().block_on(async {
            for mechanisms in RETURNING {
                let pages = pages_of(&bytes_of(LEN, 1), Frozen::Once);
                // What it has not read makes it a reset.
                let (client, serving) = stalled(mechanisms, &pages).await;
                drop(client);
                soon(serving).await.unwrap();
                come_back(pages).await;
                nothing_is_lent().await;
            }
        });
    });
}

#[test]
fn pages_come_back_from_a_connection_that_is_dropped() {
    let test = "delivery_pages_cut::pages_come_back_from_a_connection_that_is_dropped";
    in_own_process(test, &[], || {
        runtime().block_on(async {
            for mechanisms in RETURNING {
                let content = bytes_of(LEN, 2);
                let pages = pages_of(&content, Frozen::Once);
                let (mut client, serving) = stalled(mechanisms, &pages).await;
                serving.abort();
                assert!(soon(serving).await.unwrap_err().is_cancelled());
                // What the socket had taken still arrives.
                let rest = soon(client.rest()).await;
                assert!(!rest.is_empty() && rest.len() < LEN - 100_000);
                assert_same(&rest, &content[100_000..][..rest.len()], "what was sent");
                come_back(pages).await;
                nothing_is_lent().await;
            }
        });
    });
}

#[test]
fn pages_come_back_from_a_runtime_that_is_shut_down() {
    let test = "delivery_pages_cut::pages_come_back_from_a_runtime_that_is_shut_down";
    in_own_process(test, &[], || {
        for mechanisms in RETURNING {
            let pages = pages_of(&bytes_of(LEN, 3), Frozen::Once);
            let (serving, outer) = (runtime(), runtime());
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let client = std::net::TcpStream::connect(address).unwrap();
            let (ours, _) = listener.accept().unwrap();
            ours.set_nonblocking(true).unwrap();
            serving.block_on(async {
                let ours = TcpStream::from_std(ours).unwrap();
                let mut stream = Stream::tcp(ours, Options::default().force_mechanisms(mechanisms));
                let body = Bytes::from(pages.clone());
                tokio::spawn(async move { stream.write_all(&body).await });
                tokio::time::sleep(Duration::from_millis(100)).await;
            });
            drop(serving);
            drop(client);
            outer.block_on(async {
                come_back(pages).await;
                nothing_is_lent().await;
            });
        }
    });
}

/// hyper drops what it has queued, and the connection.
#[test]
fn pages_come_back_from_a_body_that_fails() {
    let test = "delivery_pages_cut::pages_come_back_from_a_body_that_fails";
    in_own_process(test, &[], || {
        runtime().block_on(async {
            for mechanisms in RETURNING {
                fail_midway(mechanisms).await;
            }
        });
    });
}

async fn fail_midway(mechanisms: &[Mechanism]) {
    let content = bytes_of(LEN, 4);
    let pages = pages_of(&content, Frozen::Once);
    let (stream, theirs) = stream_pair(Options::default().force_mechanisms(mechanisms)).await;
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
    let mut client = Client {
        io: BufReader::new(Box::new(theirs)),
    };
    client.request("/").await;
    soon(client.head()).await.unwrap();
    let rest = soon(client.rest()).await;
    assert!(!rest.ends_with(b"\r\n0\r\n\r\n"), "a clean end");
    assert!(soon(serving).await.unwrap().is_err());
    let begin = rest
        .iter()
        .position(|&byte| byte == b'\n')
        .map_or(0, |at| at + 1);
    let got = &rest[begin..rest.len().min(begin + LEN)];
    assert_same(got, &content[..got.len()], "what came");
    come_back(pages).await;
    nothing_is_lent().await;
}

/// One frame, then an error.
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

/// What was begun and not ended stands in the way of nothing, and keeps nothing.
#[test]
fn other_bytes_after_a_blocked_write_are_sent_as_they_are() {
    let test = "delivery_pages_cut::other_bytes_after_a_blocked_write_are_sent_as_they_are";
    in_own_process(test, &[], || {
        runtime().block_on(async {
            for (mechanisms, frozen) in [
                (RETURNING[0], Frozen::Once),
                (RETURNING[1], Frozen::Once),
                (&[], Frozen::ForGood),
                (&[Mechanism::Vmsplice], Frozen::Once),
            ] {
                replace_midway(mechanisms, frozen).await;
            }
        });
    });
}

async fn replace_midway(mechanisms: &[Mechanism], frozen: Frozen) {
    let files = Files::of(&[300_000]);
    let file = uncopied::arena::FileMapping::new(
        Arc::new(std::fs::File::open(files.path(0)).unwrap()),
        0..300_000,
    );
    let file = file.unwrap().bytes();
    let (content, other) = (bytes_of(8 << 20, 5), bytes_of(2 << 20, 6));
    let (pages, others) = (pages_of(&content, frozen), pages_of(&other, frozen));
    let (mut stream, mut theirs) =
        stream_pair(Options::default().force_mechanisms(mechanisms)).await;
    let mut at = 0;
    // Until the window is shut.
    let pause = Duration::from_millis(100);
    while let Ok(written) = tokio::time::timeout(pause, stream.write(&pages[at..])).await {
        at += written.unwrap();
        assert!(at < pages.len(), "no peer reads");
    }
    let mut expected = content[..at].to_vec();
    for piece in [
        &others[100_000..],
        b"plain",
        &pages[at + 1..at + 100_000],
        &file[7..],
        &pages[at..at + 500_000],
        &others[4096..90_000],
        // As the pipe had it, long ago.
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
    let got = soon(reading).await.unwrap();
    assert_same(&got, &expected, &format!("{mechanisms:?} {frozen:?}"));
    if frozen == Frozen::Once && mechanisms != [Mechanism::Vmsplice] {
        come_back(pages).await;
        come_back(others).await;
    }
    nothing_is_lent().await;
}

/// The app has let go of the pages and fills new buffers, of the same addresses as like as not, while what
/// it answered is still on its way.
#[tokio::test]
async fn a_client_that_reads_late_gets_what_was_answered() {
    const LATE: usize = 256 << 10;
    let rows: [(&[Mechanism], Frozen); 5] = [
        (&[], Frozen::Once),
        (&[], Frozen::ForGood),
        (&[Mechanism::Vmsplice], Frozen::Once),
        (&[Mechanism::SendZc, Mechanism::Copy], Frozen::Once),
        (&[Mechanism::Copy], Frozen::ForGood),
    ];
    for (mechanisms, frozen) in rows {
        let mut seed = 0;
        for round in 0..12 {
            let totals = Arc::new(Totals::default());
            let options = Options::default()
                .force_mechanisms(mechanisms)
                .totals(Arc::clone(&totals));
            let (stream, theirs) = stream_pair(options).await;
            // All of it fits, once the peer's window is open as well.
            SockRef::from(&stream)
                .set_send_buffer_size(4 << 20)
                .unwrap();
            let content = bytes_of(LATE, round);
            let body = Arc::new(Mutex::new(Some(pages_of(&content, frozen))));
            let serving = tokio::spawn(serve_http1(stream, move |_: &http::request::Parts| {
                let pages = body.lock().unwrap().take();
                uncopied_http::FileBody::from_bytes(pages.map(Bytes::from).unwrap_or_default())
            }));
            let mut client = Client {
                io: BufReader::with_capacity(1000, Box::new(theirs)),
            };
            client.request("/").await;
            let mut got = Vec::new();
            let head = soon(client.head()).await.unwrap();
            assert_eq!(crate::delivery_rig::content_length(&head), LATE);
            while got.len() < LATE {
                let poison = std::iter::repeat_with(|| {
                    seed += 1;
                    let mut buffer = PageBuffer::zeroed(LATE).unwrap();
                    buffer.fill(seed as u8);
                    buffer.freeze()
                });
                let poison: Vec<_> = poison.take(4).collect();
                let mut some = vec![0; 40_000.min(LATE - got.len())];
                soon(client.io.read_exact(&mut some)).await.unwrap();
                got.extend(some);
                drop(poison);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert_same(&got, &content, &format!("{mechanisms:?} {frozen:?}"));
            serving.abort();
        }
    }
}

#[tokio::test]
async fn an_idle_connection_and_a_stalled_one_do_not_spin() {
    for (mechanisms, frozen) in [
        (RETURNING[0], Frozen::Once),
        (RETURNING[1], Frozen::Once),
        (&[], Frozen::ForGood),
    ] {
        let contents = [bytes_of(100_000, 1), bytes_of(8 << 20, 2)];
        let bodies = contents
            .each_ref()
            .map(|it| Bytes::from(pages_of(it, frozen)));
        let options = Options::default().force_mechanisms(mechanisms);
        let (mut client, _, polls) = connection_to(options, answer(bodies.to_vec())).await;
        for _ in 0..3 {
            soon(client.get("/0")).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        let idle = polls_in(&polls, Duration::from_millis(300)).await;
        assert_eq!(idle, 0, "{mechanisms:?} {frozen:?}, idle");

        client.request("/1").await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let stalled = polls_in(&polls, Duration::from_millis(300)).await;
        assert!(
            stalled <= 1,
            "{mechanisms:?} {frozen:?}, stalled: {stalled}"
        );
        let body = soon(client.response()).await.unwrap();
        assert_same(&body, &contents[1], "the body");
    }
}

#[tokio::test]
async fn a_peer_that_is_gone_is_an_error_and_no_signal() {
    for mechanism in Mechanism::MEMORY_TO_SOCKET {
        let pages = pages_of(&bytes_of(8 << 20, 1), Frozen::ForGood);
        let options = Options::default().force_mechanisms(&[mechanism, Mechanism::Copy]);
        let (mut stream, theirs) = stream_pair(options).await;
        drop(theirs);
        let error = soon(stream.write_all(&pages)).await.unwrap_err();
        let kinds = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
        assert!(kinds.contains(&error.kind()), "{mechanism}: {error}");
        let error = soon(stream.write_vectored(&[IoSlice::new(b"more")])).await;
        assert!(kinds.contains(&error.unwrap_err().kind()), "{mechanism}");
    }
}
