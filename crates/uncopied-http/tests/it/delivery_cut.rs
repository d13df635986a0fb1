//! Files whose length changes while they are sent. A client must not get more bytes than promised,
//! or bytes of another response inside a body, and an incomplete body must not end as if it were
//! complete.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower_http::compression::CompressionLayer;
use uncopied::Mechanism;
use uncopied_http::{FileBody, Listener, StreamOptions};

use crate::delivery_harness::{
    FIRST_FRAME_BYTES, Files, ServerConfig, Stack, TestClient, TestServer, Transport, assert_same,
    content_length, in_own_process, runtime, with_timeout,
};

const FILE_BYTES: usize = 6 << 20;

/// Returns pairs of a body mode and a forced mechanism. Together, the pairs cover every way in
/// which the bytes of a body can reach the socket.
fn modes_and_mechanisms() -> impl Iterator<Item = (&'static str, Mechanism)> {
    let forced = Mechanism::FILE_TO_SOCKET.map(|mechanism| ("default", mechanism));
    forced
        .into_iter()
        .chain([("buffered", Mechanism::Sendfile)])
}

fn server(
    files: &Arc<Files>,
    mechanism: Mechanism,
    transport: Transport,
    stack: Stack,
) -> TestServer {
    let served = Arc::clone(files);
    let config = ServerConfig {
        stack,
        transport,
        mechanisms: &[mechanism, Mechanism::Copy],
        buffers: Some(32 << 10),
    };
    TestServer::start(&config, move |parts| served.body_for(parts))
}

/// Requests file 0 and, right after it, file 1. Then reads the head of the first response and the
/// first `some` bytes of its body, and returns those bytes.
async fn begin(client: &mut TestClient, mode: &str, some: usize) -> Vec<u8> {
    client.request(&format!("/0/{mode}")).await;
    client.request("/1/buffered").await;
    let head = with_timeout(client.head()).await.unwrap();
    assert_eq!(content_length(&head), FILE_BYTES);
    let mut body = vec![0; some];
    with_timeout(client.io.read_exact(&mut body)).await.unwrap();
    body
}

#[tokio::test]
async fn a_truncated_file_ends_the_connection_within_its_body() {
    for (mode, mechanism) in modes_and_mechanisms() {
        for (transport, left) in [
            (Transport::Tcp, (3 << 20) + 100),
            (Transport::Unix, 2 << 20),
            (Transport::Tcp, 0),
        ] {
            let files = Files::of(&[FILE_BYTES, 1000]);
            let server = server(&files, mechanism, transport, Stack::Http1);
            let mut client = server.connect().await;
            let mut body = begin(&mut client, mode, 300_000).await;
            files.set_len(0, left as u64);
            body.extend(with_timeout(client.rest()).await);
            let what = format!("{mode} {mechanism} {transport:?} {left}");
            assert!(body.len() < FILE_BYTES, "{what}: {} bytes", body.len());
            let stable_len = body.len().min(left);
            assert_same(&body[..stable_len], &files.contents[0][..stable_len], &what);
        }
    }
}

#[tokio::test]
async fn a_truncated_file_behind_tokios_own_stream_ends_the_connection() {
    for left in [0, (3 << 20) + 100] {
        let files = Files::of(&[FILE_BYTES, 1000]);
        let server = server(&files, Mechanism::Sendfile, Transport::Tcp, Stack::Foreign);
        let mut client = server.connect().await;
        let mut body = begin(&mut client, "default", 300_000).await;
        files.set_len(0, left as u64);
        body.extend(with_timeout(client.rest()).await);
        assert!(body.len() < FILE_BYTES);
        let stable_len = body.len().min(left);
        assert_same(
            &body[..stable_len],
            &files.contents[0][..stable_len],
            "the received bytes",
        );
    }
}

#[tokio::test]
async fn a_file_that_grows_is_sent_up_to_its_original_length() {
    for (mode, mechanism) in modes_and_mechanisms() {
        for transport in [Transport::Tcp, Transport::Unix] {
            let files = Files::of(&[FILE_BYTES, 1000]);
            let server = server(&files, mechanism, transport, Stack::Http1);
            let mut client = server.connect().await;
            let mut body = begin(&mut client, mode, 300_000).await;
            files.set_len(0, FILE_BYTES as u64 + 5_000_000);
            let mut rest = vec![0; FILE_BYTES - body.len()];
            with_timeout(client.io.read_exact(&mut rest)).await.unwrap();
            body.extend(rest);
            let what = format!("{mode} {mechanism} {transport:?}");
            assert_same(&body, &files.contents[0], &what);
            let next = with_timeout(client.response()).await.unwrap();
            assert_same(&next, &files.contents[1], "the next response");
        }
    }
}

