//! The time-outs, and that a slow but healthy client meets none.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::client::{ask, connect, connect_narrow, get, read_head, read_to_close};
use crate::server::{BIG, Server, site};
use crate::system_calls::noise;
use crate::trace::{Traced, can_trace};

const HALF: Duration = Duration::from_millis(500);
/// No deadline is late by more: a look is never further away than a second.
const LATE: Duration = Duration::from_secs(4);

#[test]
fn an_idle_connection_is_closed_after_the_keepalive_timeout() {
    let site = site();
    let server = Server::start(site.path(), &["--keepalive-timeout", "500ms"]);
    let mut stream = connect(server.address());
    for _ in 0..4 {
        // Each request begins the time anew.
        assert_eq!(get(&mut stream, "/").status, 200);
        sleep(HALF / 2);
    }
    let began = Instant::now();
    get(&mut stream, "/");
    assert_eq!(read_to_close(&mut stream), b"");
    let took = began.elapsed();
    assert!(HALF * 8 / 10 < took && took < LATE, "{took:?}");
}

#[test]
fn a_head_that_does_not_come_to_its_end_is_cut() {
    let site = site();
    let server = Server::start(site.path(), &["--header-timeout", "500ms"]);
    for (first, rest) in [("GET / HTTP/1.1\r\n", "X: a\r\n"), ("G", ""), ("", "")] {
        let mut stream = connect(server.address());
        let began = Instant::now();
        stream.write_all(first.as_bytes()).unwrap();
        // A dribble does not prolong the time.
        let mut write = stream.try_clone().unwrap();
        let dribble = std::thread::spawn(move || {
            while !rest.is_empty()
                && began.elapsed() < LATE
                && write.write_all(rest.as_bytes()).is_ok()
            {
                sleep(HALF / 10);
            }
        });
        assert_eq!(read_to_close(&mut stream), b"", "{first:?}");
        let took = began.elapsed();
        assert!(HALF * 8 / 10 < took && took < LATE, "{first:?}: {took:?}");
        drop(stream);
        dribble.join().unwrap();
    }
}

/// A body that waits for the disk between two of its parts: all that was written has gone out, and still
/// the connection is not idle.
#[test]
fn an_answer_that_waits_for_the_disk_is_not_an_idle_connection() {
    let name = "an_answer_that_waits_for_the_disk_is_not_an_idle_connection";
    if !can_trace(name) {
        return;
    }
    let site = tempfile::tempdir().unwrap();
    let bytes = noise(200_000);
    std::fs::write(site.path().join("large"), &bytes).unwrap();
    let path = site.path().join("large").display().to_string();
    // It cannot be mapped, so it is read part by part, each by a slow disk.
    let refused = ["mmap:error=ENOMEM", "preadv2:error=EAGAIN"].map(|it| format!("inject={it}"));
    let slow = "inject=pread64:delay_enter=1500000";
    let options = [
        "-P",
        &path,
        "-e",
        &refused[0],
        "-e",
        &refused[1],
        "-e",
        slow,
    ];
    let flags = ["--keepalive-timeout", "500ms"];
    let traced = Traced::start(site.path(), &flags, &options);
    let answer = get(&mut connect(traced.server.address()), "/large");
    assert!(answer.body == bytes, "{} bytes", answer.body.len());
}

/// The same in the last part of an answer: hyper has all of the body, and the stream waits for the disk.
#[test]
fn the_end_of_an_answer_that_waits_for_the_disk_is_not_an_idle_connection() {
    /// As much of a file as is mapped at a time.
    const WINDOW: u64 = 1 << 30;
    let name = "the_end_of_an_answer_that_waits_for_the_disk_is_not_an_idle_connection";
    if !can_trace(name) {
        return;
    }
    let site = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = site.path().join("large");
    let file = File::create_new(&path).unwrap();
    file.set_len(WINDOW + 300_000).unwrap();
    // Everything but the end is in the page cache.
    let mut warm = vec![0; 4 << 20];
    let read = File::open(&path).unwrap();
    rustix::fs::fadvise(&read, 0, None, rustix::fs::Advice::Random).unwrap();
    for at in (0..WINDOW).step_by(warm.len()) {
        read.read_exact_at(&mut warm, at).unwrap();
    }
    let path = path.display().to_string();
    let (cold, slow) = (
        "inject=preadv2:error=EAGAIN",
        "inject=pread64:delay_enter=1500000:when=1",
    );
    let options = ["-P", &path, "-e", cold, "-e", slow];
    let traced = Traced::start(site.path(), &["--keepalive-timeout", "500ms"], &options);
    let mut stream = connect(traced.server.address());
    ask(&mut stream, "/large");
    let (_, mut left) = read_head(&mut stream).unwrap();
    let mut waited = Duration::ZERO;
    while left > 0 {
        let began = Instant::now();
        let read = stream.read(&mut warm).unwrap();
        assert!(read > 0, "{left} bytes are missing");
        waited = waited.max(began.elapsed());
        left -= read;
    }
    assert!(waited > HALF, "nothing was cold: {waited:?}");
}

