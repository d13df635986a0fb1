//! Files that change their length while they are sent: never a byte past the promise, never another
//! response inside it, never a clean end of what is not whole.

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
use uncopied_http::{FileBody, Listener, Options};

use crate::delivery_rig::{
    Client, Files, Net, Plan, Server, Stack, assert_same, content_length, in_own_process, runtime,
    soon,
};

const LEN: usize = 6 << 20;

/// Every way in which a body's bytes get to the socket: mode, and forced mechanism.
fn ways() -> impl Iterator<Item = (&'static str, Mechanism)> {
    let forced = Mechanism::FILE_TO_SOCKET.map(|mechanism| ("direct", mechanism));
    let found = ["default", "read"].map(|mode| (mode, Mechanism::Sendfile));
    forced.into_iter().chain(found)
}

fn server(files: &Arc<Files>, mechanism: Mechanism, net: Net, stack: Stack) -> Server {
    let answering = Arc::clone(files);
    let plan = Plan {
        stack,
        net,
        mechanisms: &[mechanism, Mechanism::Copy],
        buffers: Some(32 << 10),
    };
    Server::start(&plan, move |parts| answering.answer(parts))
}

/// Asks for file 0 and at once for file 1, reads the head and the first `some` bytes.
async fn begin(client: &mut Client, mode: &str, some: usize) -> Vec<u8> {
    client.request(&format!("/0/{mode}")).await;
    client.request("/1/read").await;
    let head = soon(client.head()).await.unwrap();
    assert_eq!(content_length(&head), LEN);
    let mut body = vec![0; some];
    soon(client.io.read_exact(&mut body)).await.unwrap();
    body
}

#[tokio::test]
async fn a_file_cut_short_ends_the_connection_within_its_body() {
    for (mode, mechanism) in ways() {
        for (net, left) in [
            (Net::Tcp, (3 << 20) + 100),
            (Net::Unix, 2 << 20),
            (Net::Tcp, 0),
        ] {
            let files = Files::of(&[LEN, 1000]);
            let server = server(&files, mechanism, net, Stack::Http1);
            let mut client = server.connect().await;
            let mut body = begin(&mut client, mode, 300_000).await;
            files.set_len(0, left as u64);
            body.extend(soon(client.rest()).await);
            let what = format!("{mode} {mechanism} {net:?} {left}");
            assert!(body.len() < LEN, "{what}: {} bytes", body.len());
            let sure = body.len().min(left);
            assert_same(&body[..sure], &files.contents[0][..sure], &what);
        }
    }
}

#[tokio::test]
async fn a_file_cut_short_behind_tokios_own_stream() {
    for left in [0, (3 << 20) + 100] {
        let files = Files::of(&[LEN, 1000]);
        let server = server(&files, Mechanism::Sendfile, Net::Tcp, Stack::Foreign);
        let mut client = server.connect().await;
        let mut body = begin(&mut client, "default", 300_000).await;
        files.set_len(0, left as u64);
        body.extend(soon(client.rest()).await);
        assert!(body.len() < LEN);
        let sure = body.len().min(left);
        assert_same(&body[..sure], &files.contents[0][..sure], "what came");
    }
}

#[tokio::test]
async fn a_file_that_grows_stays_within_its_length() {
    for (mode, mechanism) in ways() {
        for net in [Net::Tcp, Net::Unix] {
            let files = Files::of(&[LEN, 1000]);
            let server = server(&files, mechanism, net, Stack::Http1);
            let mut client = server.connect().await;
            let mut body = begin(&mut client, mode, 300_000).await;
            files.set_len(0, LEN as u64 + 5_000_000);
            let mut rest = vec![0; LEN - body.len()];
            soon(client.io.read_exact(&mut rest)).await.unwrap();
            body.extend(rest);
            let what = format!("{mode} {mechanism} {net:?}");
            assert_same(&body, &files.contents[0], &what);
            let next = soon(client.response()).await.unwrap();
            assert_same(&next, &files.contents[1], "the next response");
        }
    }
}

/// Text that a compressor makes smaller, but not too small to fill the socket's buffers.
pub(crate) fn wordy(len: usize) -> Vec<u8> {
    let mut text = crate::delivery_rig::bytes_of(len, 9);
    for byte in &mut text {
        *byte = b'a' + (*byte & 15);
    }
    text
}