/// The part of a range that lies beyond the end that the file had when it was opened is read from
/// the file, after the bytes in front of it were sent from a mapping. If the file does not have
/// that part, the connection must end within the body.
#[tokio::test]
async fn a_range_beyond_the_end_is_sent_as_far_as_the_file_reaches() {
    for (start, end) in [
        (0, 100_001),
        (50_000, 200_000),
        (99_900, u64::MAX),
        (90_000, 150_000),
    ] {
        for len in [100_000, 150_000] {
            let files = Files::of(&[100_000, 1000]);
            files.set_len(0, len);
            let served = Arc::clone(&files);
            let server = TestServer::start(&ServerConfig::default(), move |parts| {
                served.body_for(parts)
            });
            let mut expected = files.contents[0].clone();
            expected.resize(len.min(end) as usize, 0);
            let expected = &expected[start as usize..];
            let what = format!("{start}..{end} of {len} bytes");

            let mut client = server.connect().await;
            client.request(&format!("/0/default/{start}/{end}")).await;
            client.request("/1/buffered").await;
            let head = with_timeout(client.head()).await.unwrap();
            assert_eq!(content_length(&head) as u64, end - start, "{what}");
            if end > len {
                // hyper may close the connection before everything has been sent.
                let body = with_timeout(client.rest()).await;
                assert!(body.len() <= expected.len(), "{what}");
                assert_same(&body, &expected[..body.len()], &what);
                continue;
            }
            let mut body = vec![0; expected.len()];
            with_timeout(client.io.read_exact(&mut body)).await.unwrap();
            assert_same(&body, expected, &what);
            let next = with_timeout(client.response()).await.unwrap();
            assert_same(&next, &files.contents[1], "the next response");
            let sent = server.totals.bytes(Mechanism::Sendfile);
            assert_eq!(sent, 100_000 - start - FIRST_FRAME_BYTES as u64, "{what}");
        }
    }
}

/// Returns text that can be compressed, but that still fills the socket buffers once it is
/// compressed.
pub(crate) fn compressible_text(len: usize) -> Vec<u8> {
    let mut text = crate::delivery_harness::random_bytes(len, 9);
    for byte in &mut text {
        *byte = b'a' + (*byte & 15);
    }
    text
}

/// Serves the files with a compression layer, on this crate's listener if `ours` is set, and
/// otherwise on tokio's listener. Returns the server's address.
async fn serve_compressed(files: &Arc<Files>, ours: bool) -> std::net::SocketAddr {
    let served = Arc::clone(files);
    let app = axum::Router::new()
        .fallback(move |request: axum::extract::Request| {
            let body = served.body_for(&request.into_parts().0);
            async { http::Response::new(axum::body::Body::new(body)) }
        })
        .layer(CompressionLayer::new());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    SockRef::from(&listener)
        .set_send_buffer_size(32 << 10)
        .unwrap();
    let address = listener.local_addr().unwrap();
    if ours {
        let listener = Listener::from_tcp(listener, StreamOptions::default()).unwrap();
        tokio::spawn(async { axum::serve(listener, app).await.unwrap() });
    } else {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        tokio::spawn(async { axum::serve(listener, app).await.unwrap() });
    }
    address
}

/// Requests file 0 with gzip compression, and reads the head of the response.
pub(crate) async fn request_gzip(address: std::net::SocketAddr) -> TestClient {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 << 10).unwrap();
    let io: Box<dyn crate::delivery_harness::ClientIo> =
        Box::new(socket.connect(address).await.unwrap());
    let mut client = TestClient {
        io: tokio::io::BufReader::new(io),
    };
    let request = "GET /0 HTTP/1.1\r\nhost: x\r\naccept-encoding: gzip\r\n\r\n";
    client.io.write_all(request.as_bytes()).await.unwrap();
    let head = with_timeout(client.head()).await.unwrap();
    assert!(head.contains("content-encoding: gzip"), "{head}");
    assert!(head.contains("transfer-encoding: chunked"), "{head}");
    client
}

