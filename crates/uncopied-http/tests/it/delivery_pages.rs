//! Bodies that consist of pages of the arena arrive byte for byte, and the totals show that the
//! expected mechanism sent them.

use std::convert::Infallible;
use std::io::IoSlice;
use std::sync::Arc;

use axum::body::Body;
use axum::routing::get;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower_http::compression::CompressionLayer;
use uncopied::arena::{PageBuffer, Pages};
use uncopied::{Mechanism, Tuning};
use uncopied_http::{BodyPart, FileBody, Listener, StreamOptions, Totals};

use crate::delivery_cut::{compressible_text, gunzip, request_gzip, unchunk};
use crate::delivery_harness::{
    FIRST_FRAME_BYTES, Files, Rng, ServerConfig, Stack, TestClient, TestServer, Transport,
    assert_same, in_own_process, random_bytes, runtime, stream_pair, with_timeout,
};

const KIB: usize = 1 << 10;

/// Body sizes around every limit that applies between the pages and the socket, such as the minimum
/// lengths for a system call of their own and for `vmsplice`.
const BODY_SIZES: [usize; 19] = [
    0,
    1,
    4 * KIB - 1,
    4 * KIB,
    4 * KIB + 1,
    16 * KIB,
    32 * KIB - 1,
    32 * KIB,
    32 * KIB + 1,
    64 * KIB - 1,
    64 * KIB,
    64 * KIB + 1,
    KIB * KIB - 1,
    KIB * KIB + 1,
    2 * KIB * KIB,
    2 * KIB * KIB + 1,
    4 * KIB * KIB,
    5 * KIB * KIB + 17,
    8 * KIB * KIB,
];

/// The minimum length of a slice of permanently frozen pages for which the plan uses `vmsplice`.
const VMSPLICE_MIN_BYTES: usize = 64 * KIB;

/// The way in which pages are frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freeze {
    /// `freeze`: the pages can become a buffer again, and be written to again.
    Reusable,
    /// `freeze_permanently`: the pages are never written to again.
    Permanent,
}

pub(crate) fn pages_of(content: &[u8], freeze: Freeze) -> Pages {
    let buffer = PageBuffer::copy_from_slice(content).unwrap();
    match freeze {
        Freeze::Reusable => buffer.freeze(),
        Freeze::Permanent => buffer.freeze_permanently(),
    }
}

/// Returns a function that responds to requests for `/N` with `bodies[N]`.
pub(crate) fn serve_bodies(
    bodies: Vec<Bytes>,
) -> impl Fn(&http::request::Parts) -> FileBody + Clone {
    move |parts| {
        let at: usize = parts.uri.path()[1..].parse().unwrap();
        FileBody::from_bytes(bodies[at].clone())
    }
}

/// Returns pseudo-random contents, one for each of the [`BODY_SIZES`], and frozen pages with those
/// contents.
fn all_sizes(freeze: Freeze) -> (Vec<Vec<u8>>, Vec<Bytes>) {
    let contents = BODY_SIZES
        .iter()
        .zip(0..)
        .map(|(&len, at)| random_bytes(len, at));
    let contents: Vec<_> = contents.collect();
    let bodies = contents.iter().map(|content| pages_of(content, freeze));
    let bodies = bodies.map(Bytes::from).collect();
    (contents, bodies)
}

/// Asserts that, according to the totals, `vmsplice` is the number of bytes that were sent with
/// that mechanism, and all other bytes were copied. `bodies` is the total length of all bodies, and
/// `heads` is the number of responses.
fn assert_totals(totals: &Totals, vmsplice: usize, bodies: usize, heads: usize, what: &str) {
    assert_eq!(totals.bytes(Mechanism::Vmsplice), vmsplice as u64, "{what}");
    let copied = totals.bytes(Mechanism::Copy) as usize;
    let least = bodies - vmsplice;
    assert!(
        (least..least + heads * 200).contains(&copied),
        "{what}: {copied} bytes copied; expected {least} and the heads"
    );
    for mechanism in [Mechanism::Sendfile, Mechanism::Splice, Mechanism::MmapWrite] {
        assert_eq!(totals.bytes(mechanism), 0, "{what}: {mechanism}");
    }
    assert_eq!(totals.bytes(Mechanism::MsgZerocopy), 0, "{what}");
    assert_eq!(
        totals.kernel_copied(),
        0,
        "no zero-copy sends with notifications: {what}"
    );
}

