//! Requests that come again, byte for byte: the same answer while it is right, and no longer.

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
    Answer, ask, connect, connect_narrow, get, read_answer, read_head, read_to_close,
};
use crate::server::Server;
use crate::system_calls::noise;
use crate::trace::{Call, Traced, can_trace};

/// So often a request must come before its answer is one of those that are given again.
const OFTEN: usize = 3;

/// More repeats than a connection needs until it does without hyper.
const LONG: usize = 12;

const SMALL: usize = 1000;
const LARGE: usize = 100_000;

/// More than the kernel buffers for a connection that is read slowly.
const BIG: usize = 12 << 20;

const KNOWN: &str = "GET /small HTTP/1.1\r\nHost: a\r\n\r\n";

/// Files that have not changed for as long as it takes to believe their time stamps.
fn settled_site(make: impl FnOnce(&Path)) -> TempDir {
    let site = tempfile::tempdir().unwrap();
    fs::write(site.path().join("small"), noise(SMALL)).unwrap();
    fs::write(site.path().join("large"), noise(LARGE)).unwrap();
    make(site.path());
    sleep(Duration::from_millis(3500));
    site
}

fn serve(site: &TempDir, flags: &[&str]) -> Server {
    Server::start(site.path(), &[&["--threads", "1"], flags].concat())
}

/// The answer to `request`, which is sent so often that it is known.
fn often(stream: &mut TcpStream, request: &str) -> Answer {
    let mut answers = (0..OFTEN).map(|_| {
        stream.write_all(request.as_bytes()).unwrap();
        read_answer(stream).unwrap()
    });
    let first = answers.next().unwrap();
    for answer in answers {
        assert_eq!(answer.status, first.status, "{request:?}");
        assert!(answer.body == first.body, "{request:?}");
    }
    first
}

/// That what the other tests see are repeats at all, and what one costs with a larger file.
#[test]
fn a_repeat_costs_a_look_at_the_file_and_what_sends_it() {
    if !can_trace("a_repeat_costs_a_look_at_the_file_and_what_sends_it") {
        return;
    }
    let site = settled_site(|_| ());
    let traced = Traced::start(site.path(), &[], &[]);
    let mut stream = connect(traced.server.address());
    for _ in 0..LONG {
        assert!(get(&mut stream, "/large").body == noise(LARGE));
    }
    let (end, trace) = traced.stop();
    assert_eq!(end.totals().requests, LONG as u64);
    assert_eq!(end.totals().sendfile, (LONG * LARGE) as u64);
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
    // What follows the last request is the end of the program; before the first the file is opened.
    costs.pop();
    let repeats = &costs[OFTEN..];
    assert!(repeats.len() > LONG / 2, "{costs:?}");
    for calls in repeats {
        assert_eq!(calls[..2], ["statx", "sendto"], "{costs:?}");
        assert!(
            calls[2..].iter().all(|call| *call == "sendfile"),
            "{costs:?}"
        );
    }
}

