//! Bytes, headers, index, fallback and error pages.

use std::fs;

use crate::client::{connect, get};
use crate::server::{BIG, Server, site};

#[test]
fn every_mechanism_sends_the_same_bytes() {
    let site = site();
    let bytes: Vec<u8> = (0..3_000_001_u32)
        .flat_map(|i| (i % 251).to_le_bytes())
        .collect();
    fs::write(site.path().join("bytes"), &bytes).unwrap();
    for mechanism in ["auto", "sendfile", "splice", "mmap_write", "copy"] {
        let server = Server::start(site.path(), &["--mechanism", mechanism]);
        let mut stream = connect(server.address());
        let answer = get(&mut stream, "/bytes");
        assert!(answer.body == bytes, "{mechanism}: other bytes");
        let end = server.stop();
        let totals = end.said.last().unwrap();
        let sent = bytes.len() + answer.head.len();
        assert!(
            totals.contains(&format!(" 1 requests, {sent} bytes sent: ")),
            "{totals}"
        );
    }
}

#[test]
fn a_single_file_can_be_served() {
    let site = site();
    let server = Server::start(&site.path().join("big"), &[]);
    assert_eq!(get(&mut connect(server.address()), "/").body.len(), BIG);
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
fn headers_are_on_every_answer() {
    let site = site();
    let flags = ["--header", "X-A: b: c", "--cache-control", "max-age=60"];
    let server = Server::start(site.path(), &flags);
    let mut stream = connect(server.address());
    let answer = get(&mut stream, "/");
    assert_eq!(answer.header("x-a"), Some("b: c"));
    assert_eq!(answer.header("cache-control"), Some("max-age=60"));
    let missing = get(&mut stream, "/missing");
    assert_eq!((missing.status, missing.header("x-a")), (404, Some("b: c")));
}

#[test]
fn a_fallback_and_error_pages_are_files_of_the_site() {
    let site = site();
    fs::write(site.path().join("app.html"), "app\n").unwrap();
    let server = Server::start(site.path(), &["--spa", "app.html"]);
    let answer = get(&mut connect(server.address()), "/route/42");
    assert_eq!((answer.status, &answer.body[..]), (200, &b"app\n"[..]));
    let server = Server::start(site.path(), &["--error-page", "404=app.html"]);
    let answer = get(&mut connect(server.address()), "/route/42");
    assert_eq!((answer.status, &answer.body[..]), (404, &b"app\n"[..]));
}