async fn assert_every_size_arrives(stack: Stack, transport: Transport, buffers: Option<usize>) {
    for freeze in [Freeze::Reusable, Freeze::Permanent] {
        let (contents, bodies) = all_sizes(freeze);
        let config = ServerConfig {
            stack,
            transport,
            buffers,
            ..ServerConfig::default()
        };
        let server = TestServer::start(&config, serve_bodies(bodies));
        let mut client = server.connect().await;
        let what = format!("{stack:?} {transport:?} {freeze:?}");
        for (at, content) in contents.iter().enumerate() {
            let body = with_timeout(client.get(&format!("/{at}"))).await;
            assert_same(&body, content, &format!("{what} {at}"));
        }
        if stack == Stack::Foreign {
            continue;
        }
        let spliced = |len: &&usize| freeze == Freeze::Permanent && **len >= VMSPLICE_MIN_BYTES;
        let spliced = BODY_SIZES.iter().filter(spliced).sum();
        let whole = BODY_SIZES.iter().sum();
        assert_totals(&server.totals, spliced, whole, BODY_SIZES.len(), &what);
    }
}

#[tokio::test]
async fn every_size_arrives_under_hyper() {
    assert_every_size_arrives(Stack::Http1, Transport::Tcp, None).await;
}

#[tokio::test]
async fn every_size_arrives_through_small_buffers() {
    assert_every_size_arrives(Stack::Http1, Transport::Tcp, Some(30_000)).await;
}

#[tokio::test]
async fn every_size_arrives_under_hyper_over_unix() {
    assert_every_size_arrives(Stack::Http1, Transport::Unix, None).await;
}

#[tokio::test]
async fn every_size_arrives_under_hyper_util() {
    assert_every_size_arrives(Stack::Auto, Transport::Tcp, None).await;
}

#[tokio::test]
async fn every_size_arrives_under_axum() {
    assert_every_size_arrives(Stack::Axum, Transport::Tcp, None).await;
}

#[tokio::test]
async fn every_size_arrives_behind_tokios_own_stream() {
    assert_every_size_arrives(Stack::Foreign, Transport::Tcp, None).await;
}

const LARGE_BODY_BYTES: usize = 8 << 20;

/// Returns a listener on an unused port, its totals, and its address.
fn listener() -> (Listener, Arc<Totals>, String) {
    let totals = Arc::new(Totals::default());
    let options = StreamOptions::default().totals(Arc::clone(&totals));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let listener = Listener::from_tcp(listener, options).unwrap();
    (listener, totals, address)
}

async fn client(address: &str) -> TestClient {
    let socket = tokio::net::TcpStream::connect(address).await.unwrap();
    TestClient {
        io: tokio::io::BufReader::new(Box::new(socket)),
    }
}

/// Serves an ordinary axum app, in which only the listener and the bytes of the bodies come from
/// this project.
#[tokio::test]
async fn the_body_of_an_axum_handler_is_spliced() {
    let content = random_bytes(LARGE_BODY_BYTES, 3);
    let pages = Bytes::from(pages_of(&content, Freeze::Permanent));
    let (listener, totals, address) = listener();
    let app = axum::Router::new()
        .route(
            "/bytes",
            get({
                let pages = pages.clone();
                || async { pages }
            }),
        )
        .route("/body", get(|| async { Body::from(pages) }));
    tokio::spawn(async { axum::serve(listener, app).await.unwrap() });
    let mut client = client(&address).await;
    for path in ["/bytes", "/body", "/bytes"] {
        let body = with_timeout(client.get(path)).await;
        assert_same(&body, &content, path);
    }
    assert_totals(
        &totals,
        3 * LARGE_BODY_BYTES,
        3 * LARGE_BODY_BYTES,
        3,
        "axum",
    );
}

#[tokio::test]
async fn the_body_of_a_hyper_service_is_spliced() {
    let content = random_bytes(LARGE_BODY_BYTES, 4);
    let pages = Bytes::from(pages_of(&content, Freeze::Permanent));
    let (listener, totals, address) = listener();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let service = service_fn(move |_| {
            let body = Full::new(pages.clone());
            async { Ok::<_, Infallible>(http::Response::new(body)) }
        });
        let _ = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .await;
    });
    let mut client = client(&address).await;
    for _ in 0..2 {
        let body = with_timeout(client.get("/")).await;
        assert_same(&body, &content, "hyper");
    }
    assert_totals(
        &totals,
        2 * LARGE_BODY_BYTES,
        2 * LARGE_BODY_BYTES,
        2,
        "hyper",
    );
}

