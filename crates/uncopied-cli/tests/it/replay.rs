//! Tests of identical requests: the recorded response is replayed only while it is valid.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::client::{
    Response, connect, connect_with_small_window, get, read_head, read_response, read_to_close,
    send_get,
};
use crate::data::{test_bytes, wait_until_files_are_stable};
use crate::server::Server;
use crate::trace::{Call, TracedServer, can_trace};

/// The number of identical requests after which responses are certainly replayed.
const REQUESTS_UNTIL_REPLAY: usize = 3;

/// The number of identical requests after which a connection is certainly parked, so that it is
/// served without hyper.
const REQUESTS_UNTIL_PARKED: usize = 12;

const SMALL_FILE_BYTES: usize = 1000;
const LARGE_FILE_BYTES: usize = 100_000;

/// More than the kernel will buffer for one connection with a small window. A response of this size
/// stays in progress until the client reads it.
const BIG_FILE_BYTES: usize = 12 << 20;

const SMALL_FILE_REQUEST: &str = "GET /small HTTP/1.1\r\nHost: a\r\n\r\n";

/// Creates files, and waits until they are stable, so that the server trusts their timestamps.
fn stable_site(make: impl FnOnce(&Path)) -> TempDir {
    let site = tempfile::tempdir().unwrap();
    fs::write(site.path().join("small"), test_bytes(SMALL_FILE_BYTES)).unwrap();
    fs::write(site.path().join("large"), test_bytes(LARGE_FILE_BYTES)).unwrap();
    make(site.path());
    wait_until_files_are_stable();
    site
}

fn serve(site: &TempDir, flags: &[&str]) -> Server {
    Server::start(site.path(), &[&["--threads", "1"], flags].concat())
}

/// Sends `request` [`REQUESTS_UNTIL_REPLAY`] times, so that its response is replayed. Asserts that
/// all responses are equal, and returns the first.
fn request_until_replayed(stream: &mut TcpStream, request: &str) -> Response {
    let mut responses = (0..REQUESTS_UNTIL_REPLAY).map(|_| {
        stream.write_all(request.as_bytes()).unwrap();
        read_response(stream).unwrap()
    });
    let first = responses.next().unwrap();
    for response in responses {
        assert_eq!(response.status, first.status, "{request:?}");
        assert!(response.body == first.body, "{request:?}");
    }
    first
}

/// Checks that responses are replayed at all, and which system calls a replay of a larger file
/// makes.
#[test]
fn a_replay_costs_one_statx_and_the_calls_that_send() {
    if !can_trace("a_replay_costs_one_statx_and_the_calls_that_send") {
        return;
    }
    let site = stable_site(|_| ());
    let traced = TracedServer::start(site.path(), &[], &[]);
    let mut stream = connect(traced.server.address());
    for _ in 0..REQUESTS_UNTIL_PARKED {
        assert!(get(&mut stream, "/large").body == test_bytes(LARGE_FILE_BYTES));
    }
    let (exit, trace) = traced.stop();
    assert_eq!(exit.totals().requests, REQUESTS_UNTIL_PARKED as u64);
    assert_eq!(
        exit.totals().sendfile,
        (REQUESTS_UNTIL_PARKED * LARGE_FILE_BYTES) as u64
    );
    let is_request = |call: &&Call| call.name == "recvfrom" && call.text.contains("\"GET /large");
    let thread = trace.calls.iter().find(is_request).unwrap().thread;
    let of_thread: Vec<_> = trace.calls.iter().filter(|c| c.thread == thread).collect();
    let mut costs: Vec<Vec<_>> = of_thread
        .split(|call| is_request(call))
        .map(|calls| {
            let waits = |call: &&&Call| call.name == "epoll_wait" || call.result == -1;
            let work = calls.iter().filter(|call| !waits(call));
            work.map(|call| call.name.as_str()).collect()
        })
        .collect();
    // Ignore the last request, because the calls after it include those of the shutdown.
    costs.pop();
    let replays = &costs[REQUESTS_UNTIL_REPLAY..];
    assert!(replays.len() > REQUESTS_UNTIL_PARKED / 2, "{costs:?}");
    for calls in replays {
        assert_eq!(calls[..2], ["statx", "sendto"], "{costs:?}");
        assert!(
            calls[2..].iter().all(|call| *call == "sendfile"),
            "{costs:?}"
        );
    }
}

