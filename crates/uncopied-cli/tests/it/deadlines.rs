//! Tests of the timeouts, none of which may affect a slow but healthy client.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::client::{
    connect, connect_with_receive_buffer, connect_with_small_window, get, read_head, read_to_close,
    send_get,
};
use crate::server::{BIG_FILE_BYTES, Server, site};
use crate::trace::{TracedServer, can_trace};

/// The timeout that most tests set with `500ms`.
const TIMEOUT: Duration = Duration::from_millis(500);
/// The maximum time from the start of a wait until the server has enforced the deadline. The server
/// checks deadlines at least once a second; the rest is for slow test machines.
const MAX_DELAY: Duration = Duration::from_secs(4);

#[test]
fn an_idle_connection_is_closed_after_the_keepalive_timeout() {
    let site = site();
    let server = Server::start(site.path(), &["--keepalive-timeout", "500ms"]);
    let mut stream = connect(server.address());
    for _ in 0..4 {
        // Each request restarts the timeout.
        assert_eq!(get(&mut stream, "/").status, 200);
        sleep(TIMEOUT / 2);
    }
    let began = Instant::now();
    get(&mut stream, "/");
    assert_eq!(read_to_close(&mut stream), b"");
    let took = began.elapsed();
    assert!(TIMEOUT * 8 / 10 < took && took < MAX_DELAY, "{took:?}");
}

#[test]
fn an_incomplete_head_closes_the_connection_after_the_header_timeout() {
    let site = site();
    let server = Server::start(site.path(), &["--header-timeout", "500ms"]);
    for (first, rest) in [("GET / HTTP/1.1\r\n", "X: a\r\n"), ("G", ""), ("", "")] {
        let mut stream = connect(server.address());
        let began = Instant::now();
        stream.write_all(first.as_bytes()).unwrap();
        // Sending further bytes slowly must not extend the timeout.
        let mut write = stream.try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            while !rest.is_empty()
                && began.elapsed() < MAX_DELAY
                && write.write_all(rest.as_bytes()).is_ok()
            {
                sleep(TIMEOUT / 10);
            }
        });
        assert_eq!(read_to_close(&mut stream), b"", "{first:?}");
        let took = began.elapsed();
        assert!(
            TIMEOUT * 8 / 10 < took && took < MAX_DELAY,
            "{first:?}: {took:?}"
        );
        drop(stream);
        sender.join().unwrap();
    }
}

/// The end of the body waits for the disk. At that time, everything written so far has been sent,
/// but the connection must not count as idle.
#[test]
fn a_connection_whose_response_waits_for_the_disk_is_not_idle() {
    /// The number of bytes of the file that are in the page cache.
    const WARM_BYTES: u64 = 64 << 20;
    let name = "a_connection_whose_response_waits_for_the_disk_is_not_idle";
    if !can_trace(name) {
        return;
    }
    let site = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = site.path().join("large");
    let file = File::create_new(&path).unwrap();
    file.set_len(WARM_BYTES + 300_000).unwrap();
    // Load everything but the end of the file into the page cache. `Advice::Random` turns off
    // readahead, because readahead would load the end too.
    let mut warm = vec![0; 4 << 20];
    let read = File::open(&path).unwrap();
    rustix::fs::fadvise(&read, 0, None, rustix::fs::Advice::Random).unwrap();
    for at in (0..WARM_BYTES).step_by(warm.len()) {
        read.read_exact_at(&mut warm, at).unwrap();
    }
    let path = path.display().to_string();
    let (cold, slow) = (
        "inject=preadv2:error=EAGAIN",
        "inject=pread64:delay_enter=1500000:when=1",
    );
    let options = ["-P", &path, "-e", cold, "-e", slow];
    let traced = TracedServer::start(site.path(), &["--keepalive-timeout", "500ms"], &options);
    let mut stream = connect(traced.server.address());
    send_get(&mut stream, "/large");
    let (_, mut left) = read_head(&mut stream).unwrap();
    let mut longest_wait = Duration::ZERO;
    while left > 0 {
        let began = Instant::now();
        let read = stream.read(&mut warm).unwrap();
        assert!(read > 0, "{left} bytes are missing");
        longest_wait = longest_wait.max(began.elapsed());
        left -= read;
    }
    assert!(longest_wait > TIMEOUT, "nothing was cold: {longest_wait:?}");
}

#[test]
fn the_header_timeout_applies_to_later_requests_too() {
    let site = site();
    let server = Server::start(site.path(), &["--header-timeout", "500ms"]);
    let mut stream = connect(server.address());
    get(&mut stream, "/");
    sleep(TIMEOUT * 2);
    let began = Instant::now();
    stream.write_all(b"GET / HT").unwrap();
    assert_eq!(read_to_close(&mut stream), b"");
    let took = began.elapsed();
    assert!(TIMEOUT * 8 / 10 < took && took < MAX_DELAY, "{took:?}");
}

