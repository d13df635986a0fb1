//! File bodies arrive byte for byte, and the totals show that the expected mechanism sent them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use uncopied::Mechanism;
use uncopied_http::{BodyPart, FileBody};

use crate::delivery_harness::{
    FIRST_FRAME_BYTES, Files, Rng, ServerConfig, Stack, TestServer, Transport, assert_same,
    open_file, sent_with_sendfile, with_timeout,
};

const KIB: usize = 1 << 10;

/// File sizes around every limit that applies between the file and the socket, such as the maximum
/// lengths of a frame and of a step.
const FILE_SIZES: [usize; 18] = [
    0,
    1,
    4 * KIB - 1,
    4 * KIB,
    4 * KIB + 1,
    8 * KIB + 63,
    8 * KIB + 64,
    16 * KIB - 1,
    16 * KIB,
    16 * KIB + 1,
    64 * KIB - 1,
    64 * KIB,
    64 * KIB + 1,
    2 * KIB * KIB - 1,
    2 * KIB * KIB,
    2 * KIB * KIB + 1,
    4 * KIB * KIB,
    5 * KIB * KIB + 17,
];

/// Returns how many bytes of a file of `len` bytes are not in the first frame of a body in the
/// default mode. [`Stream`](uncopied_http::Stream) sends these from the file.
fn after_first_frame(len: usize) -> usize {
    len.saturating_sub(FIRST_FRAME_BYTES)
}

async fn assert_every_size_arrives(stack: Stack, transport: Transport) {
    let files = Files::of(&FILE_SIZES);
    for mode in ["default", "buffered"] {
        let served = Arc::clone(&files);
        let config = ServerConfig {
            stack,
            transport,
            ..ServerConfig::default()
        };
        let server = TestServer::start(&config, move |parts| served.body_for(parts));
        let mut client = server.connect().await;
        let mut expected = 0;
        for (at, content) in files.contents.iter().enumerate() {
            let body = with_timeout(client.get(&format!("/{at}/{mode}"))).await;
            assert_same(
                &body,
                content,
                &format!("{stack:?} {transport:?} {mode} {at}"),
            );
            expected += match mode {
                "default" => sent_with_sendfile(content.len()),
                _ => 0,
            };
        }
        let sent = server.totals.bytes(Mechanism::Sendfile);
        assert_eq!(sent, expected as u64, "{stack:?} {transport:?} {mode}");
        let whole: usize = FILE_SIZES.iter().sum();
        let copied = server.totals.bytes(Mechanism::Copy) as usize;
        assert!(
            copied > whole - expected && copied < whole - expected + FILE_SIZES.len() * 200,
            "{mode}: {copied} bytes were copied; expected the heads and the bytes that were read"
        );
    }
}

#[tokio::test]
async fn every_size_arrives_under_hyper_over_tcp() {
    assert_every_size_arrives(Stack::Http1, Transport::Tcp).await;
}

#[tokio::test]
async fn every_size_arrives_under_hyper_over_unix() {
    assert_every_size_arrives(Stack::Http1, Transport::Unix).await;
}

#[tokio::test]
async fn every_size_arrives_under_hyper_util_over_tcp() {
    assert_every_size_arrives(Stack::Auto, Transport::Tcp).await;
}

#[tokio::test]
async fn every_size_arrives_under_hyper_util_over_unix() {
    assert_every_size_arrives(Stack::Auto, Transport::Unix).await;
}

#[tokio::test]
async fn every_size_arrives_under_axum_over_tcp() {
    assert_every_size_arrives(Stack::Axum, Transport::Tcp).await;
}

#[tokio::test]
async fn every_size_arrives_under_axum_over_unix() {
    assert_every_size_arrives(Stack::Axum, Transport::Unix).await;
}

#[tokio::test]
async fn every_size_arrives_behind_tokios_own_stream() {
    let files = Files::of(&FILE_SIZES);
    let served = Arc::clone(&files);
    let config = ServerConfig {
        stack: Stack::Foreign,
        ..ServerConfig::default()
    };
    let server = TestServer::start(&config, move |parts| served.body_for(parts));
    let mut client = server.connect().await;
    for mode in ["default", "buffered"] {
        for (at, content) in files.contents.iter().enumerate() {
            let body = with_timeout(client.get(&format!("/{at}/{mode}"))).await;
            assert_same(&body, content, &format!("{mode} {at}"));
        }
    }
}

