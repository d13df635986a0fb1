//! The service never responds from a stale entry of the cache of open files, and the size of the
//! cache is bounded.

use std::future::Future;
use std::path::Path;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body_util::BodyExt as _;
use uncopied_http::{EntityTags, FileBody, RequestTarget, ServeFiles};

use crate::test_site::{TestSite, get, get_with, send};

/// Returns how many descriptors of this process refer to files beneath `root`, including files that
/// have been removed.
fn count_open_beneath(root: &Path) -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap();
    let is_beneath = |link: &Path| link.starts_with(root) && link != root;
    links
        .filter_map(|link| std::fs::read_link(link.unwrap().path()).ok())
        .filter(|link| is_beneath(link))
        .count()
}

#[tokio::test]
async fn a_replaced_file_is_picked_up_by_the_next_request() {
    let site = TestSite::new(&[("a.txt", "first"), ("dir/index.html", "first")]);
    let service = site.serve();
    // Test first with files that changed only a moment ago, and then with stable files. The service
    // caches the bytes of a file only if the file is stable. Otherwise, a further change might
    // leave the timestamps as they are, so the service could not detect it.
    for is_stable in [false, true] {
        for (file, uri) in [("a.txt", "/a.txt"), ("dir/index.html", "/dir/")] {
            if is_stable {
                site.wait_until_stable(file);
            }
            let before = get(&service, uri).await;
            site.replace(file, "other");
            let after = get(&service, uri).await;
            assert_eq!(after.text(), "other", "same size, renamed over");
            assert_ne!(after.header("etag"), before.header("etag"));
            site.replace(file, "much longer");
            assert_eq!(get(&service, uri).await.text(), "much longer");
            site.replace(file, "first");
        }
    }
}

#[tokio::test]
async fn a_file_rewritten_in_place_is_picked_up_by_the_next_request() {
    let site = TestSite::new(&[("a.txt", "aaaaa")]);
    let service = site.serve();
    for is_stable in [true, false] {
        if is_stable {
            site.wait_until_stable("a.txt");
        }
        for content in ["bbbbb", "ccccc", "longer", "", "aaaaa"] {
            assert_eq!(get(&service, "/a.txt").await.status, StatusCode::OK);
            site.write("a.txt", content);
            let response = get(&service, "/a.txt").await;
            assert_eq!(response.text(), content);
            assert_eq!(response.header("content-length"), content.len().to_string());
        }
    }
}

#[tokio::test]
async fn a_removed_file_is_not_found_and_its_descriptor_is_closed() {
    let site = TestSite::new(&[("a.txt", "x")]);
    site.wait_until_stable("a.txt");
    let service = site.builder().in_memory_max_bytes(0).build().unwrap();
    assert_eq!(get(&service, "/a.txt").await.text(), "x");
    assert_eq!(count_open_beneath(&site.root()), 1, "kept open");
    std::fs::remove_file(site.path("a.txt")).unwrap();
    assert_eq!(get(&service, "/a.txt").await.status, StatusCode::NOT_FOUND);
    assert_eq!(count_open_beneath(&site.root()), 0);
    site.write("a.txt", "back");
    assert_eq!(get(&service, "/a.txt").await.text(), "back");
}

#[tokio::test]
async fn a_file_whose_permissions_change_gets_a_new_strict_tag() {
    use std::os::unix::fs::PermissionsExt;
    let site = TestSite::new(&[("a.txt", "x")]);
    site.wait_until_stable("a.txt");
    let builder = site.builder().entity_tags(EntityTags::Strict);
    let service = builder.build().unwrap();
    let before = get(&service, "/a.txt").await;
    let mode = std::fs::Permissions::from_mode(0o400);
    std::fs::set_permissions(site.path("a.txt"), mode).unwrap();
    let after = get(&service, "/a.txt").await;
    assert_ne!(after.header("etag"), before.header("etag"));
}

#[tokio::test]
async fn the_number_of_open_files_is_bounded() {
    let names: Vec<_> = (0..300).map(|at| format!("{at}.txt")).collect();
    let files: Vec<_> = names
        .iter()
        .map(|name| (name.as_str(), name.as_str()))
        .collect();
    let site = TestSite::new(&files);
    site.wait_until_stable("299.txt");
    for (max_open, min_open) in [(0, 0), (1, 1), (10, 5), (100, 50)] {
        let service = site
            .builder()
            .max_open_files(max_open)
            .in_memory_max_bytes(0)
            .build()
            .unwrap();
        for (at, name) in names.iter().chain(&names).enumerate() {
            let response = get(&service, &format!("/{name}")).await;
            assert_eq!(response.text(), name);
            assert!(at % 25 > 0 || count_open_beneath(&site.root()) <= max_open);
        }
        assert!(
            count_open_beneath(&site.root()) >= min_open,
            "{max_open} may stay open"
        );
        drop(service);
        assert_eq!(count_open_beneath(&site.root()), 0, "nothing is left open");
    }
}