#[tokio::test]
async fn every_forced_list_is_respected() {
    use Mechanism::{Copy, MsgZerocopy, SendZc, Sendfile, Vmsplice};
    let content = random_bytes(5_000_017, 1);
    let rows: [(&[Mechanism], Freeze, &[Mechanism]); 9] = [
        (&[Vmsplice, Copy], Freeze::Reusable, &[Vmsplice]),
        (&[Vmsplice], Freeze::Permanent, &[Vmsplice]),
        // If the process cannot create a ring (`io_uring`), `send_zc` falls back to `copy`.
        (&[SendZc, Copy], Freeze::Reusable, &[SendZc, Copy]),
        (&[Copy], Freeze::Permanent, &[Copy]),
        (&[Sendfile, Copy], Freeze::Permanent, &[Copy]),
        // The list contains no mechanism for memory, so the usual plan applies to the pages.
        (&[Sendfile], Freeze::Permanent, &[Vmsplice]),
        (&[Sendfile], Freeze::Reusable, &[Copy]),
        // `msg_zerocopy` is never used on tokio.
        (&[MsgZerocopy, Copy], Freeze::Permanent, &[Copy]),
        (&[MsgZerocopy], Freeze::Permanent, &[Vmsplice]),
    ];
    for (mechanisms, freeze, by) in rows {
        for buffers in [None, Some(30_000)] {
            let config = ServerConfig {
                mechanisms,
                buffers,
                ..ServerConfig::default()
            };
            let body = Bytes::from(pages_of(&content, freeze));
            let server = TestServer::start(&config, serve_bodies(vec![body]));
            let mut client = server.connect().await;
            let what = format!("{mechanisms:?} {freeze:?} {buffers:?}");
            for _ in 0..2 {
                let body = with_timeout(client.get("/0")).await;
                assert_same(&body, &content, &what);
            }
            let sent = by.iter().map(|&it| server.totals.bytes(it)).sum::<u64>() as usize;
            assert!(
                (2 * content.len()..2 * content.len() + 400).contains(&sent),
                "{what}: {sent}"
            );
            assert_eq!(server.totals.bytes(MsgZerocopy), 0);
        }
    }
}

/// If the forced list contains only mechanisms for memory, files must be sent with the usual plan.
#[test]
fn the_tuning_decides_which_pages_are_spliced() {
    const SIZES: [usize; 3] = [33 * KIB, 50 * KIB, 300 * KIB];
    let test = "delivery_pages::the_tuning_decides_which_pages_are_spliced";
    in_own_process(test, &[], || {
        for min_bytes in [
            33 * KIB as u64,
            50 * KIB as u64,
            50 * KIB as u64 + 1,
            Tuning::NEVER,
        ] {
            let tuning = Tuning::default().with("vmsplice_min_bytes", min_bytes);
            tuning.unwrap().set();
            let contents = SIZES.map(|len| random_bytes(len, len as u64));
            let bodies = contents.iter().map(|it| pages_of(it, Freeze::Permanent));
            let bodies: Vec<_> = bodies.map(Bytes::from).collect();
            let totals = runtime().block_on(async {
                let server = TestServer::start(&ServerConfig::default(), serve_bodies(bodies));
                let mut client = server.connect().await;
                for (at, content) in contents.iter().enumerate() {
                    let body = with_timeout(client.get(&format!("/{at}"))).await;
                    assert_same(&body, content, &format!("{min_bytes} {at}"));
                }
                Arc::clone(&server.totals)
            });
            let spliced = SIZES.iter().filter(|len| **len as u64 >= min_bytes).sum();
            let what = min_bytes.to_string();
            assert_totals(&totals, spliced, SIZES.iter().sum(), SIZES.len(), &what);
        }
    });
}

#[tokio::test]
async fn a_forced_list_for_memory_does_not_affect_files() {
    let files = Files::of(&[300_000]);
    let served = Arc::clone(&files);
    let config = ServerConfig {
        mechanisms: &[Mechanism::Vmsplice],
        ..ServerConfig::default()
    };
    let server = TestServer::start(&config, move |parts| served.body_for(parts));
    let body = with_timeout(server.connect().await.get("/0")).await;
    assert_same(&body, &files.contents[0], "the file");
    let sent = server.totals.bytes(Mechanism::Sendfile);
    assert_eq!(sent, 300_000 - FIRST_FRAME_BYTES as u64);
}

