//! Precompressed files: for `app.js`, the service may send `app.js.br`, `app.js.zst` or
//! `app.js.gz` to a client that accepts the coding.

use std::os::unix::fs::symlink;
use std::time::{Duration, UNIX_EPOCH};

use http::{Method, StatusCode};

use crate::test_site::{TestSite, get, get_with, send};

fn site() -> TestSite {
    TestSite::new(&[
        ("app.js", "plain"),
        ("app.js.br", "brotli"),
        ("app.js.zst", "zstd"),
        ("app.js.gz", "gzip"),
        ("only.css", "plain"),
        ("only.css.gz", "gzip"),
        ("photo.png", "plain"),
        ("photo.png.gz", "gzip"),
        ("dir/index.html", "plain"),
        ("dir/index.html.br", "brotli"),
    ])
}

#[tokio::test]
async fn the_weights_of_the_client_choose_the_precompressed_file() {
    let site = site();
    let service = site.serve();
    for (uri, accept, chosen) in [
        ("/app.js", "gzip, deflate, br, zstd", "br"),
        ("/app.js", "gzip, zstd", "zstd"),
        ("/app.js", "br;q=0.1, gzip;q=0.9", "gzip"),
        ("/app.js", "br;q=0, zstd;q=0, *", "gzip"),
        ("/app.js", "identity, br;q=0.5", ""),
        ("/app.js", "identity", ""),
        ("/app.js", "", ""),
        ("/app.js", "deflate", ""),
        ("/only.css", "br, gzip", "gzip"),
        ("/only.css", "br", ""),
        ("/only.css", "identity;q=0, br", ""),
        ("/dir/", "br", "br"),
        ("/dir/index.html", "br", "br"),
    ] {
        for _ in 0..2 {
            let response = get_with(&service, uri, &[("accept-encoding", accept)]).await;
            assert_eq!(response.status, StatusCode::OK);
            assert_eq!(
                response.header("content-encoding"),
                chosen,
                "{uri} {accept}"
            );
            let content = match chosen {
                "" => "plain",
                "br" => "brotli",
                chosen => chosen,
            };
            assert_eq!(response.text(), content);
            assert_eq!(response.header("content-length"), content.len().to_string());
            assert_eq!(response.header("vary"), "accept-encoding");
            let media = response.header("content-type");
            assert!(
                media.starts_with("text/"),
                "the original's type, not {media}"
            );
        }
    }
}

#[tokio::test]
async fn vary_is_also_sent_to_clients_that_accept_no_coding() {
    let site = site();
    let service = site.serve();
    let response = get(&service, "/app.js").await;
    assert_eq!(
        (response.header("vary"), response.header("content-encoding")),
        ("accept-encoding", "")
    );
    let etag = response.header("etag").to_owned();
    let not_modified = get_with(&service, "/app.js", &[("if-none-match", &etag)]).await;
    assert_eq!(not_modified.status, StatusCode::NOT_MODIFIED);
    assert_eq!(not_modified.header("vary"), "accept-encoding");
}

#[tokio::test]
async fn precompressed_files_of_compressed_formats_are_not_looked_up() {
    let site = site();
    let service = site.serve();
    let response = get_with(&service, "/photo.png", &[("accept-encoding", "gzip")]).await;
    assert_eq!((response.text(), response.header("vary")), ("plain", ""));
    let response = get_with(&service, "/app.js.gz", &[("accept-encoding", "gzip")]).await;
    assert_eq!(response.text(), "gzip");
    assert_eq!(
        (response.header("content-encoding"), response.header("vary")),
        ("", "")
    );
    assert_eq!(response.header("content-type"), "application/gzip");
}

#[tokio::test]
async fn the_look_up_can_be_turned_off() {
    let site = site();
    let service = site.builder().precompressed(false).build().unwrap();
    let response = get_with(&service, "/app.js", &[("accept-encoding", "br")]).await;
    assert_eq!((response.text(), response.header("vary")), ("plain", ""));
}

#[tokio::test]
async fn each_representation_has_its_own_tag() {
    let site = site();
    let service = site.serve();
    let tag = async |accept| {
        let headers = [("accept-encoding", accept)];
        get_with(&service, "/app.js", &headers)
            .await
            .header("etag")
            .to_owned()
    };
    let (plain, brotli, gzip) = (tag("identity").await, tag("br").await, tag("gzip").await);
    assert!(plain != brotli && brotli != gzip && gzip != plain);
    let headers = [("accept-encoding", "br"), ("if-none-match", &plain)];
    assert_eq!(
        get_with(&service, "/app.js", &headers).await.status,
        StatusCode::OK
    );
    let headers = [("accept-encoding", "br"), ("if-none-match", &brotli)];
    let response = send(&service, Method::GET, "/app.js", &headers).await;
    assert_eq!(response.status, StatusCode::NOT_MODIFIED);
    assert_eq!(
        (response.header("etag"), response.header("content-encoding")),
        (&*brotli, "")
    );
}

