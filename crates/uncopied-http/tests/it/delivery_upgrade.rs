//! Connections that carry a few HTTP responses and then switch to another protocol (status 101), as
//! WebSocket connections do.

use std::convert::Infallible;
use std::sync::Arc;

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use uncopied::Mechanism;
use uncopied::arena::Pages;
use uncopied_http::{ConnectionSocket, FileBody, Stream, StreamOptions, Totals};

use crate::delivery_harness::{
    Files, TestClient, assert_same, random_bytes, stream_pair, with_timeout,
};
use crate::delivery_pages::{Freeze, pages_of};

/// What the server does with the connection after the upgrade.
#[derive(Clone, Debug)]
enum AfterUpgrade {
    /// Echoes through hyper's `Upgraded`, which uses this crate's stream.
    Echo,
    /// Takes tokio's socket out of the `Upgraded` and out of the stream, and echoes through the
    /// socket.
    EchoThroughSocket,
    /// Sends these pages through the `Upgraded`.
    SendPages(Pages),
}

/// Echoes everything that the peer sends, until the peer shuts down its sending side.
async fn echo(io: impl AsyncRead + AsyncWrite) {
    let (mut reader, mut writer) = tokio::io::split(io);
    tokio::io::copy(&mut reader, &mut writer).await.unwrap();
    writer.shutdown().await.unwrap();
}

async fn after_upgrade(upgraded: Upgraded, what: AfterUpgrade) {
    match what {
        AfterUpgrade::Echo => echo(TokioIo::new(upgraded)).await,
        AfterUpgrade::EchoThroughSocket => {
            let parts = upgraded.downcast::<TokioIo<Stream>>().unwrap();
            let ConnectionSocket::Tcp(mut socket) = parts.io.into_inner().into_inner() else {
                panic!("a TCP connection");
            };
            // First echo the bytes that hyper has already read past the end of the request.
            socket.write_all(&parts.read_buf).await.unwrap();
            echo(socket).await;
        }
        AfterUpgrade::SendPages(pages) => {
            let mut io = TokioIo::new(upgraded);
            io.write_all(&pages).await.unwrap();
            io.shutdown().await.unwrap();
        }
    }
}

/// Serves `files` on a connection. A request for `/upgrade` upgrades the connection, which is then
/// used as `what` says.
async fn serve(stream: Stream, files: Arc<Files>, what: AfterUpgrade) {
    let service = service_fn(move |mut request: Request<Incoming>| {
        let mut response = Response::new(FileBody::empty());
        if request.uri().path() == "/upgrade" {
            let (upgrading, what) = (hyper::upgrade::on(&mut request), what.clone());
            tokio::spawn(async move { after_upgrade(upgrading.await.unwrap(), what).await });
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let headers = response.headers_mut();
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, HeaderValue::from_static("echo"));
        } else {
            *response.body_mut() = files.body_for(&request.into_parts().0);
        }
        std::future::ready(Ok::<_, Infallible>(response))
    });
    hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await
        .unwrap();
}

/// Connects to a new server, requests every file, and then upgrades the connection. Sends `early`
/// right after the upgrade request, without waiting for the response. Returns the client, and the
/// totals of the server's stream.
async fn upgrade(
    files: &Arc<Files>,
    what: AfterUpgrade,
    early: &[u8],
) -> (TestClient, Arc<Totals>) {
    let totals = Arc::new(Totals::default());
    let options = StreamOptions::default().totals(Arc::clone(&totals));
    let (stream, theirs) = stream_pair(options).await;
    tokio::spawn(serve(stream, Arc::clone(files), what));
    let mut client = TestClient {
        io: BufReader::with_capacity(16 << 10, Box::new(theirs)),
    };
    for at in 0..files.contents.len() {
        let body = with_timeout(client.get(&format!("/{at}"))).await;
        assert_same(&body, &files.contents[at], "a file before the upgrade");
    }
    let head = "GET /upgrade HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    let request = [head.as_bytes(), early].concat();
    client.io.write_all(&request).await.unwrap();
    let head = with_timeout(client.head()).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    (client, totals)
}

#[tokio::test]
async fn an_upgraded_connection_echoes_after_large_files() {
    let files = Files::of(&[8 << 20, 100, 3_000_001]);
    let early = b"sent along with the request";
    let message = random_bytes(5 << 20, 77);
    for what in [AfterUpgrade::Echo, AfterUpgrade::EchoThroughSocket] {
        let (client, totals) = upgrade(&files, what.clone(), early).await;
        assert!(totals.bytes(Mechanism::Sendfile) > 10 << 20, "{what:?}");
        let (mut reader, mut writer) = tokio::io::split(client.io);
        let sent = message.clone();
        let writing = tokio::spawn(async move {
            writer.write_all(&sent).await.unwrap();
            writer.shutdown().await.unwrap();
        });
        let mut got = Vec::new();
        with_timeout(reader.read_to_end(&mut got)).await.unwrap();
        writing.await.unwrap();
        assert_same(&got, &[early, &message[..]].concat(), &format!("{what:?}"));
    }
}

#[tokio::test]
async fn pages_are_sent_without_a_copy_after_an_upgrade() {
    let files = Files::of(&[1 << 20]);
    let content = random_bytes(4 << 20, 3);
    let pages = pages_of(&content, Freeze::Permanent);
    let (mut client, totals) = upgrade(&files, AfterUpgrade::SendPages(pages), b"").await;
    let got = with_timeout(client.rest()).await;
    assert_same(&got, &content, "the pages");
    assert!(totals.bytes(Mechanism::Vmsplice) > 3 << 20);
}
