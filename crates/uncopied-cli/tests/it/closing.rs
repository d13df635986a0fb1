//! Tests that the server closes connections without destroying what the client has not read yet.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::client::{TEST_TIMEOUT, connect, get, read_head, read_to_end};
use crate::data::test_bytes;
use crate::server::Server;

/// More than the client's kernel accepts before the client reads. The rest waits in the server's
/// socket.
const BODY_BYTES: usize = 6 << 20;

/// If a socket is closed while bytes of the peer are unread, or if such bytes arrive afterwards,
/// the kernel resets the connection, and the peer loses what it has not read yet.
#[test]
fn bytes_that_the_server_does_not_need_destroy_no_response() {
    let site = tempfile::tempdir().unwrap();
    let bytes = test_bytes(BODY_BYTES);
    fs::write(site.path().join("file"), &bytes).unwrap();
    let server = Server::start(site.path(), &[]);
    let head = |fields: &str| format!("GET /file HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    let next = head("");
    for (case, first, later) in [
        (
            "a late CRLF",
            "GET /file HTTP/1.0\r\n\r\n".to_owned(),
            "\r\n",
        ),
        ("a late body", head("Content-Length: 5\r\n"), "12345"),
        (
            "a body at once",
            head("Content-Length: 5\r\n") + "12345",
            "",
        ),
        (
            "a chunked body",
            head("Transfer-Encoding: chunked\r\n") + "5\r\n12345\r\n",
            "0\r\n\r\n",
        ),
        ("a late request", head("Connection: close\r\n"), &next),
        (
            "a pipelined request",
            head("Connection: close\r\n") + &next,
            "",
        ),
    ] {
        let mut stream = connect(server.address());
        stream.write_all(first.as_bytes()).unwrap();
        let (response, length) = read_head(&mut stream).unwrap();
        assert!(response.contains("connection: close"), "{case}: {response}");
        assert_eq!(length, BODY_BYTES, "{case}");
        stream.write_all(later.as_bytes()).unwrap();
        // Leave the server the time to send what the kernel accepts, and read slowly, so that much
        // of the body is still to be read when the server has sent all of it.
        let mut body = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            sleep(Duration::from_millis(2));
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => body.extend_from_slice(&buffer[..read]),
                Err(error) => panic!("{case}: {error} after {} bytes", body.len()),
            }
        }
        assert!(body == bytes, "{case}: {} bytes", body.len());
    }
    assert_eq!(get(&mut connect(server.address()), "/file").status, 200);
}

#[test]
fn a_refused_request_gets_its_response_although_more_bytes_follow() {
    let site = tempfile::tempdir().unwrap();
    let server = Server::start(site.path(), &[]);
    let mut stream = connect(server.address());
    let request = [
        b"GET / HTTP/1.1\nHost: a\n\n".as_slice(),
        &vec![b'x'; 300_000],
    ]
    .concat();
    stream.write_all(&request).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let response = String::from_utf8(read_to_end(&mut stream)).unwrap();
    assert!(response.starts_with("HTTP/1.1 400 "), "{response}");
    assert!(response.ends_with("400 Bad Request\n"), "{response}");
}

/// A client that never closes its side must not keep the connection for ever.
#[test]
fn a_client_that_does_not_close_is_disconnected_after_a_while() {
    let site = tempfile::tempdir().unwrap();
    fs::write(site.path().join("file"), "content").unwrap();
    let server = Server::start(site.path(), &[]);
    let mut stream = connect(server.address());
    let request = b"GET /file HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    stream.write_all(request).unwrap();
    assert!(read_to_end(&mut stream).ends_with(b"\r\n\r\ncontent"));
    // The server has shut down its side, and closes the socket after a silence of 5 s. From then
    // on, its kernel resets the connection if bytes arrive.
    sleep(Duration::from_secs(7));
    let end = Instant::now() + TEST_TIMEOUT;
    while stream.write_all(b"x").is_ok() {
        assert!(Instant::now() < end, "the connection is still open");
        sleep(Duration::from_millis(100));
    }
}
