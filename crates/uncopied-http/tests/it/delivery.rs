//! Bodies arrive byte for byte, by the mechanism that the totals name.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use uncopied::Mechanism;
use uncopied_http::{FileBody, Part};

use crate::delivery_rig::{Files, Net, Plan, Random, Server, Stack, assert_same, open_file, soon};

const K: usize = 1 << 10;

/// Around every boundary that the path of the bytes has.
const SIZES: [usize; 16] = [
    0,
    1,
    4 * K - 1,
    4 * K,
    4 * K + 1,
    16 * K - 1,
    16 * K,
    16 * K + 1,
    64 * K - 1,
    64 * K,
    64 * K + 1,
    2 * K * K - 1,
    2 * K * K,
    2 * K * K + 1,
    4 * K * K,
    5 * K * K + 17,
];

/// How many bytes of a body are read, and so copied, until it is known that nobody reads them.
const FIRST: usize = 4 * K;

async fn every_size(stack: Stack, net: Net) {
    let files = Files::of(&SIZES);
    for mode in ["default", "direct", "read"] {
        let answering = Arc::clone(&files);
        let plan = Plan {
            stack,
            net,
            ..Plan::default()
        };
        let server = Server::start(&plan, move |parts| answering.answer(parts));
        let mut client = server.connect().await;
        let mut expected = 0;
        for (at, content) in files.contents.iter().enumerate() {
            let body = soon(client.get(&format!("/{at}/{mode}"))).await;
            assert_same(&body, content, &format!("{stack:?} {net:?} {mode} {at}"));
            expected += match mode {
                "direct" => content.len(),
                "default" if stack != Stack::Foreign => content.len().saturating_sub(FIRST),
                _ => 0,
            };
        }
        let sent = server.totals.bytes(Mechanism::Sendfile);
        assert_eq!(sent, expected as u64, "{stack:?} {net:?} {mode}");
        let whole: usize = SIZES.iter().sum();
        let copied = server.totals.bytes(Mechanism::Copy) as usize;
        assert!(
            copied > whole - expected && copied < whole - expected + SIZES.len() * 200,
            "the heads and what was read, {copied} bytes, count as copied: {mode}"
        );
    }
}

#[tokio::test]
async fn every_size_under_hyper_over_tcp() {
    every_size(Stack::Http1, Net::Tcp).await;
}

#[tokio::test]
async fn every_size_under_hyper_over_unix() {
    every_size(Stack::Http1, Net::Unix).await;
}

#[tokio::test]
async fn every_size_under_hyper_util_over_tcp() {
    every_size(Stack::Auto, Net::Tcp).await;
}

#[tokio::test]
async fn every_size_under_hyper_util_over_unix() {
    every_size(Stack::Auto, Net::Unix).await;
}

#[tokio::test]
async fn every_size_under_axum_over_tcp() {
    every_size(Stack::Axum, Net::Tcp).await;
}

#[tokio::test]
async fn every_size_under_axum_over_unix() {
    every_size(Stack::Axum, Net::Unix).await;
}

#[tokio::test]
async fn every_size_behind_tokios_own_stream() {
    let files = Files::of(&SIZES);
    let answering = Arc::clone(&files);
    let plan = Plan {
        stack: Stack::Foreign,
        ..Plan::default()
    };
    let server = Server::start(&plan, move |parts| answering.answer(parts));
    let mut client = server.connect().await;
    for mode in ["default", "direct", "read"] {
        for (at, content) in files.contents.iter().enumerate() {
            let body = soon(client.get(&format!("/{at}/{mode}"))).await;
            assert_same(&body, content, &format!("{mode} {at}"));
        }
    }
}