#[tokio::test]
async fn files_and_pages_alternate_on_one_connection() {
    let files = Files::of(&[200_000, 3_000_000]);
    for freeze in [Freeze::Reusable, Freeze::Permanent] {
        for buffers in [None, Some(30_000)] {
            let contents = [random_bytes(100_000, 7), random_bytes(2_000_003, 8)];
            let bodies = contents
                .each_ref()
                .map(|it| Bytes::from(pages_of(it, freeze)));
            let served = Arc::clone(&files);
            let config = ServerConfig {
                buffers,
                ..ServerConfig::default()
            };
            let server = TestServer::start(&config, move |parts| {
                match parts.uri.path().strip_prefix("/pages/") {
                    Some(at) => FileBody::from_bytes(bodies[at.parse::<usize>().unwrap()].clone()),
                    None => served.body_for(parts),
                }
            });
            let mut client = server.connect().await;
            for round in 0..6 {
                let at = round % 2;
                let body = with_timeout(client.get(&format!("/{at}"))).await;
                assert_same(&body, &files.contents[at], "the file");
                let body = with_timeout(client.get(&format!("/pages/{}", round / 3))).await;
                assert_same(&body, &contents[round / 3], "the pages");
            }
            let whole = 3 * (contents[0].len() + contents[1].len()) as u64;
            let spliced = server.totals.bytes(Mechanism::Vmsplice);
            assert_eq!(
                spliced,
                if freeze == Freeze::Permanent {
                    whole
                } else {
                    0
                }
            );
            let sent = server.totals.bytes(Mechanism::Sendfile);
            assert_eq!(sent, 3 * 3_200_000 - 6 * FIRST_FRAME_BYTES as u64);
        }
    }
}

/// Sends a body in which files, small and large slices of reusable and of permanent pages, and
/// other memory alternate.
#[tokio::test]
async fn bodies_of_many_parts_arrive_in_order() {
    let files = Files::of(&[300 * KIB]);
    let mut rng = Rng(21);
    let sources = [Freeze::Reusable, Freeze::Permanent].map(|freeze| {
        let content = random_bytes(700 * KIB, freeze as u64);
        Bytes::from(pages_of(&content, freeze))
    });
    let (mut parts, mut expected) = (Vec::new(), Vec::new());
    for round in 0..60 {
        let source = &sources[rng.below(2)];
        let most = [100, 5000, 40 * KIB, 400 * KIB][rng.below(4)];
        // In every other round, let the slice begin at the start of a page.
        let start = rng.below(300 * KIB) / [1, 4 * KIB][round % 2] * [1, 4 * KIB][round % 2];
        let slice = source.slice(start..start + rng.below(most));
        expected.extend_from_slice(&slice);
        parts.push(BodyPart::Memory(slice));
        if round % 5 == 0 {
            let start = rng.below(200 * KIB);
            let range = start as u64..(start + 90 * KIB) as u64;
            expected.extend_from_slice(&files.contents[0][start..start + 90 * KIB]);
            parts.push(BodyPart::File(Arc::clone(&files.open[0]), range));
        }
        let memory = random_bytes(rng.below(90), round as u64);
        expected.extend_from_slice(&memory);
        parts.push(BodyPart::Memory(memory.into()));
    }
    for stack in [Stack::Http1, Stack::Axum, Stack::Foreign] {
        for buffers in [None, Some(30_000)] {
            let parts = parts.clone();
            let config = ServerConfig {
                stack,
                buffers,
                ..ServerConfig::default()
            };
            let server = TestServer::start(&config, move |_| FileBody::from_parts(parts.clone()));
            let mut client = server.connect().await;
            for _ in 0..2 {
                let body = with_timeout(client.get("/")).await;
                assert_same(&body, &expected, &format!("{stack:?} {buffers:?}"));
            }
            let spliced = server.totals.bytes(Mechanism::Vmsplice);
            assert_eq!(spliced > 0, stack != Stack::Foreign, "{stack:?}");
        }
    }
}

/// Slices of pages that are too short for a system call of their own must be written in one call,
/// together with the slices before and after them.
#[tokio::test]
async fn small_slices_are_written_together() {
    for freeze in [Freeze::Reusable, Freeze::Permanent] {
        let content = random_bytes(100_000, 9);
        let pages = pages_of(&content, freeze);
        let totals = Arc::new(Totals::default());
        let (mut stream, mut theirs) =
            stream_pair(StreamOptions::default().totals(Arc::clone(&totals))).await;
        let mut slices = vec![IoSlice::new(b"HTTP/1.1 200 OK\r\n\r\n")];
        let pieces: Vec<_> = (0..24)
            .map(|at| pages.slice(at * 4096..at * 4096 + 1000))
            .collect();
        slices.extend(pieces.iter().map(|piece| IoSlice::new(piece)));
        let expected: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
        let written = with_timeout(stream.write_vectored(&slices)).await.unwrap();
        assert_eq!(written, expected.len());
        let mut got = vec![0; written];
        with_timeout(theirs.read_exact(&mut got)).await.unwrap();
        assert_same(&got, &expected, "the slices");
        assert_totals(&totals, 0, written, 1, "small slices");
    }
}