#[test]
fn the_next_response_shows_a_change() {
    let site = stable_site(|site| {
        fs::create_dir(site.join("precompressed")).unwrap();
        fs::write(site.join("precompressed/page.html"), "plain").unwrap();
        fs::create_dir_all(site.join("here/deep")).unwrap();
        fs::create_dir_all(site.join("there/deep")).unwrap();
        fs::write(site.join("here/deep/file"), "here").unwrap();
        fs::write(site.join("there/deep/file"), "there").unwrap();
        fs::create_dir(site.join("dir")).unwrap();
        fs::write(site.join("dir/second"), "second").unwrap();
        symlink("small", site.join("link")).unwrap();
    });
    let at = |name: &str| site.path().join(name);
    let server = serve(&site, &["--index", "first", "--index", "second"]);
    let mut stream = connect(server.address());
    let compressed =
        "GET /precompressed/page.html HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n";
    let ask_for = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut expect = |request: &str, body: Option<&[u8]>, what: &str| {
        let response = request_until_replayed(&mut stream, request);
        let status = if body.is_some() { 200 } else { 404 };
        assert_eq!(response.status, status, "{what}");
        assert!(body.is_none_or(|body| response.body == body), "{what}");
    };

    for (name, len) in [("small", SMALL_FILE_BYTES), ("large", LARGE_FILE_BYTES)] {
        let request = ask_for(&format!("/{name}"));
        expect(&request, Some(&test_bytes(len)), "as it was");
        let file = OpenOptions::new().write(true).open(at(name)).unwrap();
        let mut changed = test_bytes(len);
        changed[0] ^= 1;
        file.write_all_at(&changed[..1], 0).unwrap();
        expect(&request, Some(&changed), "written to");
        fs::write(at("new"), "new").unwrap();
        fs::rename(at("new"), at(name)).unwrap();
        expect(&request, Some(b"new"), "replaced");
        fs::remove_file(at(name)).unwrap();
        expect(&request, None, "removed");
    }

    expect(&ask_for("/here/deep/file"), Some(b"here"), "as it was");
    fs::rename(at("here"), at("gone")).unwrap();
    fs::rename(at("there"), at("here")).unwrap();
    expect(
        &ask_for("/here/deep/file"),
        Some(b"there"),
        "another directory",
    );

    expect(&ask_for("/dir/"), Some(b"second"), "as it was");
    fs::write(at("dir/first"), "first").unwrap();
    expect(&ask_for("/dir/"), Some(b"first"), "an earlier index file");

    expect(compressed, Some(b"plain"), "as it was");
    fs::write(at("precompressed/page.html.gz"), "compressed").unwrap();
    expect(compressed, Some(b"compressed"), "with a precompressed file");
    fs::remove_file(at("precompressed/page.html.gz")).unwrap();
    expect(compressed, Some(b"plain"), "without it");

    fs::write(at("small"), test_bytes(SMALL_FILE_BYTES)).unwrap();
    expect(
        &ask_for("/link"),
        Some(&test_bytes(SMALL_FILE_BYTES)),
        "a link",
    );
    fs::remove_file(at("link")).unwrap();
    symlink("dir/second", at("link")).unwrap();
    expect(&ask_for("/link"), Some(b"second"), "a link to elsewhere");
}

