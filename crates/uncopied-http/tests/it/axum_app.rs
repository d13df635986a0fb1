//! Tests that axum apps can use this crate's listener and bodies: handlers extract the peer's
//! address, and return file bodies.

use std::io;
use std::net::SocketAddr;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tower_http::compression::CompressionLayer;
use uncopied_http::{Address, FileBody, Listener};

use crate::delivery_harness::{ClientIo, Files, assert_same, with_timeout};

/// Requests `path`, and asks the server to close the connection after its response. `fields` are
/// further header lines of the request. Returns the head and the body of the response.
async fn fetch(mut io: impl ClientIo, path: &str, fields: &str) -> (String, Vec<u8>) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{fields}\r\n");
    io.write_all(request.as_bytes()).await.unwrap();
    let mut response = Vec::new();
    with_timeout(io.read_to_end(&mut response)).await.unwrap();
    let mut parts = response.windows(4);
    let head = parts.position(|four| four == b"\r\n\r\n").unwrap() + 4;
    let body = response.split_off(head);
    (String::from_utf8(response).unwrap(), body)
}

#[tokio::test]
async fn handlers_extract_the_peers_socket_address() {
    let whoami = get(|ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.to_string() });
    let app = Router::new().route("/", whoami);
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    let listener = Listener::bind("127.0.0.1:0").await.unwrap();
    let listener = listener.tcp_only().unwrap();
    let address = axum::serve::Listener::local_addr(&listener).unwrap();
    let server = tokio::spawn(async move { axum::serve(listener, app).await });

    let client = TcpStream::connect(address).await.unwrap();
    let own = client.local_addr().unwrap().to_string();
    let (_, body) = fetch(client, "/", "").await;
    assert_eq!(String::from_utf8(body).unwrap(), own);
    server.abort();
}

#[tokio::test]
async fn a_tcp_only_listener_sends_files_without_a_copy() {
    use std::sync::Arc;
    use uncopied_http::{StreamOptions, Totals};

    let files = Files::of(&[1 << 20]);
    let open = Arc::clone(&files.open[0]);
    let file = get(async move || FileBody::open(&open, ..).await.unwrap());
    let totals = Arc::new(Totals::default());
    let options = StreamOptions::default().totals(Arc::clone(&totals));
    let listener = Listener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .options(options);
    let listener = listener.tcp_only().unwrap();
    let address = axum::serve::Listener::local_addr(&listener).unwrap();
    let app = Router::new().route("/", file);
    let server = tokio::spawn(async move { axum::serve(listener, app).await });

    let client = TcpStream::connect(address).await.unwrap();
    let (_, body) = fetch(client, "/", "").await;
    assert_same(&body, &files.contents[0], "the file");
    assert!(totals.bytes(uncopied::Mechanism::Sendfile) > 1_000_000);
    server.abort();
}

#[tokio::test]
async fn handlers_extract_our_address_over_unix_sockets() {
    let whoami = get(|ConnectInfo(peer): ConnectInfo<Address>| async move { peer.to_string() });
    let app = Router::new().route("/", whoami);
    let app = app.into_make_service_with_connect_info::<Address>();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = Listener::bind_unix(&path).unwrap();
    let server = tokio::spawn(async move { axum::serve(listener, app).await });

    let client = UnixStream::connect(&path).await.unwrap();
    assert_eq!(fetch(client, "/", "").await.1, b"unix");
    server.abort();
}

#[tokio::test]
async fn a_unix_listener_is_not_tcp_only() {
    let dir = tempfile::tempdir().unwrap();
    let listener = Listener::bind_unix(dir.path().join("socket")).unwrap();
    let error = listener.tcp_only().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[tokio::test]
async fn handlers_return_file_bodies() {
    let files = Files::of(&[300_000]);
    let path = files.path(0);
    let body = async move || {
        let file = tokio::fs::File::open(&path).await.unwrap();
        FileBody::open(file, ..).await.unwrap()
    };
    let typed = {
        let body = body.clone();
        async move || ([(CONTENT_TYPE, "text/plain")], body().await)
    };
    let app = Router::new()
        .route("/compressed", get(typed.clone()))
        .layer(CompressionLayer::new())
        .route("/", get(body))
        .route("/typed", get(typed));
    let listener = Listener::bind("127.0.0.1:0").await.unwrap();
    let Address::Tcp(address) = listener.local_addr().unwrap() else {
        panic!("a TCP listener");
    };
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    let client = || async { TcpStream::connect(address).await.unwrap() };

    let (head, body) = fetch(client().await, "/", "").await;
    assert!(head.contains("content-length: 300000\r\n"), "{head}");
    assert!(!head.contains("content-type"), "{head}");
    assert_same(&body, &files.contents[0], "the body");

    let (head, body) = fetch(client().await, "/typed", "").await;
    assert!(head.contains("content-type: text/plain\r\n"), "{head}");
    assert_same(&body, &files.contents[0], "the body with a type");

    let (head, body) = fetch(client().await, "/compressed", "accept-encoding: gzip\r\n").await;
    assert!(head.contains("content-encoding: gzip\r\n"), "{head}");
    assert_ne!(body, files.contents[0]);
    server.abort();
}