#[tokio::test]
async fn every_forced_mechanism() {
    let files = Files::of(&SIZES);
    for net in [Net::Tcp, Net::Unix] {
        for mechanism in Mechanism::FILE_TO_SOCKET {
            let answering = Arc::clone(&files);
            let plan = Plan {
                net,
                mechanisms: &[mechanism, Mechanism::Copy],
                ..Plan::default()
            };
            let server = Server::start(&plan, move |parts| answering.answer(parts));
            let mut client = server.connect().await;
            for (at, content) in files.contents.iter().enumerate() {
                let body = soon(client.get(&format!("/{at}/direct"))).await;
                assert_same(&body, content, &format!("{mechanism} {net:?} {at}"));
            }
            let whole = SIZES.iter().sum::<usize>() as u64;
            for other in Mechanism::FILE_TO_SOCKET {
                let bytes = server.totals.bytes(other);
                match other {
                    Mechanism::Copy => assert!(bytes < 10_000 || mechanism == other),
                    _ if other == mechanism => assert_eq!(bytes, whole, "{mechanism}"),
                    _ => assert_eq!(bytes, 0, "{other} in place of {mechanism}"),
                }
            }
        }
    }
}

#[tokio::test]
async fn odd_ranges() {
    let files = Files::of(&[3 * K * K + 333]);
    let len = files.contents[0].len();
    let answering = Arc::clone(&files);
    let server = Server::start(&Plan::default(), move |parts| answering.answer(parts));
    let mut client = server.connect().await;
    let mut random = Random(7);
    for round in 0..150 {
        let start = random.below(len);
        let most = [3, 5000, 70_000, len][round % 4];
        let end = (start + random.below(most)).min(len);
        let mode = ["default", "direct", "read"][round % 3];
        let body = soon(client.get(&format!("/0/{mode}/{start}/{end}"))).await;
        assert_same(
            &body,
            &files.contents[0][start..end],
            &format!("{start}..{end} {mode}"),
        );
    }
    assert!(server.totals.bytes(Mechanism::Sendfile) > 0);
}

/// Files larger than 1 GiB are mapped window by window.
#[tokio::test]
async fn ranges_across_the_windows_of_a_large_file() {
    const WINDOW: u64 = 1 << 30;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("sparse");
    let file = File::create(&path).unwrap();
    let len = 2 * WINDOW + 12_345;
    file.set_len(len).unwrap();
    let mut near = vec![0; 4 << 20];
    let from = WINDOW - (2 << 20);
    let written = crate::delivery_rig::bytes_of(1 << 20, 3);
    near[1_500_000..][..written.len()].copy_from_slice(&written);
    file.write_all_at(&written, from + 1_500_000).unwrap();
    let open = open_file(&path);
    for mechanism in Mechanism::FILE_TO_SOCKET {
        for direct in [true, false] {
            let open = Arc::clone(&open);
            let plan = Plan {
                mechanisms: &[mechanism, Mechanism::Copy],
                ..Plan::default()
            };
            let server = Server::start(&plan, move |parts| {
                let mut words = parts.uri.path()[1..].split('-');
                let mut word = || words.next().unwrap().parse::<u64>().unwrap();
                let body = FileBody::from_file(Arc::clone(&open), word()..word());
                if direct { body.direct() } else { body }
            });
            let mut client = server.connect().await;
            for (start, end) in [
                (WINDOW - 1, WINDOW),
                (WINDOW - 1, WINDOW + 1),
                (WINDOW, WINDOW + 1),
                (WINDOW - 4097, WINDOW + 4097),
                (WINDOW - 300_001, WINDOW + 70_000),
                (from + 1, WINDOW + (2 << 20)),
            ] {
                let body = soon(client.get(&format!("/{start}-{end}"))).await;
                let expected = &near[(start - from) as usize..(end - from) as usize];
                assert_same(&body, expected, &format!("{mechanism} {start}-{end}"));
            }
            for (start, end) in [(2 * WINDOW - 5, 2 * WINDOW + 5), (len - 1, len)] {
                let body = soon(client.get(&format!("/{start}-{end}"))).await;
                assert_eq!(body, vec![0; (end - start) as usize]);
            }
            assert!(server.totals.bytes(mechanism) > 0);
        }
    }
}

