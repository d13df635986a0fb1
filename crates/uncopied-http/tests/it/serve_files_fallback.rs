//! A service behind `ServeFiles` that gets the requests for files that do not exist.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use axum::Router;
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::routing::any;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use tower::{Service, ServiceExt, service_fn};

use crate::test_site::TestSite;

/// The fallback of the tests: responds with a description of the request that it got. The status is
/// 418 for `/teapot`, and 200 otherwise.
async fn describe(request: Request) -> (StatusCode, String) {
    let extension = request.extensions().get::<&str>().copied();
    let (parts, body) = request.into_parts();
    let header = parts
        .headers
        .get("x-test")
        .map(|value| value.to_str().unwrap().to_owned());
    let body = body.collect().await.unwrap().to_bytes();
    let status = match parts.uri.path() {
        "/teapot" => StatusCode::IM_A_TEAPOT,
        _ => StatusCode::OK,
    };
    (
        status,
        format!(
            "{} {} {header:?} {extension:?} {body:?}",
            parts.method, parts.uri
        ),
    )
}

async fn get<S, B>(service: &S, method: Method, uri: &str) -> (StatusCode, Bytes)
where
    S: Service<Request, Response = http::Response<B>, Error = Infallible> + Clone,
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .header("x-test", "kept");
    let request = request
        .extension("extended")
        .body(axum::body::Body::from("content"));
    let response = service.clone().oneshot(request.unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    (parts.status, body.collect().await.unwrap().to_bytes())
}

#[tokio::test]
async fn missing_files_go_to_the_fallback_and_others_do_not() {
    let site = TestSite::new(&[("a.txt", "hello"), (".hidden", "secret")]);
    let fallback = Router::new().fallback(any(describe));
    let service = site.serve().fallback_service(fallback);

    let found = get(&service, Method::GET, "/a.txt").await;
    assert_eq!(found, (StatusCode::OK, Bytes::from("hello")));
    for uri in ["/missing?q=1", "/dir/missing", "/", "/.hidden"] {
        let (status, body) = get(&service, Method::GET, uri).await;
        assert_eq!(status, StatusCode::OK);
        let expected = format!("GET {uri} Some(\"kept\") Some(\"extended\") b\"content\"");
        assert_eq!(body, expected);
    }
    let (status, _) = get(&service, Method::GET, "/teapot").await;
    assert_eq!(status, StatusCode::IM_A_TEAPOT);
    let (status, _) = get(&service, Method::POST, "/a.txt").await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    let (status, _) = get(&service, Method::GET, "/%00").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

/// axum clones a mounted service for each request, and boxes the bodies of the responses. So the
/// service must implement `Clone`, and its bodies must implement `Send`.
#[tokio::test]
async fn it_mounts_in_axum() {
    let site = TestSite::new(&[("a.txt", "hello")]);
    let missing = Router::new().fallback(|| async { (StatusCode::NOT_FOUND, "nothing here") });
    let files = site.serve().fallback_service(missing);
    let app = Router::new()
        .nest_service("/files", files.clone())
        .fallback_service(files);
    for (uri, expected) in [
        ("/a.txt", (StatusCode::OK, "hello")),
        ("/files/a.txt", (StatusCode::OK, "hello")),
        ("/b.txt", (StatusCode::NOT_FOUND, "nothing here")),
        ("/files/b.txt", (StatusCode::NOT_FOUND, "nothing here")),
    ] {
        let (status, body) = get(&app, Method::GET, uri).await;
        assert_eq!(
            (status, &body[..]),
            (expected.0, expected.1.as_bytes()),
            "{uri}"
        );
    }
}

#[tokio::test]
async fn pages_of_the_site_take_their_places() {
    let site = TestSite::new(&[("app.html", "app"), ("404.html", "error page")]);
    let fallback = service_fn(async |_: Request| {
        Ok::<_, Infallible>(http::Response::new(Full::from("service")))
    });
    let with_error_page = site.builder().error_page(StatusCode::NOT_FOUND, "404.html");
    let service = with_error_page.build().unwrap().fallback_service(fallback);
    assert_eq!(get(&service, Method::GET, "/missing").await.1, "service");
    let with_app = site.builder().fallback("app.html").build().unwrap();
    let service = with_app.fallback_service(fallback);
    assert_eq!(get(&service, Method::GET, "/missing").await.1, "app");
    assert_eq!(get(&service, Method::GET, "/missing.js").await.1, "service");
}

/// A service that panics if it is called before `poll_ready` has returned `Ready`, as some services
/// of tower do.
#[derive(Clone)]
struct StrictService {
    polls: usize,
    was_called: Arc<AtomicBool>,
}

impl Service<Request> for StrictService {
    type Response = http::Response<Full<Bytes>>;
    type Error = &'static str;
    type Future = std::future::Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.polls += 1;
        cx.waker().wake_by_ref();
        if self.polls < 3 {
            Poll::Pending
        } else {
            Poll::Ready(Ok(()))
        }
    }

    fn call(&mut self, _: Request) -> Self::Future {
        assert!(self.polls >= 3, "called before it is ready");
        self.was_called.store(true, Ordering::Relaxed);
        std::future::ready(Err("broken"))
    }
}

#[tokio::test]
async fn the_fallback_is_called_only_once_it_is_ready_and_its_error_is_returned() {
    let site = TestSite::new(&[("a.txt", "hello")]);
    let strict = StrictService {
        polls: 0,
        was_called: Arc::default(),
    };
    let was_called = Arc::clone(&strict.was_called);
    let service = site.serve().fallback_service(strict);
    let request = |uri: &str| Request::get(uri).body(axum::body::Body::empty()).unwrap();
    let found = service.clone().oneshot(request("/a.txt")).await.unwrap();
    assert_eq!(found.status(), StatusCode::OK);
    assert!(!was_called.load(Ordering::Relaxed));
    let missing = service.oneshot(request("/b.txt")).await;
    assert_eq!(missing.err(), Some("broken"));
    assert!(was_called.load(Ordering::Relaxed));
}
