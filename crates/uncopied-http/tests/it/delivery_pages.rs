//! Bodies made of pages of the arena: they arrive byte for byte, by the mechanism that the totals name.

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
use uncopied::Mechanism;
use uncopied::arena::{PageBuffer, Pages};
use uncopied_http::{FileBody, Listener, Options, Part, Totals};

use crate::delivery_cut::{ask_for_gzip, gunzip, unchunk, wordy};
use crate::delivery_rig::{
    Client, Files, Net, Plan, Random, Server, Stack, assert_same, bytes_of, in_own_process,
    runtime, soon, stream_pair,
};

const K: usize = 1 << 10;

/// Around every boundary that the path of the bytes has.
const SIZES: [usize; 19] = [
    0,
    1,
    4 * K - 1,
    4 * K,
    4 * K + 1,
    16 * K,
    32 * K - 1,
    32 * K,
    32 * K + 1,
    64 * K - 1,
    64 * K,
    64 * K + 1,
    K * K - 1,
    K * K + 1,
    2 * K * K,
    2 * K * K + 1,
    4 * K * K,
    5 * K * K + 17,
    8 * K * K,
];

/// What the plan asks of a slice that goes by `vmsplice`: so many bytes, frozen for good.
const SPLICED: usize = 64 * K;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frozen {
    Once,
    ForGood,
}

pub(crate) fn pages_of(content: &[u8], frozen: Frozen) -> Pages {
    let buffer = PageBuffer::copy_from_slice(content).unwrap();
    match frozen {
        Frozen::Once => buffer.freeze(),
        Frozen::ForGood => buffer.freeze_permanently(),
    }
}

/// Answers `/N` with the Nth body.
pub(crate) fn answer(bodies: Vec<Bytes>) -> impl Fn(&http::request::Parts) -> FileBody + Clone {
    move |parts| {
        let at: usize = parts.uri.path()[1..].parse().unwrap();
        FileBody::from_bytes(bodies[at].clone())
    }
}

fn all_sizes(frozen: Frozen) -> (Vec<Vec<u8>>, Vec<Bytes>) {
    let contents = SIZES.iter().zip(0..).map(|(&len, at)| bytes_of(len, at));
    let contents: Vec<_> = contents.collect();
    let bodies = contents.iter().map(|content| pages_of(content, frozen));
    let bodies = bodies.map(Bytes::from).collect();
    (contents, bodies)
}

/// Everything that was sent is in one of the two.
fn assert_totals(totals: &Totals, vmsplice: usize, bodies: usize, heads: usize, what: &str) {
    assert_eq!(totals.bytes(Mechanism::Vmsplice), vmsplice as u64, "{what}");
    let copied = totals.bytes(Mechanism::Copy) as usize;
    let least = bodies - vmsplice;
    assert!(
        (least..least + heads * 200).contains(&copied),
        "{what}: {copied} bytes copied, not {least} and the heads"
    );
    for mechanism in [Mechanism::Sendfile, Mechanism::Splice, Mechanism::MmapWrite] {
        assert_eq!(totals.bytes(mechanism), 0, "{what}: {mechanism}");
    }
    assert_eq!(totals.bytes(Mechanism::MsgZerocopy), 0, "{what}");
    assert_eq!(totals.kernel_copied(), 0, "nothing was lent: {what}");
}

async fn every_size(stack: Stack, net: Net, buffers: Option<usize>) {
    for frozen in [Frozen::Once, Frozen::ForGood] {
        let (contents, bodies) = all_sizes(frozen);
        let plan = Plan {
            stack,
            net,
            buffers,
            ..Plan::default()
        };
        let server = Server::start(&plan, answer(bodies));
        let mut client = server.connect().await;
        let what = format!("{stack:?} {net:?} {frozen:?}");
        for (at, content) in contents.iter().enumerate() {
            let body = soon(client.get(&format!("/{at}"))).await;
            assert_same(&body, content, &format!("{what} {at}"));
        }
        if stack == Stack::Foreign {
            continue;
        }
        let spliced = |len: &&usize| frozen == Frozen::ForGood && **len >= SPLICED;
        let spliced = SIZES.iter().filter(spliced).sum();
        let whole = SIZES.iter().sum();
        assert_totals(&server.totals, spliced, whole, SIZES.len(), &what);
    }
}