#[tokio::test]
async fn a_response_outlives_its_place_in_the_cache() {
    use http_body_util::BodyExt;
    use tower::ServiceExt;
    let site = TestSite::new(&[("a.txt", "the old bytes"), ("b.txt", "b")]);
    site.wait_until_stable("b.txt");
    let service = site.builder().max_open_files(1).build().unwrap();
    let request = http::Request::get("/a.txt").body(String::new()).unwrap();
    let response = service.clone().oneshot(request).await.unwrap();
    site.replace("a.txt", "new");
    assert_eq!(get(&service, "/b.txt").await.text(), "b");
    assert_eq!(get(&service, "/a.txt").await.text(), "new");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "the old bytes");
}

#[tokio::test]
async fn keys_of_paths_pages_and_precompressed_files_do_not_collide() {
    let site = TestSite::new(&[
        ("a.txt", "x"),
        ("page:a.txt", "page"),
        ("precompressed:a.txt.gz", "precompressed"),
    ]);
    site.wait_until_stable("a.txt");
    let service = site.builder().fallback("a.txt").build().unwrap();
    for _ in 0..2 {
        assert_eq!(get(&service, "/a.txt").await.text(), "x");
        assert_eq!(get(&service, "/%61.txt").await.text(), "x");
        assert_eq!(get(&service, "/page:a.txt").await.text(), "page");
        assert_eq!(
            get(&service, "/precompressed:a.txt.gz").await.text(),
            "precompressed"
        );
        assert_eq!(get(&service, "/missing").await.text(), "x");
        let gzip = [("accept-encoding", "gzip")];
        assert_eq!(get_with(&service, "/a.txt", &gzip).await.text(), "x");
    }
}

#[test]
fn the_service_works_outside_any_runtime() {
    use std::task::{Context, Poll, Waker};
    let site = TestSite::new(&[("dir/a.txt", "x")]);
    let service = site.builder().listing(true).build().unwrap();
    for uri in ["/dir/a.txt", "/dir/"] {
        let request = http::Request::get(uri).body(()).unwrap();
        let mut future = std::pin::pin!(service.respond(request));
        let Poll::Ready(Ok(response)) = future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        else {
            panic!("{uri} is not ready");
        };
        assert_eq!(response.status(), StatusCode::OK);
    }
}

#[test]
fn listings_use_the_blocking_pool_and_files_do_not() {
    use std::sync::mpsc::channel;
    use std::task::{Context, Waker};
    let site = TestSite::new(&[("dir/a.txt", "x")]);
    let service = site.builder().listing(true).build().unwrap();
    // Allow the blocking pool only one thread, so that a single task can keep the pool busy until
    // `release` is dropped.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(1)
        .build()
        .unwrap();
    let (release, busy) = channel::<()>();
    runtime.block_on(async {
        tokio::task::spawn_blocking(move || busy.recv());
        let get = |uri| service.respond(http::Request::get(uri).body(()).unwrap());
        let (mut listing, mut file) = (Box::pin(get("/dir/")), Box::pin(get("/dir/a.txt")));
        let mut context = Context::from_waker(Waker::noop());
        assert!(listing.as_mut().poll(&mut context).is_pending());
        assert!(file.as_mut().poll(&mut context).is_ready());
        drop(release);
        let Ok(response) = listing.await;
        assert_eq!(response.status(), StatusCode::OK);
    });
}

