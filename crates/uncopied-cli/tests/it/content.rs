//! Tests of the content of responses: bytes, headers, index files, fallback and error pages.

use std::fs;

use crate::client::{connect, get};
use crate::data::test_bytes;
use crate::server::{BIG_FILE_BYTES, Server, site};

#[test]
fn every_mechanism_sends_the_same_bytes() {
    let site = site();
    let bytes = test_bytes(12_000_004);
    fs::write(site.path().join("bytes"), &bytes).unwrap();
    for mechanism in ["auto", "sendfile", "splice", "mmap_write", "copy"] {
        let server = Server::start(site.path(), &["--mechanism", mechanism]);
        let mut stream = connect(server.address());
        let response = get(&mut stream, "/bytes");
        assert!(response.body == bytes, "{mechanism}: wrong bytes");
        let exit = server.stop();
        let totals = exit.stderr.last().unwrap();
        let sent = bytes.len() + response.head.len();
        assert!(
            totals.contains(&format!(" 1 request, {sent} bytes sent: ")),
            "{totals}"
        );
    }
}

#[test]
fn a_single_file_can_be_served() {
    let site = site();
    let server = Server::start(&site.path().join("big"), &[]);
    assert_eq!(
        get(&mut connect(server.address()), "/").body.len(),
        BIG_FILE_BYTES
    );
}

#[test]
fn index_names_are_tried_in_order() {
    let site = site();
    let flags = ["--index", "none.html", "--index", "index.html"];
    fs::write(site.path().join("none.html"), "first\n").unwrap();
    let server = Server::start(site.path(), &flags);
    assert_eq!(get(&mut connect(server.address()), "/").body, b"first\n");
}

#[test]
fn every_response_has_the_configured_headers() {
    let site = site();
    let flags = ["--header", "X-A: b: c", "--cache-control", "max-age=60"];
    let server = Server::start(site.path(), &flags);
    let mut stream = connect(server.address());
    let response = get(&mut stream, "/");
    assert_eq!(response.header("x-a"), Some("b: c"));
    assert_eq!(response.header("cache-control"), Some("max-age=60"));
    let missing = get(&mut stream, "/missing");
    assert_eq!((missing.status, missing.header("x-a")), (404, Some("b: c")));
}

#[test]
fn fallback_and_error_pages_are_files_of_the_site() {
    let site = site();
    fs::write(site.path().join("app.html"), "app\n").unwrap();
    let server = Server::start(site.path(), &["--spa", "app.html"]);
    let response = get(&mut connect(server.address()), "/route/42");
    assert_eq!((response.status, &response.body[..]), (200, &b"app\n"[..]));
    let server = Server::start(site.path(), &["--error-page", "404=app.html"]);
    let response = get(&mut connect(server.address()), "/route/42");
    assert_eq!((response.status, &response.body[..]), (404, &b"app\n"[..]));
}
