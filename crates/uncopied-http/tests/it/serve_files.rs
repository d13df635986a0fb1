//! The file service: methods, headers, error pages and configuration.

use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, VARY};
use http::{Method, StatusCode};
use uncopied_http::ServeFiles;

use crate::test_site::{TestSite, get, get_with, send};

#[tokio::test]
async fn a_file_is_sent_whole_with_its_headers() {
    let big = "0123456789abcdef".repeat(20_000);
    let site = TestSite::new(&[("a.txt", "hello"), ("empty.html", ""), ("big.bin", &big)]);
    let service = site.serve();

    let response = get(&service, "/a.txt").await;
    assert_eq!(response.status, StatusCode::OK);
    assert_eq!(response.text(), "hello");
    assert_eq!(response.header("content-type"), "text/plain; charset=utf-8");
    assert_eq!(response.header("content-length"), "5");
    assert_eq!(response.header("accept-ranges"), "bytes");
    assert!(response.header("etag").starts_with("W/\""));
    let modified = std::fs::metadata(site.path("a.txt"))
        .unwrap()
        .modified()
        .unwrap();
    assert_eq!(
        response.header("last-modified"),
        httpdate::fmt_http_date(modified)
    );

    assert_eq!(
        get(&service, "/empty.html").await.header("content-length"),
        "0"
    );
    assert_eq!(get(&service, "/big.bin").await.text(), big);
}

#[tokio::test]
async fn head_has_the_headers_of_get_and_no_body() {
    let site = TestSite::new(&[
        ("a.txt", "hello"),
        ("a.txt.gz", "packed"),
        ("dir/b", ""),
        ("sub/index.html", "x"),
    ]);
    let service = site.builder().listing(true).build().unwrap();
    let gzip = [("accept-encoding", "gzip")];
    for uri in ["/a.txt", "/dir/", "/sub", "/missing", "/%zz"] {
        let head = send(&service, Method::HEAD, uri, &gzip).await;
        let get = send(&service, Method::GET, uri, &gzip).await;
        assert_eq!(
            (head.status, &head.headers),
            (get.status, &get.headers),
            "{uri}"
        );
        assert_eq!(
            head.header("content-length"),
            get.body.len().to_string(),
            "{uri}"
        );
        assert!(head.body.is_empty(), "{uri}");
    }
    let head = send(&service, Method::HEAD, "/a.txt", &[("range", "bytes=0-1")]).await;
    assert_eq!(
        (head.status, head.header("content-length")),
        (StatusCode::OK, "5")
    );
}