#[tokio::test]
async fn every_size_under_hyper() {
    every_size(Stack::Http1, Net::Tcp, None).await;
}

#[tokio::test]
async fn every_size_through_small_buffers() {
    every_size(Stack::Http1, Net::Tcp, Some(30_000)).await;
}

#[tokio::test]
async fn every_size_under_hyper_over_unix() {
    every_size(Stack::Http1, Net::Unix, None).await;
}

#[tokio::test]
async fn every_size_under_hyper_util() {
    every_size(Stack::Auto, Net::Tcp, None).await;
}

#[tokio::test]
async fn every_size_under_axum() {
    every_size(Stack::Axum, Net::Tcp, None).await;
}

#[tokio::test]
async fn every_size_behind_tokios_own_stream() {
    every_size(Stack::Foreign, Net::Tcp, None).await;
}

const LARGE: usize = 8 << 20;

/// A listener with totals of its own, and its address.
fn listener() -> (Listener, Arc<Totals>, String) {
    let totals = Arc::new(Totals::default());
    let options = Options::default().totals(Arc::clone(&totals));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let listener = Listener::from_tcp(listener, options).unwrap();
    (listener, totals, address)
}

async fn client(address: &str) -> Client {
    let socket = tokio::net::TcpStream::connect(address).await.unwrap();
    Client {
        io: tokio::io::BufReader::new(Box::new(socket)),
    }
}

/// Nothing of ours but the listener and the bytes.
#[tokio::test]
async fn the_body_of_an_axum_handler() {
    let content = bytes_of(LARGE, 3);
    let pages = Bytes::from(pages_of(&content, Frozen::ForGood));
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
        let body = soon(client.get(path)).await;
        assert_same(&body, &content, path);
    }
    assert_totals(&totals, 3 * LARGE, 3 * LARGE, 3, "axum");
}

#[tokio::test]
async fn the_body_of_a_hyper_service() {
    let content = bytes_of(LARGE, 4);
    let pages = Bytes::from(pages_of(&content, Frozen::ForGood));
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
        let body = soon(client.get("/")).await;
        assert_same(&body, &content, "hyper");
    }
    assert_totals(&totals, 2 * LARGE, 2 * LARGE, 2, "hyper");
}