/// Decodes a chunked body. Returns the content of its chunks, and whether the final chunk, which is
/// empty, has arrived.
pub(crate) fn unchunk(mut raw: &[u8]) -> (Vec<u8>, bool) {
    let mut content = Vec::new();
    while let Some(at) = raw.windows(2).position(|two| two == b"\r\n") {
        let size = std::str::from_utf8(&raw[..at]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return (content, true);
        }
        let chunk = &raw[at + 2..];
        content.extend_from_slice(&chunk[..size.min(chunk.len())]);
        raw = chunk.get(size + 2..).unwrap_or_default();
    }
    (content, false)
}

/// Decompresses with the program `gzip`, which nearly every Linux system has.
pub(crate) fn gunzip(compressed: Vec<u8>) -> Vec<u8> {
    let mut gzip = Command::new("gzip")
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = gzip.stdin.take().unwrap();
    let feeding = std::thread::spawn(move || input.write_all(&compressed).unwrap());
    let mut text = Vec::new();
    gzip.stdout.take().unwrap().read_to_end(&mut text).unwrap();
    feeding.join().unwrap();
    assert!(gzip.wait().unwrap().success());
    text
}

#[tokio::test]
async fn a_compressor_gets_the_right_bytes() {
    let files = Files::with(vec![compressible_text(1 << 20)]);
    for ours in [true, false] {
        let mut client = request_gzip(serve_compressed(&files, ours).await).await;
        let mut raw = Vec::new();
        while !raw.ends_with(b"\r\n0\r\n\r\n") {
            assert!(with_timeout(client.io.read_buf(&mut raw)).await.unwrap() > 0);
        }
        let (compressed, is_whole) = unchunk(&raw);
        assert!(is_whole && compressed.len() < 700_000);
        assert_same(&gunzip(compressed), &files.contents[0], "the text");
    }
}

/// The frames that the compressor reads must not be slices of the mapped file. If they were, the
/// compressor would read from the mapping after the file is truncated, and SIGBUS would kill this
/// process.
#[tokio::test]
async fn a_compressor_survives_a_truncated_file() {
    for ours in [true, false] {
        let files = Files::with(vec![compressible_text(4 << 20)]);
        let mut client = request_gzip(serve_compressed(&files, ours).await).await;
        let mut raw = vec![0; 100_000];
        with_timeout(client.io.read_exact(&mut raw)).await.unwrap();
        files.set_len(0, 0);
        raw.extend(with_timeout(client.rest()).await);
        let (compressed, is_whole) = unchunk(&raw);
        assert!(!is_whole, "a clean end after {} bytes", compressed.len());
    }
}

/// Truncating a file must not raise SIGBUS while the file is sent over HTTP/2. In general, hyper
/// copies the first bytes of a DATA frame into its buffer, behind the frame's head. hyper skips
/// this copy if its buffer already holds many bytes. In this test, the response has a long head,
/// which fills the buffer. So hyper passes on the body's first frame without reading it, but reads
/// the beginning of later frames. The body must not conclude from the first frame that later frames
/// may be slices of the mapped file, because reading such a slice raises SIGBUS once the file is
/// truncated.
#[test]
fn http_2_survives_a_truncated_file() {
    let test = "delivery_cut::http_2_survives_a_truncated_file";
    in_own_process(test, &[], || runtime().block_on(truncate_over_http_2()));
}

async fn truncate_over_http_2() {
    let files = Files::of(&[16 << 20]);
    let served = Arc::clone(&files);
    let listener = Listener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let service = hyper::service::service_fn(move |request: http::Request<_>| {
            let parts: http::request::Parts =
                request.map(|_: hyper::body::Incoming| ()).into_parts().0;
            let body: FileBody = served.body_for(&parts);
            let response = http::Response::builder().header("long", "Long{}".repeat(200));
            std::future::ready(response.body(body))
        });
        let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service)
            .await;
    });
    let io = TokioIo::new(tokio::net::TcpStream::connect(address).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = http::Request::get("http://x/0").body(Empty::<Bytes>::new());
    let response = sender.send_request(request.unwrap()).await.unwrap();
    let mut body = response.into_body();
    let mut got = 0;
    while got < 100_000 {
        let frame = with_timeout(body.frame()).await.unwrap().unwrap();
        got += frame.into_data().map_or(0, |data| data.len());
    }
    // Wait until the client's flow-control window is full, so that the server is between two frames
    // when the file is truncated.
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    files.set_len(0, 0);
    let end = with_timeout(async {
        loop {
            match body.frame().await {
                Some(Ok(_)) => {}
                end => return end.map(|end| end.is_err()),
            }
        }
    });
    assert_eq!(end.await, Some(true), "the stream must be reset");
}