/// A server that reads and writes HTTP/1.1 itself gets the same responses as one that uses the
/// service, whether or not the file is in the cache.
#[tokio::test]
async fn responses_for_a_server_of_its_own_are_those_of_the_service() {
    let long = "long".repeat(100_000);
    let site = TestSite::new(&[("a.txt", "first"), ("long", &long)]);
    site.wait_until_stable("long");
    let service = site.serve();
    for (method, uri, fields) in [
        ("GET", "/a.txt", &[][..]),
        ("HEAD", "/a.txt", &[]),
        ("GET", "/long", &[("accept-encoding", "gzip")]),
        ("GET", "/long", &[("range", "bytes=1-2")]),
        ("GET", "/long", &[("range", "bytes=1-2,5-6")]),
        ("GET", "/a.txt", &[("if-none-match", "*")]),
        ("GET", "/nowhere", &[]),
        ("PUT", "/a.txt", &[]),
    ] {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.insert(*name, HeaderValue::from_static(value));
        }
        for _ in 0..3 {
            // This request opens the file, if it is not open yet.
            let known_method = Method::try_from(method).unwrap();
            let expected = send(&service, known_method, uri, fields).await;

            let target = RequestTarget::new(method, uri, None);
            let cached = service.cached(target);
            let response = service.try_respond(target, &headers, cached).unwrap();
            let status = response.status();
            let mut head = Vec::new();
            response.write_fields(&mut head);
            let head = String::from_utf8(head).unwrap();
            let body = text(response.into_body()).await;
            assert_eq!(status, expected.status, "{method} {uri} {fields:?}");
            let is_random = head.contains("multipart");
            for (name, value) in &expected.headers {
                let line = format!("{name}: {}\r\n", value.to_str().unwrap());
                let is_there = head.contains(&line);
                assert!(
                    is_there || is_random && name == "content-type",
                    "{line}{head}"
                );
            }
            assert_eq!(head.lines().count(), expected.headers.len(), "{head}");
            if !is_random {
                assert_eq!(body, expected.body, "{method} {uri} {fields:?}");
            }
        }
    }
}

async fn text(body: FileBody) -> Bytes {
    body.collect().await.unwrap().to_bytes()
}

/// Returns the text of the response to each of `requests`, all of which arrive before `meanwhile`
/// and get their responses after it, together.
async fn texts_of_a_group<const N: usize>(
    requests: [(&ServeFiles, &str); N],
    meanwhile: impl FnOnce(),
) -> [Bytes; N] {
    let respond = |(service, uri): (&ServeFiles, _), cached| {
        service.try_respond(
            RequestTarget::new("GET", uri, None),
            &HeaderMap::new(),
            cached,
        )
    };
    let cached =
        |(service, uri): (&ServeFiles, _)| service.cached(RequestTarget::new("GET", uri, None));
    // Requests form groups only while that pays off. So send pairs of equal requests until it does.
    let mut first = cached(requests[0]);
    while first.as_ref().is_none_or(|file| !file.must_yield()) {
        let second = cached(requests[0]);
        drop(respond(requests[0], first));
        drop(respond(requests[0], second));
        first = cached(requests[0]);
    }
    let mut members = vec![first];
    members.extend(requests[1..].iter().map(|request| cached(*request)));
    assert!(members.iter().all(Option::is_some));
    meanwhile();
    let mut texts = [const { Bytes::new() }; N];
    for (at, member) in members.into_iter().enumerate() {
        let response = respond(requests[at], member).unwrap();
        texts[at] = text(response.into_body()).await;
    }
    texts
}

/// Requests that wait together share the look-up of the directory that their files are in.
#[tokio::test]
async fn each_file_of_a_group_is_checked_even_if_all_are_in_one_directory() {
    let files = |site| [("dir/a", "a"), ("dir/b", "b"), ("dir/site", site)];
    let (one, two) = (TestSite::new(&files("one")), TestSite::new(&files("two")));
    std::os::unix::fs::symlink("b", one.path("dir/link")).unwrap();
    two.wait_until_stable("dir/site");
    let (first, second) = (one.serve(), two.serve());
    let paths = ["/dir/a", "/dir/b", "/dir/site", "/dir/link"];
    for uri in paths {
        get(&first, uri).await;
        get(&second, uri).await;
    }
    let of_first = paths.map(|uri| (&first, uri));
    let requests = [of_first[0], of_first[1], of_first[2], of_first[3]];

    let texts = texts_of_a_group(requests, || ()).await;
    assert_eq!(texts, ["a", "b", "one", "b"]);

    // Equal paths in different sites are different files.
    let mixed = [of_first[2], (&second, paths[2])];
    let texts = texts_of_a_group(mixed, || ()).await;
    assert_eq!(texts, ["one", "two"]);

    let texts = texts_of_a_group(requests, || one.replace("dir/b", "new")).await;
    assert_eq!(texts, ["a", "new", "one", "new"]);

    let texts = texts_of_a_group([of_first[0], of_first[2]], || {
        let outside = one.root().with_file_name("outside");
        std::fs::rename(one.path("dir"), &outside).unwrap();
        std::os::unix::fs::symlink(&outside, one.path("dir")).unwrap();
    });
    assert_eq!(
        texts.await,
        ["404 Not Found\n"; 2],
        "a link leads out of the root"
    );
}