#[tokio::test]
async fn every_size_arrives_over_http_2() {
    for freeze in [Freeze::Reusable, Freeze::Permanent] {
        let (contents, bodies) = all_sizes(freeze);
        let config = ServerConfig {
            stack: Stack::Auto,
            ..ServerConfig::default()
        };
        let server = TestServer::start(&config, serve_bodies(bodies));
        let io = TokioIo::new(server.connect().await.io);
        // Cover short and long frames. By default, HTTP/2 frames are too short for a system call of
        // their own. With permanent pages, let the server send frames that are long enough.
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        if freeze == Freeze::Permanent {
            builder.max_frame_size(256 << 10);
        }
        let (mut sender, connection) = builder.handshake(io).await.unwrap();
        tokio::spawn(connection);
        for (at, content) in contents.iter().enumerate() {
            let request = http::Request::get(format!("http://x/{at}"));
            let request = request.body(Empty::<Bytes>::new()).unwrap();
            let response = with_timeout(sender.send_request(request)).await.unwrap();
            let body = with_timeout(response.into_body().collect())
                .await
                .unwrap()
                .to_bytes();
            assert_same(&body, content, &format!("{freeze:?} {at}"));
        }
    }
}

/// A layer such as a compressor can safely read frozen pages, because nothing can change them while
/// a handle exists. The layer must get the right bytes.
#[tokio::test]
async fn a_compressor_gets_the_right_bytes() {
    let text = compressible_text(1 << 20);
    for freeze in [Freeze::Reusable, Freeze::Permanent] {
        let body = Bytes::from(pages_of(&text, freeze));
        let app = axum::Router::new()
            .route("/0", get(|| async { body }))
            .layer(CompressionLayer::new());
        let (listener, totals, address) = listener();
        tokio::spawn(async { axum::serve(listener, app).await.unwrap() });
        let mut client = request_gzip(address.parse().unwrap()).await;
        let mut raw = Vec::new();
        while !raw.ends_with(b"\r\n0\r\n\r\n") {
            assert!(with_timeout(client.io.read_buf(&mut raw)).await.unwrap() > 0);
        }
        let (compressed, is_whole) = unchunk(&raw);
        assert!(is_whole && compressed.len() < 700_000);
        assert_same(&gunzip(compressed), &text, "the text");
        assert_eq!(totals.bytes(Mechanism::Vmsplice), 0);
    }
}

/// Sends a body of reusable pages and one of permanent pages. Returns how many bytes were sent with
/// `vmsplice`, and how many with `copy`.
async fn send_both(mechanisms: &[Mechanism]) -> (u64, u64) {
    let content = random_bytes(3_000_001, 5);
    let bodies =
        [Freeze::Reusable, Freeze::Permanent].map(|it| Bytes::from(pages_of(&content, it)));
    let config = ServerConfig {
        mechanisms,
        ..ServerConfig::default()
    };
    let server = TestServer::start(&config, serve_bodies(bodies.to_vec()));
    let mut client = server.connect().await;
    for at in 0..2 {
        let body = with_timeout(client.get(&format!("/{at}"))).await;
        assert_same(&body, &content, "the body");
    }
    assert_eq!(server.totals.bytes(Mechanism::SendZc), 0);
    let by = |mechanism| server.totals.bytes(mechanism);
    (by(Mechanism::Vmsplice), by(Mechanism::Copy))
}

#[test]
fn zero_copy_can_be_switched_off_and_on() {
    in_own_process(
        "delivery_pages::zero_copy_can_be_switched_off_and_on",
        &[],
        || {
            let on = runtime().block_on(send_both(&[]));
            assert_eq!(on.0, 3_000_001);
            uncopied::set_zero_copy_send(false);
            for forced in [&[][..], &[Mechanism::Vmsplice], &[Mechanism::SendZc]] {
                let (vmsplice, copied) = runtime().block_on(send_both(forced));
                assert_eq!(vmsplice, 0, "{forced:?}");
                assert!((6_000_002..6_000_402).contains(&copied), "{copied}");
            }
            uncopied::set_zero_copy_send(true);
            assert_eq!(runtime().block_on(send_both(&[])), on);
        },
    );
}