#[tokio::test]
async fn every_forced_mechanism_sends_the_bytes() {
    let files = Files::of(&FILE_SIZES);
    for transport in [Transport::Tcp, Transport::Unix] {
        for mechanism in Mechanism::FILE_TO_SOCKET {
            let served = Arc::clone(&files);
            let config = ServerConfig {
                transport,
                mechanisms: &[mechanism, Mechanism::Copy],
                ..ServerConfig::default()
            };
            let server = TestServer::start(&config, move |parts| served.body_for(parts));
            let mut client = server.connect().await;
            for (at, content) in files.contents.iter().enumerate() {
                let body = with_timeout(client.get(&format!("/{at}"))).await;
                assert_same(&body, content, &format!("{mechanism} {transport:?} {at}"));
            }
            let expected = FILE_SIZES.map(after_first_frame).iter().sum::<usize>() as u64;
            for other in Mechanism::FILE_TO_SOCKET {
                let bytes = server.totals.bytes(other);
                match other {
                    Mechanism::Copy => assert!(bytes < 10_000 || mechanism == other),
                    _ if other == mechanism => assert_eq!(bytes, expected, "{mechanism}"),
                    _ => assert_eq!(bytes, 0, "{other} in place of {mechanism}"),
                }
            }
        }
    }
}

#[tokio::test]
async fn odd_ranges_arrive() {
    let files = Files::of(&[3 * KIB * KIB + 333]);
    let len = files.contents[0].len();
    let served = Arc::clone(&files);
    let server = TestServer::start(&ServerConfig::default(), move |parts| {
        served.body_for(parts)
    });
    let mut client = server.connect().await;
    let mut rng = Rng(7);
    for round in 0..150 {
        let start = rng.below(len);
        let most = [3, 5000, 70_000, len][round % 4];
        let end = (start + rng.below(most)).min(len);
        let mode = ["default", "default", "buffered"][round % 3];
        let body = with_timeout(client.get(&format!("/0/{mode}/{start}/{end}"))).await;
        assert_same(
            &body,
            &files.contents[0][start..end],
            &format!("{start}..{end} {mode}"),
        );
    }
    assert!(server.totals.bytes(Mechanism::Sendfile) > 0);
}

/// Files larger than 1 GiB are not mapped as a whole, but in windows of 1 GiB. Ranges that end at,
/// start at or cross the end of a window must arrive.
#[tokio::test]
async fn ranges_across_the_mapping_windows_of_a_large_file_arrive() {
    const MAPPING_WINDOW_BYTES: u64 = 1 << 30;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("sparse");
    let file = File::create(&path).unwrap();
    let len = 2 * MAPPING_WINDOW_BYTES + 12_345;
    file.set_len(len).unwrap();
    let mut near = vec![0; 4 << 20];
    let from = MAPPING_WINDOW_BYTES - (2 << 20);
    let written = crate::delivery_harness::random_bytes(1 << 20, 3);
    near[1_500_000..][..written.len()].copy_from_slice(&written);
    file.write_all_at(&written, from + 1_500_000).unwrap();
    let open = open_file(&path);
    for mechanism in Mechanism::FILE_TO_SOCKET {
        // With a first frame in front of a range, the whole range is sent from a mapping.
        for before in [0, FIRST_FRAME_BYTES as u64] {
            let open = Arc::clone(&open);
            let config = ServerConfig {
                mechanisms: &[mechanism, Mechanism::Copy],
                ..ServerConfig::default()
            };
            let server = TestServer::start(&config, move |parts| {
                let mut words = parts.uri.path()[1..].split('-');
                let mut word = || words.next().unwrap().parse::<u64>().unwrap();
                FileBody::from_file(Arc::clone(&open), word()..word())
            });
            let mut client = server.connect().await;
            for (start, end) in [
                (MAPPING_WINDOW_BYTES - 1, MAPPING_WINDOW_BYTES),
                (MAPPING_WINDOW_BYTES - 1, MAPPING_WINDOW_BYTES + 1),
                (MAPPING_WINDOW_BYTES, MAPPING_WINDOW_BYTES + 1),
                (MAPPING_WINDOW_BYTES - 4097, MAPPING_WINDOW_BYTES + 4097),
                (
                    MAPPING_WINDOW_BYTES - 300_001,
                    MAPPING_WINDOW_BYTES + 70_000,
                ),
                (from + 100, MAPPING_WINDOW_BYTES + (2 << 20)),
            ] {
                let start = start - before;
                let body = with_timeout(client.get(&format!("/{start}-{end}"))).await;
                let expected = &near[(start - from) as usize..(end - from) as usize];
                assert_same(&body, expected, &format!("{mechanism} {start}-{end}"));
            }
            for (start, end) in [
                (2 * MAPPING_WINDOW_BYTES - 5, 2 * MAPPING_WINDOW_BYTES + 5),
                (len - 1, len),
            ] {
                let start = start - before;
                let body = with_timeout(client.get(&format!("/{start}-{end}"))).await;
                assert_eq!(body, vec![0; (end - start) as usize]);
            }
            assert!(server.totals.bytes(mechanism) > 0);
        }
    }
}