#[test]
fn a_client_that_stops_reading_is_disconnected_after_the_send_timeout() {
    let site = site();
    let server = Server::start(site.path(), &["--send-timeout", "500ms"]);
    let mut stream = connect_with_small_window(server.address());
    send_get(&mut stream, "/big");
    let (_, length) = read_head(&mut stream).unwrap();
    assert_eq!(length, BIG_FILE_BYTES);
    sleep(TIMEOUT + MAX_DELAY);
    assert!(read_to_close(&mut stream).len() < BIG_FILE_BYTES);
}

#[test]
fn a_pause_shorter_than_the_send_timeout_is_allowed() {
    let site = site();
    let server = Server::start(site.path(), &["--send-timeout", "10s"]);
    let mut stream = connect_with_small_window(server.address());
    send_get(&mut stream, "/big");
    read_head(&mut stream).unwrap();
    sleep(TIMEOUT * 3);
    stream.read_exact(&mut vec![0; BIG_FILE_BYTES]).unwrap();
}

/// A deadline for the whole response, such as Caddy's, would disconnect this client. The send
/// timeout does not, because it starts again whenever the client acknowledges bytes.
#[test]
fn a_slow_client_that_keeps_reading_is_not_disconnected() {
    let site = site();
    let server = Server::start(
        site.path(),
        &["--send-timeout", "1s", "--header-timeout", "1s"],
    );
    let mut stream = connect_with_small_window(server.address());
    send_get(&mut stream, "/big");
    read_head(&mut stream).unwrap();
    let began = Instant::now();
    let mut buffer = vec![0; BIG_FILE_BYTES / 160];
    for _ in 0..160 {
        stream.read_exact(&mut buffer).unwrap();
        sleep(Duration::from_millis(25));
    }
    assert!(
        began.elapsed() > Duration::from_secs(4),
        "the test must outlast the timeout"
    );
    assert_eq!(get(&mut stream, "/").status, 200);
}

/// The send buffer of the server's socket holds megabytes. The socket becomes writable again only
/// once a third of the buffer is free, which takes this client longer than the timeout. But the
/// client's host keeps acknowledging bytes, so the connection must stay open.
#[test]
fn a_slow_client_behind_large_buffers_is_not_disconnected() {
    let site = site();
    let server = Server::start(site.path(), &["--send-timeout", "1s"]);
    let mut stream = connect(server.address());
    send_get(&mut stream, "/big");
    read_head(&mut stream).unwrap();
    let mut buffer = vec![0; 20_000];
    let mut received = 0;
    for _ in 0..50 {
        stream.read_exact(&mut buffer).unwrap();
        received += buffer.len();
        sleep(Duration::from_millis(100));
    }
    assert_eq!(
        std::io::copy(
            &mut stream.take((BIG_FILE_BYTES - received) as u64),
            &mut std::io::sink()
        )
        .unwrap(),
        (BIG_FILE_BYTES - received) as u64,
    );
}

/// The kernel's `TCP_USER_TIMEOUT` cuts such a client: it counts from the moment at which the
/// client's window was first full, although the client keeps acknowledging bytes.
#[test]
fn a_slow_client_with_a_small_window_is_not_disconnected() {
    let site = site();
    let server = Server::start(site.path(), &["--send-timeout", "1s"]);
    let mut stream = connect_with_receive_buffer(server.address(), 16 << 10);
    send_get(&mut stream, "/big");
    read_head(&mut stream).unwrap();
    let mut buffer = [0; 2000];
    let mut received = 0;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(8) {
        stream.read_exact(&mut buffer).unwrap();
        received += buffer.len();
        sleep(Duration::from_millis(25));
    }
    let mut rest = stream.take((BIG_FILE_BYTES - received) as u64);
    let rest = std::io::copy(&mut rest, &mut std::io::sink()).unwrap();
    assert_eq!(rest, (BIG_FILE_BYTES - received) as u64);
}

#[test]
fn an_old_connection_is_closed_after_the_current_request() {
    let site = site();
    let server = Server::start(site.path(), &["--keepalive-time", "500ms"]);
    let mut stream = connect(server.address());
    let mut busy = connect_with_small_window(server.address());
    send_get(&mut busy, "/big");
    read_head(&mut busy).unwrap();
    let began = Instant::now();
    assert_eq!(get(&mut stream, "/").status, 200);
    assert_eq!(read_to_close(&mut stream), b"");
    let took = began.elapsed();
    assert!(TIMEOUT * 8 / 10 < took && took < MAX_DELAY, "{took:?}");
    sleep(TIMEOUT);
    assert_eq!(
        read_to_close(&mut busy).len(),
        BIG_FILE_BYTES,
        "the current response is complete"
    );
}

#[test]
fn zero_disables_a_deadline() {
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
    sleep(TIMEOUT);
    stream.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    sleep(TIMEOUT);
    stream.write_all(b"Host: a\r\n\r\n").unwrap();
    assert_eq!(
        crate::client::read_response(&mut stream).unwrap().status,
        200
    );
    sleep(TIMEOUT);
    assert_eq!(get(&mut stream, "/").status, 200);
}