#[test]
fn a_later_head_has_the_same_deadline() {
    let site = site();
    let server = Server::start(site.path(), &["--header-timeout", "500ms"]);
    let mut stream = connect(server.address());
    get(&mut stream, "/");
    sleep(HALF * 2);
    let began = Instant::now();
    stream.write_all(b"GET / HT").unwrap();
    assert_eq!(read_to_close(&mut stream), b"");
    let took = began.elapsed();
    assert!(HALF * 8 / 10 < took && took < LATE, "{took:?}");
}

#[test]
fn a_reader_that_stalls_is_cut_after_the_send_timeout() {
    let site = site();
    let server = Server::start(site.path(), &["--send-timeout", "500ms"]);
    let mut stream = connect_narrow(server.address());
    ask(&mut stream, "/big");
    let (_, length) = read_head(&mut stream).unwrap();
    assert_eq!(length, BIG);
    sleep(HALF + LATE);
    assert!(read_to_close(&mut stream).len() < BIG);
}

#[test]
fn a_pause_shorter_than_the_send_timeout_does_no_harm() {
    let site = site();
    let server = Server::start(site.path(), &["--send-timeout", "10s"]);
    let mut stream = connect_narrow(server.address());
    ask(&mut stream, "/big");
    read_head(&mut stream).unwrap();
    sleep(HALF * 3);
    stream.read_exact(&mut vec![0; BIG]).unwrap();
}

/// A deadline for the whole body would cut this client (Caddy did).
#[test]
fn a_slow_reader_that_keeps_reading_is_not_cut() {
    let site = site();
    let server = Server::start(
        site.path(),
        &["--send-timeout", "1s", "--header-timeout", "1s"],
    );
    let mut stream = connect_narrow(server.address());
    ask(&mut stream, "/big");
    read_head(&mut stream).unwrap();
    let began = Instant::now();
    let mut buffer = vec![0; BIG / 160];
    for _ in 0..160 {
        stream.read_exact(&mut buffer).unwrap();
        sleep(Duration::from_millis(25));
    }
    assert!(
        began.elapsed() > Duration::from_secs(4),
        "the test must outlast the time-out"
    );
    assert_eq!(get(&mut stream, "/").status, 200);
}

/// The server's socket holds megabytes, and takes more only when a third has gone: longer than the
/// time-out for this client, whose host acknowledges bytes all the while.
#[test]
fn a_slow_reader_behind_large_buffers_is_not_cut() {
    let site = site();
    let server = Server::start(site.path(), &["--send-timeout", "1s"]);
    let mut stream = connect(server.address());
    ask(&mut stream, "/big");
    read_head(&mut stream).unwrap();
    let mut buffer = vec![0; 20_000];
    let mut have = 0;
    for _ in 0..50 {
        stream.read_exact(&mut buffer).unwrap();
        have += buffer.len();
        sleep(Duration::from_millis(100));
    }
    assert_eq!(
        std::io::copy(&mut stream.take((BIG - have) as u64), &mut std::io::sink()).unwrap(),
        (BIG - have) as u64,
    );
}

#[test]
fn an_old_connection_is_closed_after_the_request_under_way() {
    let site = site();
    let server = Server::start(site.path(), &["--keepalive-time", "500ms"]);
    let mut stream = connect(server.address());
    let mut busy = connect_narrow(server.address());
    ask(&mut busy, "/big");
    read_head(&mut busy).unwrap();
    let began = Instant::now();
    assert_eq!(get(&mut stream, "/").status, 200);
    assert_eq!(read_to_close(&mut stream), b"");
    let took = began.elapsed();
    assert!(HALF * 8 / 10 < took && took < LATE, "{took:?}");
    sleep(HALF);
    assert_eq!(
        read_to_close(&mut busy).len(),
        BIG,
        "the answer under way is whole"
    );
}

#[test]
fn zero_switches_a_deadline_off() {
    let site = site();
    let flags = [
        "--keepalive-timeout",
        "0",
        "--header-timeout",
        "0",
        "--send-timeout",
        "100ms",
    ];
    let server = Server::start(site.path(), &flags);
    let mut stream = connect(server.address());
    sleep(HALF);
    stream.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    sleep(HALF);
    stream.write_all(b"Host: a\r\n\r\n").unwrap();
    assert_eq!(crate::client::read_answer(&mut stream).unwrap().status, 200);
    sleep(HALF);
    assert_eq!(get(&mut stream, "/").status, 200);
}