/// Sends a body in which bytes in memory alternate with bytes of several files, as in a
/// `multipart/byteranges` response.
#[tokio::test]
async fn bodies_of_many_parts_arrive_in_order() {
    let files = Files::of(&[300 * KIB, 17, 100 * KIB + 1]);
    let mut expected = Vec::new();
    let mut parts = Vec::new();
    let mut rng = Rng(11);
    for round in 0..40 {
        let memory = crate::delivery_harness::random_bytes(rng.below(90), round);
        expected.extend_from_slice(&memory);
        parts.push(BodyPart::Memory(memory.into()));
        let at = rng.below(3);
        let content = &files.contents[at];
        let start = rng.below(content.len());
        let end = start + rng.below(content.len() - start + 1);
        expected.extend_from_slice(&content[start..end]);
        parts.push(BodyPart::File(
            Arc::clone(&files.open[at]),
            start as u64..end as u64,
        ));
    }
    for stack in [Stack::Http1, Stack::Axum, Stack::Foreign] {
        for mode in ["default", "buffered"] {
            let parts = parts.clone();
            let config = ServerConfig {
                stack,
                ..ServerConfig::default()
            };
            let server = TestServer::start(&config, move |_| {
                let body = FileBody::from_parts(parts.clone());
                match mode {
                    "buffered" => body.buffered(),
                    _ => body,
                }
            });
            let mut client = server.connect().await;
            for _ in 0..2 {
                let body = with_timeout(client.get("/")).await;
                assert_same(&body, &expected, &format!("{stack:?} {mode}"));
            }
            let sent = server.totals.bytes(Mechanism::Sendfile) as usize;
            let is_ours = stack != Stack::Foreign;
            if is_ours && mode != "buffered" {
                assert!(sent > expected.len(), "sendfile sent only {sent} bytes");
            } else {
                assert_eq!(sent, 0);
            }
        }
    }
}

#[tokio::test]
async fn every_size_arrives_over_http_2() {
    let files = Files::of(&FILE_SIZES);
    for transport in [Transport::Tcp, Transport::Unix] {
        let served = Arc::clone(&files);
        let config = ServerConfig {
            stack: Stack::Auto,
            transport,
            ..ServerConfig::default()
        };
        let server = TestServer::start(&config, move |parts| served.body_for(parts));
        let io = TokioIo::new(server.connect().await.io);
        let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
            .await
            .unwrap();
        tokio::spawn(connection);
        let mut all = tokio::task::JoinSet::new();
        for mode in ["default", "buffered"] {
            for at in 0..FILE_SIZES.len() {
                let (mut sender, files) = (sender.clone(), Arc::clone(&files));
                all.spawn(async move {
                    let request = http::Request::get(format!("http://x/{at}/{mode}"));
                    let request = request.body(Empty::<Bytes>::new()).unwrap();
                    let response = sender.send_request(request).await.unwrap();
                    assert_eq!(response.version(), http::Version::HTTP_2);
                    let body = response.into_body().collect().await.unwrap().to_bytes();
                    assert_same(
                        &body,
                        &files.contents[at],
                        &format!("{transport:?} {mode} {at}"),
                    );
                });
            }
        }
        while let Some(done) = with_timeout(all.join_next()).await {
            done.unwrap();
        }
    }
}

#[tokio::test]
async fn a_head_request_has_the_length_and_no_body() {
    let files = Files::of(&[100_000]);
    for stack in [Stack::Http1, Stack::Auto, Stack::Axum] {
        let served = Arc::clone(&files);
        let config = ServerConfig {
            stack,
            ..ServerConfig::default()
        };
        let server = TestServer::start(&config, move |parts| served.body_for(parts));
        let mut client = server.connect().await;
        for mode in ["default", "buffered"] {
            use tokio::io::AsyncWriteExt;
            let request = format!("HEAD /0/{mode} HTTP/1.1\r\nhost: x\r\n\r\n");
            client.io.write_all(request.as_bytes()).await.unwrap();
            let head = with_timeout(client.head()).await.unwrap();
            assert_eq!(crate::delivery_harness::content_length(&head), 100_000);
            // The response to HEAD must have no body, so the bytes after its head must belong to
            // the next response.
            let body = with_timeout(client.get(&format!("/0/{mode}"))).await;
            assert_same(&body, &files.contents[0], mode);
        }
    }
}
