//! The file service as part of an axum app, and with hyper alone over a real socket.

use axum::Router;
use axum::routing::get as route;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt;
use uncopied_http::ServeFiles;

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

/// At `/docs`, a relative link of the index file would lead beneath `/` instead of `/docs/`.
#[tokio::test]
async fn the_place_of_a_nested_service_is_redirected_to_its_slash() {
    let site = TestSite::new(&[("index.html", "index"), ("a.txt", "hello")]);
    site.wait_until_stable("index.html");
    let bare = TestSite::new(&[("a.txt", "hello")]);
    let app = Router::new()
        .nest_service("/docs", site.serve())
        .nest(
            "/inner",
            Router::new().nest_service("/my%20docs", site.serve()),
        )
        .nest_service("/list", bare.builder().listing(true).build().unwrap())
        .nest_service("/bare", bare.serve())
        .nest_service("/one", ServeFiles::new(site.path("a.txt")).unwrap())
        .fallback_service(site.serve());
    for (uri, status, location) in [
        ("/docs/", 200, ""),
        ("/docs", 301, "./docs/"),
        ("/docs?a=b", 301, "./docs/?a=b"),
        ("/inner/my%20docs", 301, "./my%20docs/"),
        ("/inner/my%20docs/", 200, ""),
        ("/list", 301, "./list/"),
        ("/list/", 200, ""),
        ("/bare", 404, ""),
        ("/one", 200, ""),
        ("/", 200, ""),
    ] {
        for _ in 0..2 {
            let request = http::Request::get(uri).body(axum::body::Body::empty());
            let response = app.clone().oneshot(request.unwrap()).await.unwrap();
            assert_eq!(response.status(), status, "{uri}");
            let found = response.headers().get("location");
            assert_eq!(found.map_or("", |value| value.to_str().unwrap()), location);
        }
    }
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