#[test]
fn every_header_of_a_repeated_request_is_respected() {
    let site = stable_site(|_| ());
    let server = serve(&site, &["--spa", "small"]);
    let mut stream = connect(server.address());
    let tag = get(&mut stream, "/small")
        .header("etag")
        .unwrap()
        .to_owned();
    let of = |fields: &str| format!("GET /small HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    let body = test_bytes(SMALL_FILE_BYTES);
    for _ in 0..2 {
        let range = request_until_replayed(&mut stream, &of("Range: bytes=5-9\r\n"));
        assert_eq!((range.status, &range.body[..]), (206, &body[5..10]));
        let same = request_until_replayed(&mut stream, &of(&format!("If-Match: {tag}\r\n")));
        assert_eq!((same.status, &same.body), (200, &body));
        let plain = request_until_replayed(&mut stream, &of(""));
        assert_eq!((plain.status, &plain.body), (200, &body));
        assert_eq!(plain.header("etag"), Some(&*tag));
        let keep_alive = request_until_replayed(&mut stream, &of("Connection: keep-alive\r\n"));
        assert_eq!((keep_alive.status, &keep_alive.body), (200, &body));
        let fallback =
            request_until_replayed(&mut stream, "GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!((fallback.status, &fallback.body), (200, &body));
        for _ in 0..REQUESTS_UNTIL_REPLAY {
            let unchanged = of(&format!("If-None-Match: {tag}\r\n"));
            stream.write_all(unchanged.as_bytes()).unwrap();
            assert!(
                read_head(&mut stream)
                    .unwrap()
                    .0
                    .starts_with("HTTP/1.1 304")
            );
            stream
                .write_all(of("").replace("GET", "HEAD").as_bytes())
                .unwrap();
            let (head, length) = read_head(&mut stream).unwrap();
            assert!(
                head.starts_with("HTTP/1.1 200") && length == SMALL_FILE_BYTES,
                "{head}"
            );
        }
    }
    // The fallback page must not hide a new file.
    fs::write(site.path().join("nowhere"), "here").unwrap();
    let found = request_until_replayed(&mut stream, "GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(found.body, b"here");
    // The connection must close if the request says so.
    let old = "GET /small HTTP/1.0\r\n\r\n".to_owned();
    for request in [of("Connection: close\r\n"), of("connection:close\r\n"), old] {
        for _ in 0..2 * REQUESTS_UNTIL_REPLAY {
            let mut stream = connect(server.address());
            stream.write_all(request.as_bytes()).unwrap();
            let all = read_to_close(&mut stream);
            assert!(all.ends_with(&body), "{request:?}");
            assert!(all.starts_with(b"HTTP/1."), "{request:?}");
        }
    }
}

/// Each request must get one response, in order, however the bytes are split into packets.
#[test]
fn split_and_pipelined_requests_get_one_response_each() {
    let site = stable_site(|site| {
        fs::write(site.join("other"), "other").unwrap();
    });
    let server = serve(&site, &[]);
    let known = "GET /small HTTP/1.1\r\nHost: test\r\n\r\n";
    let other = "GET /other HTTP/1.1\r\nHost: test\r\n\r\n";
    let bodies = |requests: &str| -> Vec<Vec<u8>> {
        let of = |request: &str| match request.trim_start().starts_with("GET /s") {
            true => test_bytes(SMALL_FILE_BYTES),
            false => b"other".to_vec(),
        };
        requests.split_inclusive("\r\n\r\n").map(of).collect()
    };
    // Test both a connection that hyper serves and a parked connection.
    for repeats in [REQUESTS_UNTIL_REPLAY, REQUESTS_UNTIL_PARKED] {
        let mut stream = connect(server.address());
        let check = |stream: &mut TcpStream, pieces: &[&str]| {
            // Make `/small` known to the server, because only responses to known requests are
            // replayed.
            for _ in 0..repeats {
                assert!(get(stream, "/small").body == test_bytes(SMALL_FILE_BYTES));
            }
            for piece in pieces {
                stream.write_all(piece.as_bytes()).unwrap();
                sleep(Duration::from_millis(2));
            }
            for body in bodies(&pieces.concat()) {
                assert!(read_response(stream).unwrap().body == body, "{pieces:?}");
            }
        };
        for cut in 1..known.len() {
            let (first, last) = known.split_at(cut);
            check(&mut stream, &[first, last]);
        }
        for cut in [1, 10, known.len() - 1] {
            let (first, last) = known.split_at(cut);
            check(&mut stream, &[&[known, first].concat(), last]);
            check(&mut stream, &[&[other, first].concat(), last, known]);
            check(&mut stream, &[known, other, first, last]);
        }
        // Send these packets often enough that, if the server mistook several requests in one
        // packet for a single request, it would replay a single response to them.
        for _ in 0..=REQUESTS_UNTIL_REPLAY {
            check(&mut stream, &[&[known, known].concat()]);
            check(&mut stream, &[&[known, other, known].concat()]);
            check(&mut stream, &[&[other, known].concat(), known]);
            check(&mut stream, &["\r\n", known]);
            check(&mut stream, &[&["\r\n", known].concat()]);
            check(&mut stream, &[known; 50]);
        }
        // Send the bytes of a known request as the rest of another request. The server must not
        // replay a response to them.
        check(&mut stream, &[]);
        stream.write_all(b"GET /other HTTP/1.1\r\nX: ").unwrap();
        sleep(Duration::from_millis(20));
        stream.write_all(known.as_bytes()).unwrap();
        assert_eq!(read_response(&mut stream).unwrap().body, b"other");
        // Send bytes that end like a known request but are a different request.
        for _ in 0..REQUESTS_UNTIL_REPLAY {
            let mut stream = connect(server.address());
            check(&mut stream, &[]);
            stream
                .write_all(b"GET /small HTTP/1.1\nHost: test\r\n\r\n")
                .unwrap();
            let refused = read_to_close(&mut stream);
            assert!(refused.starts_with(b"HTTP/1.1 400"), "{refused:?}");
        }
    }
}

/// Requests a big file `repeats` times, so that the next response is a replay. Then requests it
/// once more, and returns once that replay has begun.
fn begin_replay(server: &Server, path: &str, repeats: usize) -> TcpStream {
    let mut stream = connect_with_small_window(server.address());
    let mut buffer = vec![0; BIG_FILE_BYTES];
    for _ in 0..repeats {
        send_get(&mut stream, path);
        assert_eq!(read_head(&mut stream).unwrap().1, BIG_FILE_BYTES);
        stream.read_exact(&mut buffer).unwrap();
    }
    send_get(&mut stream, path);
    assert_eq!(read_head(&mut stream).unwrap().1, BIG_FILE_BYTES);
    stream
}

fn make_big(path: &Path) {
    let big = File::create(path).unwrap();
    big.set_len(BIG_FILE_BYTES as u64).unwrap();
}

/// The file is truncated during a replay. No other bytes may take the place of the missing ones.
#[test]
fn a_replay_of_a_truncated_file_closes_the_connection() {
    const CASES: [(&str, usize, &str); 4] = [
        ("auto", REQUESTS_UNTIL_REPLAY, "a"),
        ("auto", REQUESTS_UNTIL_PARKED, "b"),
        ("copy", REQUESTS_UNTIL_REPLAY, "c"),
        ("copy", REQUESTS_UNTIL_PARKED, "d"),
    ];
    let site = stable_site(|site| {
        for (_, _, name) in CASES {
            make_big(&site.join(name));
        }
    });
    for (mechanism, repeats, name) in CASES {
        let server = serve(&site, &["--mechanism", mechanism]);
        let mut stream = begin_replay(&server, &format!("/{name}"), repeats);
        // The server receives this request during the replay. The response to it must not appear
        // inside the replayed response.
        send_get(&mut stream, "/small");
        let big = OpenOptions::new().write(true).open(site.path().join(name));
        big.unwrap().set_len(1 << 20).unwrap();
        let body = read_to_close(&mut stream);
        assert!(body.len() < BIG_FILE_BYTES, "{mechanism}: the whole file");
        assert!(body.iter().all(|byte| *byte == 0), "{mechanism}");
        let response = get(&mut connect(server.address()), "/small");
        assert!(response.body == test_bytes(SMALL_FILE_BYTES), "{mechanism}");
        assert!(server.stop().status.success());
    }
}

#[test]
fn a_replay_in_progress_finishes_when_the_server_stops() {
    let site = stable_site(|site| make_big(&site.join("big")));
    for repeats in [REQUESTS_UNTIL_REPLAY, REQUESTS_UNTIL_PARKED] {
        let server = serve(&site, &[]);
        let mut stream = begin_replay(&server, "/big", repeats);
        server.signal(Signal::TERM);
        // Wait until the server is draining, while most of the response is still unread.
        sleep(Duration::from_millis(300));
        stream.read_exact(&mut vec![0; BIG_FILE_BYTES]).unwrap();
        assert_eq!(read_to_close(&mut stream), b"");
        let exit = server.wait();
        assert!(exit.status.success(), "{:?}", exit.stderr);
        assert_eq!(exit.totals().requests, repeats as u64 + 1);
    }
}

/// A connection on which no request has arrived must stay open when the server is told to stop,
/// because its first request may be on its way. That request must get a response, whether or not a
/// response to it has been recorded. After that, the connection must close.
#[test]
fn a_first_request_gets_a_response_while_the_server_stops() {
    let site = stable_site(|_| ());
    for is_known in [false, true] {
        let server = serve(&site, &[]);
        let mut fresh = connect(server.address());
        if is_known {
            request_until_replayed(&mut connect(server.address()), SMALL_FILE_REQUEST);
        }
        sleep(Duration::from_millis(50));
        server.signal(Signal::TERM);
        sleep(Duration::from_millis(150));
        let began = Instant::now();
        fresh.write_all(SMALL_FILE_REQUEST.as_bytes()).unwrap();
        assert!(read_response(&mut fresh).unwrap().body == test_bytes(SMALL_FILE_BYTES));
        assert_eq!(read_to_close(&mut fresh), b"");
        assert!(began.elapsed() < Duration::from_secs(2), "{is_known}");
        let exit = server.wait();
        assert!(exit.status.success(), "{:?}", exit.stderr);
    }
}

#[test]
fn the_date_of_a_replay_is_current() {
    let site = stable_site(|_| ());
    let server = serve(&site, &[]);
    let mut stream = connect(server.address());
    let began = Instant::now();
    let mut dates = std::collections::BTreeSet::new();
    while began.elapsed() < Duration::from_millis(3500) {
        let response = get(&mut stream, "/small");
        let date = httpdate::parse_http_date(response.header("date").unwrap()).unwrap();
        // Allow an age of 3 s, because a date is rounded down to a second, hyper reuses it for up
        // to a second, and a replay reuses it for up to half a second more.
        let age = SystemTime::now().duration_since(date).unwrap();
        assert!(age < Duration::from_millis(3000), "{age:?}");
        dates.insert(date);
        sleep(Duration::from_millis(5));
    }
    assert!(dates.len() >= 3, "{dates:?}");
}

#[test]
fn replays_are_counted_and_repeats_are_logged() {
    let site = stable_site(|_| ());
    for log in ["off", "text"] {
        let mut server = serve(&site, &["--access-log", log]);
        server.collect_stdout();
        let mut stream = connect(server.address());
        let mut sent = 0;
        for _ in 0..REQUESTS_UNTIL_PARKED {
            let response = get(&mut stream, "/small");
            sent += response.head.len() + response.body.len();
        }
        drop(stream);
        let exit = server.stop();
        let totals = exit.totals();
        assert_eq!(
            (totals.requests, totals.bytes),
            (REQUESTS_UNTIL_PARKED as u64, sent as u64)
        );
        let lines = if log == "off" {
            0
        } else {
            REQUESTS_UNTIL_PARKED
        };
        assert_eq!(exit.stdout.lines().count(), lines, "{}", exit.stdout);
    }
}
