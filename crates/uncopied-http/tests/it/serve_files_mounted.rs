//! The file service as part of an axum app, and with hyper alone over a real socket.

use axum::Router;
use axum::routing::get as route;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt;

use crate::test_site::TestSite;

/// Sends one request over a new connection. Returns the status, `Location`, `Content-Length` and
/// the body of the response.
async fn fetch(
    address: std::net::SocketAddr,
    method: &str,
    uri: &str,
) -> (u16, String, String, String) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let request = http::Request::builder()
        .method(method)
        .uri(uri)
        .header("host", "localhost");
    let request = request.body(Empty::<bytes::Bytes>::new()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    let header = |name| {
        response
            .headers()
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    };
    let (location, length) = (
        header("location").to_owned(),
        header("content-length").to_owned(),
    );
    let body = response.into_body().collect().await.unwrap().to_bytes();
    drop(sender);
    connection.await.unwrap().unwrap();
    (
        status,
        location,
        length,
        String::from_utf8(body.to_vec()).unwrap(),
    )
}

#[tokio::test]
async fn axum_serves_files_as_a_fallback_and_nested() {
    let site = TestSite::new(&[("a.txt", "hello"), ("dir/index.html", "index")]);
    let app = Router::new()
        .route("/dynamic", route(|| async { "dynamic" }))
        .nest_service("/static", site.serve())
        .fallback_service(site.serve());
    let body = async |uri: &str| {
        let request = http::Request::get(uri)
            .body(axum::body::Body::empty())
            .unwrap();
        let response = app.clone().oneshot(request).await.unwrap();
        response.into_body().collect().await.unwrap().to_bytes()
    };
    assert_eq!(body("/dynamic").await, "dynamic");
    assert_eq!(body("/a.txt").await, "hello");
    assert_eq!(body("/static/a.txt").await, "hello");
    assert_eq!(body("/static/dir/").await, "index");
    let request = http::Request::get("/static/dir")
        .body(axum::body::Body::empty())
        .unwrap();
    let response = app.clone().oneshot(request).await.unwrap();
    // The service does not know the prefix `/static`, so it must respond with a relative reference.
    // The client resolves the reference against the request's URL, so the result keeps the prefix.
    assert_eq!(response.headers()["location"], "./dir/");
}

#[tokio::test]
async fn hyper_alone_serves_files() {
    let big = "0123456789".repeat(100_000);
    let site = TestSite::new(&[
        ("a.txt", "hello"),
        ("big", &big),
        ("dir/index.html", "index"),
    ]);
    let service = TowerToHyperService::new(site.serve());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service.clone());
            tokio::spawn(connection);
        }
    });
    let text = |text: &str| text.to_owned();
    assert_eq!(
        fetch(address, "GET", "/a.txt").await,
        (200, text(""), text("5"), text("hello"))
    );
    assert_eq!(
        fetch(address, "HEAD", "/a.txt").await,
        (200, text(""), text("5"), text(""))
    );
    assert_eq!(fetch(address, "GET", "/big").await.3, big);
    assert_eq!(
        fetch(address, "GET", "/dir").await,
        (301, text("./dir/"), text("0"), text(""))
    );
    assert_eq!(fetch(address, "OPTIONS", "/a.txt").await.0, 204);
    server.abort();
}