#[test]
fn the_next_answer_shows_a_change() {
    let site = settled_site(|site| {
        fs::create_dir(site.join("sides")).unwrap();
        fs::write(site.join("sides/page.html"), "plain").unwrap();
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
    let zipped = "GET /sides/page.html HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n";
    let ask_for = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut expect = |request: &str, body: Option<&[u8]>, what: &str| {
        let answer = often(&mut stream, request);
        let status = if body.is_some() { 200 } else { 404 };
        assert_eq!(answer.status, status, "{what}");
        assert!(body.is_none_or(|body| answer.body == body), "{what}");
    };

    for (name, len) in [("small", SMALL), ("large", LARGE)] {
        let request = ask_for(&format!("/{name}"));
        expect(&request, Some(&noise(len)), "as it was");
        let file = OpenOptions::new().write(true).open(at(name)).unwrap();
        let mut changed = noise(len);
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
    expect(
        &ask_for("/dir/"),
        Some(b"first"),
        "an index file that comes before",
    );

    expect(zipped, Some(b"plain"), "as it was");
    fs::write(at("sides/page.html.gz"), "zipped").unwrap();
    expect(zipped, Some(b"zipped"), "with a side file");
    fs::remove_file(at("sides/page.html.gz")).unwrap();
    expect(zipped, Some(b"plain"), "without it");

    fs::write(at("small"), noise(SMALL)).unwrap();
    expect(&ask_for("/link"), Some(&noise(SMALL)), "a link");
    fs::remove_file(at("link")).unwrap();
    symlink("dir/second", at("link")).unwrap();
    expect(&ask_for("/link"), Some(b"second"), "a link to elsewhere");
}

#[test]
fn what_the_bytes_of_a_request_say_is_heeded_every_time() {
    let site = settled_site(|_| ());
    let server = serve(&site, &["--spa", "small"]);
    let mut stream = connect(server.address());
    let tag = get(&mut stream, "/small")
        .header("etag")
        .unwrap()
        .to_owned();
    let of = |fields: &str| format!("GET /small HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    let body = noise(SMALL);
    for _ in 0..2 {
        let range = often(&mut stream, &of("Range: bytes=5-9\r\n"));
        assert_eq!((range.status, &range.body[..]), (206, &body[5..10]));
        let same = often(&mut stream, &of(&format!("If-Match: {tag}\r\n")));
        assert_eq!((same.status, &same.body), (200, &body));
        let plain = often(&mut stream, &of(""));
        assert_eq!((plain.status, &plain.body), (200, &body));
        assert_eq!(plain.header("etag"), Some(&*tag));
        let keeps = often(&mut stream, &of("Connection: keep-alive\r\n"));
        assert_eq!((keeps.status, &keeps.body), (200, &body));
        let fallback = often(&mut stream, "GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!((fallback.status, &fallback.body), (200, &body));
        for _ in 0..OFTEN {
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
                head.starts_with("HTTP/1.1 200") && length == SMALL,
                "{head}"
            );
        }
    }
    // A file that comes to be is not hidden by the fallback page.
    fs::write(site.path().join("nowhere"), "here").unwrap();
    let found = often(&mut stream, "GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(found.body, b"here");
    // The connection ends where the request says so.
    let old = "GET /small HTTP/1.0\r\n\r\n".to_owned();
    for request in [of("Connection: close\r\n"), of("connection:close\r\n"), old] {
        for _ in 0..2 * OFTEN {
            let mut stream = connect(server.address());
            stream.write_all(request.as_bytes()).unwrap();
            let all = read_to_close(&mut stream);
            assert!(all.ends_with(&body), "{request:?}");
            assert!(all.starts_with(b"HTTP/1."), "{request:?}");
        }
    }
}

/// However the bytes of requests are cut into packets, one answer comes for each, in their order.
#[test]
fn requests_in_pieces_and_in_heaps_are_answered_one_by_one() {
    let site = settled_site(|site| {
        fs::write(site.join("other"), "other").unwrap();
    });
    let server = serve(&site, &[]);
    let known = "GET /small HTTP/1.1\r\nHost: test\r\n\r\n";
    let other = "GET /other HTTP/1.1\r\nHost: test\r\n\r\n";
    let bodies = |requests: &str| -> Vec<Vec<u8>> {
        let of = |request: &str| match request.trim_start().starts_with("GET /s") {
            true => noise(SMALL),
            false => b"other".to_vec(),
        };
        requests.split_inclusive("\r\n\r\n").map(of).collect()
    };
    // On one connection with hyper, and on one that does without it.
    for repeats in [OFTEN, LONG] {
        let mut stream = connect(server.address());
        let check = |stream: &mut TcpStream, pieces: &[&str]| {
            // Only what is known is answered here.
            for _ in 0..repeats {
                assert!(get(stream, "/small").body == noise(SMALL));
            }
            for piece in pieces {
                stream.write_all(piece.as_bytes()).unwrap();
                sleep(Duration::from_millis(2));
            }
            for body in bodies(&pieces.concat()) {
                assert!(read_answer(stream).unwrap().body == body, "{pieces:?}");
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
        // So often that a heap would be known, if it could be.
        for _ in 0..=OFTEN {
            check(&mut stream, &[&[known, known].concat()]);
            check(&mut stream, &[&[known, other, known].concat()]);
            check(&mut stream, &[&[other, known].concat(), known]);
            check(&mut stream, &["\r\n", known]);
            check(&mut stream, &[&["\r\n", known].concat()]);
            check(&mut stream, &[known; 50]);
        }
        // What is known as a request is the rest of another.
        check(&mut stream, &[]);
        stream.write_all(b"GET /other HTTP/1.1\r\nX: ").unwrap();
        sleep(Duration::from_millis(20));
        stream.write_all(known.as_bytes()).unwrap();
        assert_eq!(read_answer(&mut stream).unwrap().body, b"other");
        // What ends like a request and is none.
        for _ in 0..OFTEN {
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

/// Asks for a big file so often that it is known, and once more. That answer has begun.
fn begin_a_repeat(server: &Server, path: &str, repeats: usize) -> TcpStream {
    let mut stream = connect_narrow(server.address());
    let mut buffer = vec![0; BIG];
    for _ in 0..repeats {
        ask(&mut stream, path);
        assert_eq!(read_head(&mut stream).unwrap().1, BIG);
        stream.read_exact(&mut buffer).unwrap();
    }
    ask(&mut stream, path);
    assert_eq!(read_head(&mut stream).unwrap().1, BIG);
    stream
}

fn make_big(path: &Path) {
    let big = File::create(path).unwrap();
    big.set_len(BIG as u64).unwrap();
}

/// The rest of a known answer is owed by a file that has become shorter: nothing may stand in for it.
#[test]
fn a_repeat_of_a_file_that_is_cut_short_closes_the_connection() {
    const BIGS: [(&str, usize, &str); 4] = [
        ("auto", OFTEN, "a"),
        ("auto", LONG, "b"),
        ("copy", OFTEN, "c"),
        ("copy", LONG, "d"),
    ];
    let site = settled_site(|site| {
        for (_, _, name) in BIGS {
            make_big(&site.join(name));
        }
    });
    for (mechanism, repeats, name) in BIGS {
        let server = serve(&site, &["--mechanism", mechanism]);
        let mut stream = begin_a_repeat(&server, &format!("/{name}"), repeats);
        // Already on its way: it must not be answered inside the first answer.
        ask(&mut stream, "/small");
        let big = OpenOptions::new().write(true).open(site.path().join(name));
        big.unwrap().set_len(1 << 20).unwrap();
        let body = read_to_close(&mut stream);
        assert!(body.len() < BIG, "{mechanism}: all of it");
        assert!(body.iter().all(|byte| *byte == 0), "{mechanism}");
        let answer = get(&mut connect(server.address()), "/small");
        assert!(answer.body == noise(SMALL), "{mechanism}");
        assert!(server.stop().status.success());
    }
}

#[test]
fn a_repeat_that_is_under_way_finishes_when_the_server_ends() {
    let site = settled_site(|site| make_big(&site.join("big")));
    for repeats in [OFTEN, LONG] {
        let server = serve(&site, &[]);
        let mut stream = begin_a_repeat(&server, "/big", repeats);
        server.signal(Signal::TERM);
        // It has begun to end, and the answer waits for us.
        sleep(Duration::from_millis(300));
        stream.read_exact(&mut vec![0; BIG]).unwrap();
        assert_eq!(read_to_close(&mut stream), b"");
        let end = server.end();
        assert!(end.status.success(), "{:?}", end.said);
        assert_eq!(end.totals().requests, repeats as u64 + 1);
    }
}

/// A connection that has asked for nothing when the server begins to end: its first request may be on its way, known
/// or not, and after the answer nothing is waited for.
#[test]
fn a_first_request_is_answered_while_the_server_ends() {
    let site = settled_site(|_| ());
    for is_known in [false, true] {
        let server = serve(&site, &[]);
        let mut fresh = connect(server.address());
        if is_known {
            often(&mut connect(server.address()), KNOWN);
        }
        sleep(Duration::from_millis(50));
        server.signal(Signal::TERM);
        sleep(Duration::from_millis(150));
        let began = Instant::now();
        fresh.write_all(KNOWN.as_bytes()).unwrap();
        assert!(read_answer(&mut fresh).unwrap().body == noise(SMALL));
        assert_eq!(read_to_close(&mut fresh), b"");
        assert!(began.elapsed() < Duration::from_secs(2), "{is_known}");
        let end = server.end();
        assert!(end.status.success(), "{:?}", end.said);
    }
}

#[test]
fn the_date_of_a_repeat_is_that_of_now() {
    let site = settled_site(|_| ());
    let server = serve(&site, &[]);
    let mut stream = connect(server.address());
    let began = Instant::now();
    let mut dates = std::collections::BTreeSet::new();
    while began.elapsed() < Duration::from_millis(3500) {
        let answer = get(&mut stream, "/small");
        let date = httpdate::parse_http_date(answer.header("date").unwrap()).unwrap();
        // It is cut to whole seconds; hyper writes one for a second, and we for half of one more.
        let age = SystemTime::now().duration_since(date).unwrap();
        assert!(age < Duration::from_millis(3000), "{age:?}");
        dates.insert(date);
        sleep(Duration::from_millis(5));
    }
    assert!(dates.len() >= 3, "{dates:?}");
}

#[test]
fn repeats_are_counted_and_logged() {
    let site = settled_site(|_| ());
    for log in ["off", "text"] {
        let mut server = serve(&site, &["--access-log", log]);
        server.collect_output();
        let mut stream = connect(server.address());
        let mut sent = 0;
        for _ in 0..LONG {
            let answer = get(&mut stream, "/small");
            sent += answer.head.len() + answer.body.len();
        }
        drop(stream);
        let end = server.stop();
        let totals = end.totals();
        assert_eq!((totals.requests, totals.bytes), (LONG as u64, sent as u64));
        let lines = if log == "off" { 0 } else { LONG };
        assert_eq!(end.output.lines().count(), lines, "{}", end.output);
    }
}
