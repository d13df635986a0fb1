//! Servers that break the protocol.

use std::fs;
use std::io::Write as _;

use super::scripted::{Scripted, Then, header};
use super::{get_fails, get_ok, names};

#[test]
fn a_broken_response_is_an_error_and_leaves_no_file() {
    let ok = "HTTP/1.1 200 OK\r\n";
    let storm = "HTTP/1.1 103 Hints\r\n\r\n".repeat(17);
    let endless = format!("{ok}{}", "A: b\r\n".repeat(20_000));
    let long_line = format!("{ok}A: {}", "b".repeat(100_000));
    let cases: &[(&str, String, &str)] = &[
        (
            "short",
            format!("{ok}Content-Length: 10\r\n\r\nabc"),
            "after 3 of 10 bytes",
        ),
        (
            "long",
            format!("{ok}Content-Length: 3\r\n\r\nabcd"),
            "more bytes",
        ),
        (
            "two lengths",
            format!("{ok}Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
            "two Content-Lengths",
        ),
        (
            "both",
            format!("{ok}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            "both",
        ),
        (
            "coding",
            format!("{ok}Transfer-Encoding: gzip\r\n\r\nabc"),
            "not chunked",
        ),
        (
            "storm",
            format!("{storm}{ok}Content-Length: 3\r\n\r\nabc"),
            "interim",
        ),
        (
            "upgrade",
            "HTTP/1.1 101 Switch\r\n\r\n".to_owned(),
            "another protocol",
        ),
        ("endless head", endless, "256 headers"),
        ("long line", long_line, "longer than 64 KiB"),
        ("no head", String::new(), "without a response"),
        ("cut head", format!("{ok}A: b\r\n"), "without a response"),
        (
            "other protocol",
            "SSH-2.0-OpenSSH\r\n".to_owned(),
            "not HTTP/1.1",
        ),
        (
            "range",
            "HTTP/1.1 206 P\r\nContent-Range: bytes 0-2/3\r\nContent-Length: 3\r\n\r\nabc"
                .to_owned(),
            "wrong range",
        ),
        (
            "chunk size",
            format!("{ok}Transfer-Encoding: chunked\r\n\r\nx\r\n"),
            "hexadecimal",
        ),
        (
            "huge chunk",
            format!(
                "{ok}Transfer-Encoding: chunked\r\n\r\n{}\r\n",
                "f".repeat(17)
            ),
            "hexadecimal",
        ),
        (
            "chunk end",
            format!("{ok}Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n"),
            "chunk",
        ),
        (
            "bare line feed",
            format!("{ok}Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n"),
            "CR LF",
        ),
        (
            "long size",
            format!(
                "{ok}Transfer-Encoding: chunked\r\n\r\n3;{}",
                "x".repeat(5000)
            ),
            "too long",
        ),
        (
            "trailers",
            format!(
                "{ok}Transfer-Encoding: chunked\r\n\r\n0\r\n{}",
                "A: b\r\n".repeat(20_000)
            ),
            "too long",
        ),
        (
            "cut chunk",
            format!("{ok}Transfer-Encoding: chunked\r\n\r\n5\r\nabc"),
            "last chunk",
        ),
        (
            "no last chunk",
            format!("{ok}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"),
            "last chunk",
        ),
        (
            "after chunks",
            format!("{ok}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nx"),
            "more bytes",
        ),
        (
            "status",
            "HTTP/1.1 404 No\r\nContent-Length: 3\r\n\r\nabc".to_owned(),
            "status 404",
        ),
        (
            "redirect to nowhere",
            "HTTP/1.1 302 X\r\nContent-Length: 3\r\n\r\nabc".to_owned(),
            "status 302",
        ),
        (
            "redirect to a file",
            "HTTP/1.1 302 X\r\nLocation: file:///etc/passwd\r\n\r\n".to_owned(),
            "only http",
        ),
    ];
    for (name, bytes, words) in cases {
        let server = Scripted::bytes(bytes.as_bytes());
        let directory = tempfile::tempdir().unwrap();
        let url = server.url("f");
        let stderr = get_fails(directory.path(), &[&url, "--retries", "0"], &[words]);
        assert_eq!(names(directory.path()), [""; 0], "{name}: {stderr}");
    }
}

#[test]
fn redirects_end() {
    let server = Scripted::start(|_, socket, number| {
        let head = format!("HTTP/1.1 302 X\r\nLocation: /{number}\r\nContent-Length: 0\r\n\r\n");
        socket.write_all(head.as_bytes()).unwrap();
        Then::KeepAlive
    });
    let directory = tempfile::tempdir().unwrap();
    get_fails(
        directory.path(),
        &[&server.url("f"), "--max-redirects", "3"],
        &["more than 3 redirects"],
    );
    assert_eq!(server.heads().len(), 4);
}

#[test]
fn a_coded_body_is_saved_as_it_is() {
    let head = "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n";
    let server = Scripted::bytes([head.as_bytes(), b"\x1f\x8b\x08\x00"].concat());
    let directory = tempfile::tempdir().unwrap();
    get_ok(directory.path(), &[&server.url("f.gz")]);
    let saved = fs::read(directory.path().join("f.gz")).unwrap();
    assert_eq!(saved, b"\x1f\x8b\x08\x00");
    assert_eq!(
        header(&server.heads()[0], "accept-encoding"),
        Some("identity")
    );
}

#[test]
fn a_resumed_download_never_takes_another_range() {
    for wrong in [
        "bytes 4-9/10",
        "bytes 6-9/10",
        "bytes 5-9/11",
        "bytes 5-8/10",
        "bytes 5-9",
        "x",
    ] {
        let server = Scripted::start(move |head, socket, _| {
            let response = match header(head, "range") {
                None => {
                    "HTTP/1.1 200 OK\r\nETag: \"a\"\r\nContent-Length: 10\r\n\r\n01234".to_owned()
                }
                Some(_) => format!(
                    "HTTP/1.1 206 P\r\nETag: \"a\"\r\nContent-Length: 5\r\n\
                     Content-Range: {wrong}\r\n\r\n56789"
                ),
            };
            socket.write_all(response.as_bytes()).unwrap();
            Then::Close
        });
        let directory = tempfile::tempdir().unwrap();
        get_fails(
            directory.path(),
            &[&server.url("f")],
            &["wrong range", "5 bytes are kept"],
        );
        assert_eq!(
            names(directory.path()),
            ["f.part", "f.part.json"],
            "{wrong}"
        );
        assert_eq!(fs::read(directory.path().join("f.part")).unwrap(), b"01234");
    }
}

#[test]
fn a_part_of_a_file_of_unknown_length_is_not_taken_as_its_end() {
    let server = Scripted::start(|head, socket, _| {
        let response = match header(head, "range") {
            None => {
                "HTTP/1.1 200 OK\r\nETag: \"a\"\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n"
            }
            Some(_) => {
                "HTTP/1.1 206 P\r\nETag: \"a\"\r\nContent-Length: 2\r\n\
                 Content-Range: bytes 5-6/*\r\n\r\n56"
            }
        };
        socket.write_all(response.as_bytes()).unwrap();
        Then::Close
    });
    let directory = tempfile::tempdir().unwrap();
    get_fails(
        directory.path(),
        &[&server.url("f")],
        &["unknown length", "5 bytes are kept"],
    );
}

#[test]
fn a_chunked_part_that_is_too_long_is_discarded() {
    let server = Scripted::start(|head, socket, _| {
        let response = match header(head, "range") {
            None => "HTTP/1.1 200 OK\r\nETag: \"a\"\r\nContent-Length: 10\r\n\r\n01234",
            Some(_) => {
                "HTTP/1.1 206 P\r\nETag: \"a\"\r\nContent-Range: bytes 5-9/10\r\n\
                 Transfer-Encoding: chunked\r\n\r\n6\r\n56789x\r\n0\r\n\r\n"
            }
        };
        socket.write_all(response.as_bytes()).unwrap();
        Then::Close
    });
    let directory = tempfile::tempdir().unwrap();
    get_fails(directory.path(), &[&server.url("f")], &["more bytes"]);
    assert_eq!(names(directory.path()), [""; 0]);
}