#[tokio::test]
async fn every_forced_list() {
    use Mechanism::{Copy, MsgZerocopy, SendZc, Sendfile, Vmsplice};
    let content = bytes_of(5_000_017, 1);
    let rows: [(&[Mechanism], Frozen, &[Mechanism]); 9] = [
        (&[Vmsplice, Copy], Frozen::Once, &[Vmsplice]),
        (&[Vmsplice], Frozen::ForGood, &[Vmsplice]),
        // Where no ring is to be had it steps down.
        (&[SendZc, Copy], Frozen::Once, &[SendZc, Copy]),
        (&[Copy], Frozen::ForGood, &[Copy]),
        (&[Sendfile, Copy], Frozen::ForGood, &[Copy]),
        // There are none for memory: the plan's.
        (&[Sendfile], Frozen::ForGood, &[Vmsplice]),
        (&[Sendfile], Frozen::Once, &[Copy]),
        // Never on tokio.
        (&[MsgZerocopy, Copy], Frozen::ForGood, &[Copy]),
        (&[MsgZerocopy], Frozen::ForGood, &[Vmsplice]),
    ];
    for (mechanisms, frozen, by) in rows {
        for buffers in [None, Some(30_000)] {
            let plan = Plan {
                mechanisms,
                buffers,
                ..Plan::default()
            };
            let body = Bytes::from(pages_of(&content, frozen));
            let server = Server::start(&plan, answer(vec![body]));
            let mut client = server.connect().await;
            let what = format!("{mechanisms:?} {frozen:?} {buffers:?}");
            for _ in 0..2 {
                let body = soon(client.get("/0")).await;
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

/// A list for memory leaves files as they were.
#[tokio::test]
async fn a_list_for_memory_is_none_for_files() {
    let files = Files::of(&[300_000]);
    let answering = Arc::clone(&files);
    let plan = Plan {
        mechanisms: &[Mechanism::Vmsplice],
        ..Plan::default()
    };
    let server = Server::start(&plan, move |parts| answering.answer(parts));
    let body = soon(server.connect().await.get("/0/direct")).await;
    assert_same(&body, &files.contents[0], "the file");
    assert_eq!(server.totals.bytes(Mechanism::Sendfile), 300_000);
}

#[tokio::test]
async fn files_and_pages_in_turn_on_one_connection() {
    let files = Files::of(&[200_000, 3_000_000]);
    for frozen in [Frozen::Once, Frozen::ForGood] {
        for buffers in [None, Some(30_000)] {
            let contents = [bytes_of(100_000, 7), bytes_of(2_000_003, 8)];
            let bodies = contents
                .each_ref()
                .map(|it| Bytes::from(pages_of(it, frozen)));
            let answering = Arc::clone(&files);
            let plan = Plan {
                buffers,
                ..Plan::default()
            };
            let server = Server::start(&plan, move |parts| {
                match parts.uri.path().strip_prefix("/pages/") {
                    Some(at) => FileBody::from_bytes(bodies[at.parse::<usize>().unwrap()].clone()),
                    None => answering.answer(parts),
                }
            });
            let mut client = server.connect().await;
            for round in 0..6 {
                let at = round % 2;
                let body = soon(client.get(&format!("/{at}/direct"))).await;
                assert_same(&body, &files.contents[at], "the file");
                let body = soon(client.get(&format!("/pages/{}", round / 3))).await;
                assert_same(&body, &contents[round / 3], "the pages");
            }
            let whole = 3 * (contents[0].len() + contents[1].len()) as u64;
            let spliced = server.totals.bytes(Mechanism::Vmsplice);
            assert_eq!(spliced, if frozen == Frozen::ForGood { whole } else { 0 });
            assert_eq!(server.totals.bytes(Mechanism::Sendfile), 3 * 3_200_000);
        }
    }
}

/// Files, pages of both kinds, small and large, and other memory, in one body.
#[tokio::test]
async fn bodies_of_many_parts() {
    let files = Files::of(&[300 * K]);
    let mut random = Random(21);
    let sources = [Frozen::Once, Frozen::ForGood].map(|frozen| {
        let content = bytes_of(700 * K, frozen as u64);
        Bytes::from(pages_of(&content, frozen))
    });
    let (mut parts, mut expected) = (Vec::new(), Vec::new());
    for round in 0..60 {
        let source = &sources[random.below(2)];
        let most = [100, 5000, 40 * K, 400 * K][random.below(4)];
        // Now and then at the start of a page.
        let start = random.below(300 * K) / [1, 4 * K][round % 2] * [1, 4 * K][round % 2];
        let slice = source.slice(start..start + random.below(most));
        expected.extend_from_slice(&slice);
        parts.push(Part::Memory(slice));
        if round % 5 == 0 {
            let start = random.below(200 * K);
            let range = start as u64..(start + 90 * K) as u64;
            expected.extend_from_slice(&files.contents[0][start..start + 90 * K]);
            parts.push(Part::File(Arc::clone(&files.open[0]), range));
        }
        let memory = bytes_of(random.below(90), round as u64);
        expected.extend_from_slice(&memory);
        parts.push(Part::Memory(memory.into()));
    }
    for stack in [Stack::Http1, Stack::Axum, Stack::Foreign] {
        for buffers in [None, Some(30_000)] {
            let parts = parts.clone();
            let plan = Plan {
                stack,
                buffers,
                ..Plan::default()
            };
            let server =
                Server::start(&plan, move |_| FileBody::from_parts(parts.clone()).direct());
            let mut client = server.connect().await;
            for _ in 0..2 {
                let body = soon(client.get("/")).await;
                assert_same(&body, &expected, &format!("{stack:?} {buffers:?}"));
            }
            let spliced = server.totals.bytes(Mechanism::Vmsplice);
            assert_eq!(spliced > 0, stack != Stack::Foreign, "{stack:?}");
        }
    }
}

/// Slices that are not worth a call of their own go with what stands next to them: one call for all.
#[tokio::test]
async fn small_slices_leave_together() {
    for frozen in [Frozen::Once, Frozen::ForGood] {
        let content = bytes_of(100_000, 9);
        let pages = pages_of(&content, frozen);
        let totals = Arc::new(Totals::default());
        let (mut stream, mut theirs) =
            stream_pair(Options::default().totals(Arc::clone(&totals))).await;
        let mut slices = vec![IoSlice::new(b"HTTP/1.1 200 OK\r\n\r\n")];
        let pieces: Vec<_> = (0..24)
            .map(|at| pages.slice(at * 4096..at * 4096 + 1000))
            .collect();
        slices.extend(pieces.iter().map(|piece| IoSlice::new(piece)));
        let expected: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
        let written = soon(stream.write_vectored(&slices)).await.unwrap();
        assert_eq!(written, expected.len());
        let mut got = vec![0; written];
        soon(theirs.read_exact(&mut got)).await.unwrap();
        assert_same(&got, &expected, "the slices");
        assert_totals(&totals, 0, written, 1, "small slices");
    }
}

#[tokio::test]
async fn every_size_over_http_2() {
    for frozen in [Frozen::Once, Frozen::ForGood] {
        let (contents, bodies) = all_sizes(frozen);
        let plan = Plan {
            stack: Stack::Auto,
            ..Plan::default()
        };
        let server = Server::start(&plan, answer(bodies));
        let io = TokioIo::new(server.connect().await.io);
        // Frames that are large enough to be sent by themselves, and the usual ones.
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        if frozen == Frozen::ForGood {
            builder.max_frame_size(256 << 10);
        }
        let (mut sender, connection) = builder.handshake(io).await.unwrap();
        tokio::spawn(connection);
        for (at, content) in contents.iter().enumerate() {
            let request = http::Request::get(format!("http://x/{at}"));
            let request = request.body(Empty::<Bytes>::new()).unwrap();
            let answer = soon(sender.send_request(request)).await.unwrap();
            let body = soon(answer.into_body().collect()).await.unwrap().to_bytes();
            assert_same(&body, content, &format!("{frozen:?} {at}"));
        }
    }
}

/// Pages are immutable: whoever likes may read them.
#[tokio::test]
async fn a_compressor_gets_the_right_bytes() {
    let text = wordy(1 << 20);
    for frozen in [Frozen::Once, Frozen::ForGood] {
        let body = Bytes::from(pages_of(&text, frozen));
        let app = axum::Router::new()
            .route("/0", get(|| async { body }))
            .layer(CompressionLayer::new());
        let (listener, totals, address) = listener();
        tokio::spawn(async { axum::serve(listener, app).await.unwrap() });
        let mut client = ask_for_gzip(address.parse().unwrap()).await;
        let mut raw = Vec::new();
        while !raw.ends_with(b"\r\n0\r\n\r\n") {
            assert!(soon(client.io.read_buf(&mut raw)).await.unwrap() > 0);
        }
        let (compressed, is_whole) = unchunk(&raw);
        assert!(is_whole && compressed.len() < 700_000);
        assert_same(&gunzip(compressed), &text, "the text");
        assert_eq!(totals.bytes(Mechanism::Vmsplice), 0);
    }
}

/// The bytes that went by `vmsplice`, and by `copy`.
async fn send_both(mechanisms: &[Mechanism]) -> (u64, u64) {
    let content = bytes_of(3_000_001, 5);
    let bodies = [Frozen::Once, Frozen::ForGood].map(|it| Bytes::from(pages_of(&content, it)));
    let plan = Plan {
        mechanisms,
        ..Plan::default()
    };
    let server = Server::start(&plan, answer(bodies.to_vec()));
    let mut client = server.connect().await;
    for at in 0..2 {
        let body = soon(client.get(&format!("/{at}"))).await;
        assert_same(&body, &content, "the body");
    }
    assert_eq!(server.totals.bytes(Mechanism::SendZc), 0);
    let by = |mechanism| server.totals.bytes(mechanism);
    (by(Mechanism::Vmsplice), by(Mechanism::Copy))
}

#[test]
fn switched_off_and_on() {
    in_own_process("delivery_pages::switched_off_and_on", &[], || {
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
    });
}
