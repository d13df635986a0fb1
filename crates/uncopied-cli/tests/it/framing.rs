//! Tests that ambiguous requests are refused, and that a body is never parsed as a request.

use std::io::Write as _;

use crate::client::{connect, get, read_response, read_to_close};
use crate::server::{BIG_FILE_BYTES, Server, site};

fn head_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// Sends raw bytes and returns everything received until the server closes the connection.
fn exchange(server: &Server, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(server.address());
    stream.write_all(bytes).unwrap();
    read_to_close(&mut stream)
}

/// Ambiguous or malformed requests, each with a description of its fault.
const AMBIGUOUS_REQUESTS: &[(&str, &str)] = &[
    (
        "two lengths",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n",
    ),
    (
        "one length twice",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
    ),
    (
        "a list of lengths",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\n",
    ),
    (
        "a signed length",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n",
    ),
    (
        "length and coding",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    ),
    (
        "coding and length",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
    ),
    (
        "an unknown coding",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
    ),
    (
        "coding in HTTP/1.0",
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    ),
    (
        "bare LF in the request line",
        "GET / HTTP/1.1\nHost: a\r\n\r\n",
    ),
    (
        "bare LF in a header",
        "GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
    ),
    ("bare LF at the end", "GET / HTTP/1.1\r\nHost: a\r\n\n"),
    ("bare CR", "GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n"),
    (
        "obs-fold",
        "GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n",
    ),
    (
        "space before the colon",
        "GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n",
    ),
    ("empty name", "GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n"),
    ("NUL", "GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n"),
    (
        "control character in the target",
        "GET /\x1b HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
    ("no host", "GET / HTTP/1.1\r\n\r\n"),
    ("two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
];

#[test]
fn ambiguous_requests_get_400_and_the_connection_is_closed() {
    let site = site();
    let server = Server::start(site.path(), &[]);
    for (name, request) in AMBIGUOUS_REQUESTS {
        // Append a second request, which must not get a response.
        let bytes = format!("{request}GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let got = exchange(&server, bytes.as_bytes());
        assert_eq!(head_of(&got), "HTTP/1.1 400 Bad Request", "{name}");
        assert!(
            !got.ends_with(b"hello\n"),
            "{name}: the second request got a response"
        );
    }
    assert_eq!(get(&mut connect(server.address()), "/").status, 200);
}

#[test]
fn ambiguous_requests_are_refused_byte_by_byte_and_when_pipelined() {
    let site = site();
    let server = Server::start(site.path(), &[]);
    let mut stream = connect(server.address());
    for byte in b"GET / HTTP/1.1\r\nHost: a\n" {
        stream.write_all(&[*byte]).unwrap();
    }
    // The server must refuse the head before its end has arrived.
    assert_eq!(
        head_of(&read_to_close(&mut stream)),
        "HTTP/1.1 400 Bad Request"
    );
    let good = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let got = exchange(
        &server,
        format!("{good}{good}GET / HTTP/1.1\nHost: a\r\n\r\n").as_bytes(),
    );
    let got = String::from_utf8(got).unwrap();
    assert_eq!(got.matches("HTTP/1.1 200 OK").count(), 2, "{got}");
    assert_eq!(got.matches("HTTP/1.1 400 Bad Request").count(), 1, "{got}");
}

#[test]
fn a_body_is_never_read_as_the_next_request() {
    let site = site();
    let server = Server::start(site.path(), &[]);
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let length = smuggled.len();
    for (framing, body) in [
        (format!("Content-Length: {length}"), smuggled.to_owned()),
        (
            "Transfer-Encoding: chunked".to_owned(),
            format!("{length:x}\r\n{smuggled}\r\n0\r\n\r\n"),
        ),
    ] {
        for method in ["GET", "HEAD", "POST", "OPTIONS"] {
            let request = format!("{method} / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n{body}");
            let got = exchange(&server, request.as_bytes());
            let got = String::from_utf8(got).unwrap();
            assert_eq!(
                got.matches("HTTP/1.1 ").count(),
                1,
                "{method} {framing}: {got}"
            );
            assert!(got.to_lowercase().contains("connection: close"), "{got}");
        }
    }
    assert!(
        server
            .stop()
            .stderr
            .last()
            .unwrap()
            .starts_with("uncopied: 8 requests")
    );
}

#[test]
fn ordinary_requests_share_a_connection() {
    let site = site();
    let server = Server::start(site.path(), &[]);
    let mut stream = connect(server.address());
    let request = "\r\nGET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n".repeat(3);
    stream.write_all(request.as_bytes()).unwrap();
    for _ in 0..3 {
        assert_eq!(read_response(&mut stream).unwrap().body, b"hello\n");
    }
    assert_eq!(get(&mut stream, "/missing").status, 404);
}

#[test]
fn heads_have_limits() {
    let site = site();
    let server = Server::start(site.path(), &[]);
    let long = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
        "a".repeat(16 << 10)
    );
    let many = format!(
        "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
        "X: a\r\n".repeat(100)
    );
    for request in [long, many] {
        let got = exchange(&server, request.as_bytes());
        assert!(
            head_of(&got).starts_with("HTTP/1.1 431 "),
            "{}",
            head_of(&got)
        );
    }
    let most = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: a\r\n".repeat(99));
    let mut stream = connect(server.address());
    stream.write_all(most.as_bytes()).unwrap();
    assert_eq!(read_response(&mut stream).unwrap().status, 200);
}

/// The head of an earlier request, which the server's buffer may still contain, does not matter.
#[test]
fn another_version_of_http_gets_505() {
    let site = site();
    let server = Server::start(site.path(), &["--threads", "1"]);
    let good = "GET /index.html?a=b HTTP/1.1\r\nHost: a\r\n\r\n";
    for version in ["HTTP/2.0", "HTTP/3.0", "HTTP/0.9"] {
        let bad = format!("GET / {version}\r\nHost: a\r\n\r\n");
        let got = exchange(&server, bad.as_bytes());
        let expected = "HTTP/1.1 505 HTTP Version Not Supported";
        assert_eq!(head_of(&got), expected, "{version}");
        let got = exchange(&server, format!("{good}{bad}").as_bytes());
        let got = String::from_utf8(got).unwrap();
        assert!(got.starts_with("HTTP/1.1 200 OK\r\n"), "{got}");
        assert_eq!(got.matches(expected).count(), 1, "{got}");
    }
    let stderr = server.stop().stderr;
    assert_eq!(stderr.len(), 2, "a client's fault is not told: {stderr:?}");
}

/// A proxy and this server must not understand a host differently.
#[test]
fn a_host_must_follow_the_grammar() {
    let site = site();
    let server = Server::start(site.path(), &[]);
    let status = |host: &str| {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        head_of(&exchange(&server, request.as_bytes()))
    };
    for host in ["user@a", "a/b", "a b", "[::1", "a:b", "%zz", "http://a/"] {
        assert_eq!(status(host), "HTTP/1.1 400 Bad Request", "{host}");
    }
    for host in ["[::1]:80", "a:", "a%20b", "a.example", "127.0.0.1:80"] {
        assert_eq!(status(host), "HTTP/1.1 200 OK", "{host}");
    }
}

/// `nc -N` and some health checks close their sending side after the request.
#[test]
fn a_client_that_closes_its_sending_side_gets_its_responses() {
    let site = site();
    let server = Server::start(site.path(), &[]);
    let mut stream = connect(server.address());
    for target in ["/", "/big", "/"] {
        crate::client::send_get(&mut stream, target);
    }
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(read_response(&mut stream).unwrap().body, b"hello\n");
    assert_eq!(
        read_response(&mut stream).unwrap().body.len(),
        BIG_FILE_BYTES
    );
    assert_eq!(read_response(&mut stream).unwrap().body, b"hello\n");
    assert_eq!(read_to_close(&mut stream), b"");
}