async fn serve_compressed(files: &Arc<Files>, ours: bool) -> std::net::SocketAddr {
    let answering = Arc::clone(files);
    let app = axum::Router::new()
        .fallback(move |request: axum::extract::Request| {
            let body = answering.answer(&request.into_parts().0);
            async { http::Response::new(axum::body::Body::new(body)) }
        })
        .layer(CompressionLayer::new());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    SockRef::from(&listener)
        .set_send_buffer_size(32 << 10)
        .unwrap();
    let address = listener.local_addr().unwrap();
    if ours {
        let listener = Listener::from_tcp(listener, Options::default()).unwrap();
        tokio::spawn(async { axum::serve(listener, app).await.unwrap() });
    } else {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        tokio::spawn(async { axum::serve(listener, app).await.unwrap() });
    }
    address
}

pub(crate) async fn ask_for_gzip(address: std::net::SocketAddr) -> Client {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 << 10).unwrap();
    let io: Box<dyn crate::delivery_rig::Io> = Box::new(socket.connect(address).await.unwrap());
    let mut client = Client {
        io: tokio::io::BufReader::new(io),
    };
    let request = "GET /0 HTTP/1.1\r\nhost: x\r\naccept-encoding: gzip\r\n\r\n";
    client.io.write_all(request.as_bytes()).await.unwrap();
    let head = soon(client.head()).await.unwrap();
    assert!(head.contains("content-encoding: gzip"), "{head}");
    assert!(head.contains("transfer-encoding: chunked"), "{head}");
    client
}

/// The chunks' content, and whether the last one came.
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

/// By the program, which every system has.
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
    let files = Files::with(vec![wordy(1 << 20)]);
    for ours in [true, false] {
        let mut client = ask_for_gzip(serve_compressed(&files, ours).await).await;
        let mut raw = Vec::new();
        while !raw.ends_with(b"\r\n0\r\n\r\n") {
            assert!(soon(client.io.read_buf(&mut raw)).await.unwrap() > 0);
        }
        let (compressed, is_whole) = unchunk(&raw);
        assert!(is_whole && compressed.len() < 700_000);
        assert_same(&gunzip(compressed), &files.contents[0], "the text");
    }
}

/// A mapping that the compressor read would be the end of this process: SIGBUS.
#[tokio::test]
async fn a_compressor_survives_a_file_cut_short() {
    for ours in [true, false] {
        let files = Files::with(vec![wordy(4 << 20)]);
        let mut client = ask_for_gzip(serve_compressed(&files, ours).await).await;
        let mut raw = vec![0; 100_000];
        soon(client.io.read_exact(&mut raw)).await.unwrap();
        files.set_len(0, 0);
        raw.extend(soon(client.rest()).await);
        let (compressed, is_whole) = unchunk(&raw);
        assert!(!is_whole, "a clean end after {} bytes", compressed.len());
    }
}

/// HTTP/2 copies the first bytes of a frame next to its head, unless a long head stands there already,
/// as the one of the response does here. That this one was passed on unread proves nothing.
#[test]
fn http_2_survives_a_file_cut_short() {
    let test = "delivery_cut::http_2_survives_a_file_cut_short";
    in_own_process(test, &[], || runtime().block_on(cut_short_over_http_2()));
}

async fn cut_short_over_http_2() {
    let files = Files::of(&[16 << 20]);
    let answering = Arc::clone(&files);
    let listener = Listener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let service = hyper::service::service_fn(move |request: http::Request<_>| {
            let parts: http::request::Parts =
                request.map(|_: hyper::body::Incoming| ()).into_parts().0;
            let body: FileBody = answering.answer(&parts);
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
    let answer = sender.send_request(request.unwrap()).await.unwrap();
    let mut body = answer.into_body();
    let mut got = 0;
    while got < 100_000 {
        let frame = soon(body.frame()).await.unwrap().unwrap();
        got += frame.into_data().map_or(0, |data| data.len());
    }
    // Until the window is shut: the server then stands between two frames.
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    files.set_len(0, 0);
    let end = soon(async {
        loop {
            match body.frame().await {
                Some(Ok(_)) => {}
                end => return end.map(|end| end.is_err()),
            }
        }
    });
    assert_eq!(end.await, Some(true), "the stream is reset, and we live");
}