#[tokio::test]
async fn options_and_other_methods_list_the_allowed_methods() {
    let site = TestSite::new(&[("a.txt", "hello")]);
    let service = site.serve();
    for uri in ["/a.txt", "/missing", "*"] {
        let response = send(&service, Method::OPTIONS, uri, &[]).await;
        assert_eq!(response.status, StatusCode::NO_CONTENT, "{uri}");
        assert_eq!(response.header("allow"), "GET, HEAD, OPTIONS");
        assert!(response.body.is_empty());
    }
    for method in [
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::TRACE,
        Method::CONNECT,
    ] {
        let response = send(&service, method, "/a.txt", &[]).await;
        assert_eq!(response.status, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(response.header("allow"), "GET, HEAD, OPTIONS");
    }
}

#[tokio::test]
async fn error_pages_are_the_body_and_keep_the_status() {
    let site = TestSite::new(&[
        ("404.html", "<h1>gone</h1>"),
        ("full.txt", "out of range"),
        ("a", "x"),
    ]);
    let service = site
        .builder()
        .error_page(StatusCode::NOT_FOUND, "404.html")
        .error_page(StatusCode::RANGE_NOT_SATISFIABLE, "/full.txt")
        .build()
        .unwrap();

    let conditions = [("range", "bytes=0-1"), ("if-none-match", "*")];
    let response = get_with(&service, "/missing", &conditions).await;
    assert_eq!(response.status, StatusCode::NOT_FOUND);
    assert_eq!(response.text(), "<h1>gone</h1>");
    assert_eq!(response.header("content-type"), "text/html; charset=utf-8");
    assert_eq!(response.header("content-length"), "13");
    assert_eq!(
        (response.header("etag"), response.header("accept-ranges")),
        ("", "")
    );

    let response = get_with(&service, "/a", &[("range", "bytes=7-")]).await;
    assert_eq!(response.status, StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(
        (response.text(), response.header("content-range")),
        ("out of range", "bytes */1")
    );

    let head = send(&service, Method::HEAD, "/missing", &[]).await;
    assert_eq!((head.header("content-length"), head.body.len()), ("13", 0));

    std::fs::remove_file(site.path("404.html")).unwrap();
    let response = get(&service, "/missing").await;
    assert_eq!(
        (response.status, response.text()),
        (StatusCode::NOT_FOUND, "404 Not Found\n")
    );
}

#[tokio::test]
async fn the_fallback_serves_pages_but_not_missing_assets() {
    let site = TestSite::new(&[("app.html", "<app>"), ("a.txt", "a")]);
    let service = site.builder().fallback("app.html").build().unwrap();
    for (uri, accept) in [
        ("/users/7", "*/*"),
        ("/users/", "*/*"),
        ("/users/jane.doe", "text/html,*/*;q=0.8"),
    ] {
        let response = get_with(&service, uri, &[("accept", accept)]).await;
        assert_eq!(
            (response.status, response.text()),
            (StatusCode::OK, "<app>"),
            "{uri}"
        );
        assert_eq!(response.header("content-type"), "text/html; charset=utf-8");
    }
    assert_eq!(
        send(&service, Method::HEAD, "/users/7", &[])
            .await
            .header("content-length"),
        "5"
    );
    assert_eq!(get(&service, "/a.txt").await.text(), "a");
    let missing = get_with(&service, "/app.js", &[("accept", "*/*")]).await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    assert_eq!(get(&service, "/%00").await.status, StatusCode::BAD_REQUEST);
    let post = send(&service, Method::POST, "/users/7", &[]).await;
    assert_eq!(post.status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn caches_learn_that_the_fallback_depends_on_accept_and_must_be_revalidated() {
    let site = TestSite::new(&[
        ("app.html", "<app>"),
        ("app.html.gz", "packed"),
        ("a.txt", "a"),
    ]);
    let immutable = HeaderValue::from_static("max-age=31536000, immutable");
    let builder = site.builder().fallback("/app.html").index(["app.html"]);
    let builder = builder.cache_control(immutable.clone());
    let service = builder.clone().build().unwrap();
    let html = [("accept", "text/html")];
    let zipped = [("accept", "text/html"), ("accept-encoding", "gzip")];
    let matching = [("accept", "text/html"), ("if-none-match", "*")];
    for (uri, headers, status, vary, cache_control) in [
        (
            "/x",
            &html[..],
            200,
            &["accept-encoding", "accept"][..],
            "no-cache",
        ),
        (
            "/x.js",
            &html,
            200,
            &["accept-encoding", "accept"],
            "no-cache",
        ),
        (
            "/x.js",
            &zipped,
            200,
            &["accept-encoding", "accept"],
            "no-cache",
        ),
        (
            "/x.js",
            &matching,
            304,
            &["accept-encoding", "accept"],
            "no-cache",
        ),
        ("/x.js", &[], 404, &["accept"], ""),
        ("/", &html, 200, &["accept-encoding"], "no-cache"),
        ("/app.html", &zipped, 200, &["accept-encoding"], "no-cache"),
        (
            "/a.txt",
            &html,
            200,
            &["accept-encoding"],
            "max-age=31536000, immutable",
        ),
    ] {
        let response = get_with(&service, uri, headers).await;
        assert_eq!(response.status.as_u16(), status, "{uri}");
        let values: Vec<_> = response.headers.get_all("vary").iter().collect();
        assert_eq!(values, vary, "{uri}");
        assert_eq!(response.header("cache-control"), cache_control, "{uri}");
    }
    let service = builder.header(CACHE_CONTROL, immutable).build().unwrap();
    let response = get(&service, "/x").await;
    assert_eq!(
        response.header("cache-control"),
        "max-age=31536000, immutable"
    );
    let without = get(&site.serve(), "/x").await;
    assert_eq!(without.header("vary"), "", "nothing depends on Accept");
}

#[tokio::test]
async fn pages_may_be_hidden_files_that_no_request_can_name() {
    let site = TestSite::new(&[(".404.html", "gone")]);
    let service = site
        .builder()
        .error_page(StatusCode::NOT_FOUND, ".404.html")
        .build()
        .unwrap();
    for _ in 0..2 {
        let response = get(&service, "/.404.html").await;
        assert_eq!(
            (response.status, response.text()),
            (StatusCode::NOT_FOUND, "gone")
        );
    }
}

#[tokio::test]
async fn configured_headers_are_on_every_response() {
    let name = HeaderName::from_static("x-frame-options");
    let site = TestSite::new(&[
        ("a.txt", "hello"),
        ("dir/index.html", "index"),
        ("dir/x/y", ""),
    ]);
    let service = site
        .builder()
        .listing(true)
        .header(name, HeaderValue::from_static("DENY"))
        .header(VARY, HeaderValue::from_static("origin"))
        .header(CONTENT_TYPE, HeaderValue::from_static("text/x-own"))
        .cache_control(HeaderValue::from_static("max-age=60"))
        .build()
        .unwrap();
    for (uri, headers, status) in [
        ("/a.txt", &[][..], 200),
        ("/a.txt", &[("range", "bytes=0-1")], 206),
        ("/a.txt", &[("if-none-match", "*")], 304),
        ("/a.txt", &[("if-match", "\"x\"")], 412),
        ("/a.txt", &[("range", "bytes=9-")], 416),
        ("/dir", &[], 301),
        ("/dir/x/", &[], 200),
        ("/missing", &[], 404),
        ("/%00", &[], 400),
    ] {
        let response = get_with(&service, uri, headers).await;
        assert_eq!(response.status.as_u16(), status, "{uri}");
        assert_eq!(response.header("x-frame-options"), "DENY", "{uri}");
        let vary: Vec<_> = response.headers.get_all("vary").iter().collect();
        assert!(vary.contains(&&HeaderValue::from_static("origin")), "{uri}");
        let is_of_file = uri == "/a.txt" && status < 400;
        assert_eq!(
            vary.len(),
            1 + usize::from(is_of_file || uri == "/dir/x/"),
            "{uri}"
        );
        assert_eq!(
            response.headers.contains_key(CACHE_CONTROL),
            is_of_file,
            "{uri}"
        );
        if status == 200 {
            assert_eq!(response.header("content-type"), "text/x-own", "{uri}");
        }
    }
}

#[tokio::test]
async fn not_modified_has_no_headers_about_a_body() {
    let site = TestSite::new(&[("a.txt", "hello")]);
    let service = site.serve();
    let whole = get(&service, "/a.txt").await;
    let response = get_with(
        &service,
        "/a.txt",
        &[("if-none-match", whole.header("etag"))],
    )
    .await;
    assert_eq!(response.status, StatusCode::NOT_MODIFIED);
    assert!(response.body.is_empty());
    for name in ["etag", "last-modified", "vary"] {
        assert_eq!(response.header(name), whole.header(name));
    }
    for name in ["content-type", "content-length", "accept-ranges"] {
        assert_eq!(response.header(name), "", "{name}");
    }
}

#[tokio::test]
async fn dates_that_http_cannot_express_are_left_out() {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
    let site = TestSite::new(&[("old", "x"), ("future", "x"), ("epoch", "x")]);
    for (name, seconds) in [
        ("old", -1_000_000_000),
        ("future", 4_000_000_000),
        ("epoch", 0),
    ] {
        let time = Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(CWD, site.path(name), &times, AtFlags::empty()).unwrap();
    }
    let service = site.builder().listing(true).build().unwrap();
    assert_eq!(get(&service, "/old").await.header("last-modified"), "");
    assert_eq!(get(&service, "/future").await.header("last-modified"), "");
    let epoch = get(&service, "/epoch").await;
    assert_eq!(
        epoch.header("last-modified"),
        "Thu, 01 Jan 1970 00:00:00 GMT"
    );
    assert_eq!(get(&service, "/").await.status, StatusCode::OK);
    let since = [("if-modified-since", "Thu, 01 Jan 1970 00:00:00 GMT")];
    assert_eq!(
        get_with(&service, "/old", &since).await.status,
        StatusCode::OK
    );
    assert_eq!(
        get_with(&service, "/epoch", &since).await.status,
        StatusCode::NOT_MODIFIED
    );
}

#[tokio::test]
async fn a_single_file_is_served_at_the_root_and_at_its_name() {
    let site = TestSite::new(&[
        ("my file.iso", "image"),
        ("other", "no"),
        ("sub/index.html", "no"),
    ]);
    std::os::unix::fs::symlink("my file.iso", site.path(".current.iso")).unwrap();
    for name in ["my file.iso", ".current.iso"] {
        let service = ServeFiles::new(site.path(name)).unwrap();
        let own = format!("/{}", name.replace(' ', "%20"));
        for uri in ["/", &own] {
            let response = get(&service, uri).await;
            assert_eq!(
                (response.status, response.text()),
                (StatusCode::OK, "image"),
                "{uri}"
            );
            assert_eq!(response.header("content-type"), "application/octet-stream");
        }
        let with_slash = format!("{own}/");
        for uri in ["/other", "/sub/", "/sub", "/../root/other", &with_slash] {
            assert_eq!(
                get(&service, uri).await.status,
                StatusCode::NOT_FOUND,
                "{uri}"
            );
        }
    }
    site.write("image2", "another");
    std::fs::remove_file(site.path(".current.iso")).unwrap();
    let service = ServeFiles::new(site.path("my file.iso")).unwrap();
    assert_eq!(get(&service, "/").await.text(), "image");
    site.replace("my file.iso", "newer");
    assert_eq!(get(&service, "/").await.text(), "newer");
}

#[test]
fn invalid_configurations_are_refused_with_a_reason() {
    let site = TestSite::new(&[("a.txt", "hello"), ("dir/b", "")]);
    std::fs::write(site.root().join("../outside.html"), "").unwrap();
    let status = StatusCode::NOT_FOUND;
    let value = HeaderValue::from_static("0");
    let builder = || site.builder();
    for (builder, kind, reason) in [
        (
            ServeFiles::builder(site.path("no")),
            std::io::ErrorKind::NotFound,
            "cannot serve",
        ),
        (
            ServeFiles::builder("/dev/null"),
            std::io::ErrorKind::InvalidInput,
            "neither",
        ),
        (
            builder().index(["a/b"]),
            std::io::ErrorKind::InvalidInput,
            "plain file name",
        ),
        (
            builder().index([".."]),
            std::io::ErrorKind::InvalidInput,
            "plain file name",
        ),
        (
            builder().fallback("no.html"),
            std::io::ErrorKind::NotFound,
            "no.html",
        ),
        (
            builder().fallback("../outside.html"),
            std::io::ErrorKind::NotFound,
            "beneath",
        ),
        (
            builder().fallback("dir"),
            std::io::ErrorKind::InvalidInput,
            "not a regular file",
        ),
        (
            builder().error_page(status, "no.html"),
            std::io::ErrorKind::NotFound,
            "no.html",
        ),
        (
            builder().error_page(StatusCode::OK, "a.txt"),
            std::io::ErrorKind::InvalidInput,
            "400",
        ),
        (
            builder().header(CONTENT_LENGTH, value),
            std::io::ErrorKind::InvalidInput,
            "header",
        ),
    ] {
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[tokio::test]
async fn types_follow_the_extension_and_the_configuration() {
    let gzip = HeaderValue::from_static("application/gzip");
    let own = HeaderValue::from_static("text/x-own; charset=latin1");
    let names = ["a.mjs", "a.svgz", "a.OWN", "a.own.br", "own"];
    let files = names.map(|name| (name, "content"));
    let site = TestSite::new(&files);
    let service = site.builder().media_type("own", own).build().unwrap();
    for (uri, media_type, encoding) in [
        ("/a.mjs", "text/javascript; charset=utf-8", ""),
        ("/a.svgz", "image/svg+xml; charset=utf-8", "gzip"),
        ("/a.OWN", "text/x-own; charset=latin1", ""),
        ("/own", "application/octet-stream", ""),
    ] {
        let response = get(&service, uri).await;
        assert_eq!(response.header("content-type"), media_type, "{uri}");
        assert_eq!(response.header("content-encoding"), encoding, "{uri}");
        assert_eq!(response.text(), "content", "{uri}");
    }
    let vary = get(&service, "/a.svgz").await;
    assert_eq!(vary.header("vary"), "", "the coding is not negotiated");
    let etag = [("if-none-match", vary.header("etag"))];
    let not_modified = get_with(&service, "/a.svgz", &etag).await;
    assert_eq!(not_modified.header("content-encoding"), "");
    let service = site.builder().media_type("svgz", gzip).build().unwrap();
    let response = get(&service, "/a.svgz").await;
    assert_eq!(response.header("content-type"), "application/gzip");
    assert_eq!(response.header("content-encoding"), "");
    for (extension, value) in [("", "a/b"), ("a/b", "a/b"), ("a", "text")] {
        let value = HeaderValue::from_static(value);
        let error = site.builder().media_type(extension, value).build();
        let error = error.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput, "{error}");
    }
}