/// As multipart/byteranges has them: bytes in memory and of several files in turn.
#[tokio::test]
async fn bodies_of_many_parts() {
    let files = Files::of(&[300 * K, 17, 100 * K + 1]);
    let mut expected = Vec::new();
    let mut parts = Vec::new();
    let mut random = Random(11);
    for round in 0..40 {
        let memory = crate::delivery_rig::bytes_of(random.below(90), round);
        expected.extend_from_slice(&memory);
        parts.push(Part::Memory(memory.into()));
        let at = random.below(3);
        let content = &files.contents[at];
        let start = random.below(content.len());
        let end = start + random.below(content.len() - start + 1);
        expected.extend_from_slice(&content[start..end]);
        parts.push(Part::File(
            Arc::clone(&files.open[at]),
            start as u64..end as u64,
        ));
    }
    for stack in [Stack::Http1, Stack::Axum, Stack::Foreign] {
        for mode in ["default", "direct", "read"] {
            let parts = parts.clone();
            let plan = Plan {
                stack,
                ..Plan::default()
            };
            let server = Server::start(&plan, move |_| {
                let body = FileBody::from_parts(parts.clone());
                match mode {
                    "direct" => body.direct(),
                    "read" => body.read(),
                    _ => body,
                }
            });
            let mut client = server.connect().await;
            for _ in 0..2 {
                let body = soon(client.get("/")).await;
                assert_same(&body, &expected, &format!("{stack:?} {mode}"));
            }
            let sent = server.totals.bytes(Mechanism::Sendfile) as usize;
            let is_ours = stack != Stack::Foreign;
            if is_ours && mode != "read" {
                assert!(sent > expected.len(), "more than half of it: {sent}");
            } else {
                assert_eq!(sent, 0);
            }
        }
    }
}

#[tokio::test]
async fn every_size_over_http_2() {
    let files = Files::of(&SIZES);
    for net in [Net::Tcp, Net::Unix] {
        let answering = Arc::clone(&files);
        let plan = Plan {
            stack: Stack::Auto,
            net,
            ..Plan::default()
        };
        let server = Server::start(&plan, move |parts| answering.answer(parts));
        let io = TokioIo::new(server.connect().await.io);
        let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
            .await
            .unwrap();
        tokio::spawn(connection);
        let mut all = tokio::task::JoinSet::new();
        for mode in ["default", "direct", "read"] {
            for at in 0..SIZES.len() {
                let (mut sender, files) = (sender.clone(), Arc::clone(&files));
                all.spawn(async move {
                    let request = http::Request::get(format!("http://x/{at}/{mode}"));
                    let request = request.body(Empty::<Bytes>::new()).unwrap();
                    let answer = sender.send_request(request).await.unwrap();
                    assert_eq!(answer.version(), http::Version::HTTP_2);
                    let body = answer.into_body().collect().await.unwrap().to_bytes();
                    assert_same(&body, &files.contents[at], &format!("{net:?} {mode} {at}"));
                });
            }
        }
        while let Some(done) = soon(all.join_next()).await {
            done.unwrap();
        }
    }
}

#[tokio::test]
async fn a_head_request_has_the_length_and_no_body() {
    let files = Files::of(&[100_000]);
    for stack in [Stack::Http1, Stack::Auto, Stack::Axum] {
        let answering = Arc::clone(&files);
        let plan = Plan {
            stack,
            ..Plan::default()
        };
        let server = Server::start(&plan, move |parts| answering.answer(parts));
        let mut client = server.connect().await;
        for mode in ["default", "direct", "read"] {
            use tokio::io::AsyncWriteExt;
            let request = format!("HEAD /0/{mode} HTTP/1.1\r\nhost: x\r\n\r\n");
            client.io.write_all(request.as_bytes()).await.unwrap();
            let head = soon(client.head()).await.unwrap();
            assert_eq!(crate::delivery_rig::content_length(&head), 100_000);
            // The next response follows at once.
            let body = soon(client.get(&format!("/0/{mode}"))).await;
            assert_same(&body, &files.contents[0], mode);
        }
    }
}