#[tokio::test]
async fn precompressed_files_that_may_not_be_served_are_ignored() {
    let site = TestSite::new(&[
        ("a.txt", "plain"),
        ("a.txt.zst/file", ""),
        ("b.txt.gz", "alone"),
    ]);
    std::fs::write(site.root().join("../secret"), "secret").unwrap();
    symlink("../secret", site.path("a.txt.br")).unwrap();
    site.create_fifo("a.txt.gz");
    let service = site.serve();
    let all = [("accept-encoding", "br, zstd, gzip")];
    assert_eq!(get_with(&service, "/a.txt", &all).await.text(), "plain");
    // `b.txt` itself does not exist, so `b.txt.gz` must not be served in its place.
    assert_eq!(
        get_with(&service, "/b.txt", &all).await.status,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn precompressed_files_are_added_and_removed_between_requests() {
    let site = TestSite::new(&[("a.txt", "plain")]);
    let service = site.serve();
    let gzip = [("accept-encoding", "gzip")];
    // Test with a directory that has just changed, and with a stable one, because only for a stable
    // directory does the service remember that a precompressed file is absent.
    for is_stable in [false, true] {
        if is_stable {
            site.wait_until_stable(".");
        }
        for _ in 0..3 {
            assert_eq!(get_with(&service, "/a.txt", &gzip).await.text(), "plain");
        }
        site.write("a.txt.gz", "packed");
        assert_eq!(get_with(&service, "/a.txt", &gzip).await.text(), "packed");
        site.replace("a.txt.gz", "packer");
        assert_eq!(get_with(&service, "/a.txt", &gzip).await.text(), "packer");
        std::fs::remove_file(site.path("a.txt.gz")).unwrap();
        assert_eq!(get_with(&service, "/a.txt", &gzip).await.text(), "plain");
    }
    std::fs::remove_file(site.path("a.txt")).unwrap();
    let gone = get_with(&service, "/a.txt", &gzip).await;
    assert_eq!(gone.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_precompressed_file_behind_a_link_may_appear_without_a_change_to_its_directory() {
    let site = TestSite::new(&[("a.txt", "plain"), ("packed/other", "")]);
    symlink("packed/a.gz", site.path("a.txt.gz")).unwrap();
    site.wait_until_stable(".");
    let service = site.serve();
    let gzip = [("accept-encoding", "gzip")];
    for _ in 0..2 {
        assert_eq!(get_with(&service, "/a.txt", &gzip).await.text(), "plain");
    }
    site.write("packed/a.gz", "packed");
    assert_eq!(get_with(&service, "/a.txt", &gzip).await.text(), "packed");
}

/// Such a file is left over from an earlier version of the original.
#[tokio::test]
async fn a_precompressed_file_that_is_older_than_its_original_is_not_sent() {
    let site = TestSite::new(&[
        ("a.txt", "plain"),
        ("a.txt.br", "brotli"),
        ("a.txt.gz", "gzip"),
    ]);
    let set = |name, seconds: u64, nanos| {
        let file = std::fs::File::options().write(true).open(site.path(name));
        let time = UNIX_EPOCH + Duration::new(1_700_000_000 + seconds, nanos);
        file.unwrap().set_modified(time).unwrap();
    };
    let service = site.serve();
    set("a.txt", 10, 123_456_789);
    for (brotli, gzip, expected) in [
        ((10, 123_456_789), (10, 123_456_789), "brotli"),
        ((11, 0), (9, 0), "brotli"),
        ((10, 123_456_000), (9, 0), "brotli"),
        ((10, 0), (9, 0), "brotli"),
        ((9, 999_999_999), (10, 123_456_790), "gzip"),
        ((10, 123_456_788), (10, 123_455_000), "plain"),
        ((9, 0), (0, 0), "plain"),
    ] {
        set("a.txt.br", brotli.0, brotli.1);
        set("a.txt.gz", gzip.0, gzip.1);
        for _ in 0..2 {
            let both = [("accept-encoding", "br, gzip")];
            let response = get_with(&service, "/a.txt", &both).await;
            assert_eq!(response.text(), expected, "{brotli:?} {gzip:?}");
            assert_eq!(response.header("vary"), "accept-encoding");
        }
    }
}
