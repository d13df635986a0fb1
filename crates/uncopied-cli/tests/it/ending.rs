//! Signals, the grace period, the totals.

use std::io::Read as _;
use std::net::TcpStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::client::{ask, connect, connect_narrow, get, read_head, read_to_close};
use crate::server::{BIG, Server, site};

#[test]
fn what_is_under_way_finishes_and_idle_connections_close_at_once() {
    for signal in [Signal::TERM, Signal::INT] {
        let site = site();
        let server = Server::start(site.path(), &["--threads", "2"]);
        let address = server.address();
        let mut idle = connect(address);
        get(&mut idle, "/");
        let mut fresh = connect(address);
        let mut busy = connect_narrow(address);
        ask(&mut busy, "/big");
        read_head(&mut busy).unwrap();

        let began = Instant::now();
        server.signal(signal);
        assert_eq!(read_to_close(&mut idle), b"");
        assert_eq!(read_to_close(&mut fresh), b"");
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "{:?}",
            began.elapsed()
        );
        // Each thread closes its listener by itself, so the last one may take a moment.
        while TcpStream::connect(address).is_ok() {
            assert!(
                began.elapsed() < Duration::from_secs(5),
                "somebody still listens"
            );
        }

        let mut buffer = vec![0; BIG / 20];
        for _ in 0..20 {
            busy.read_exact(&mut buffer).unwrap();
            sleep(Duration::from_millis(20));
        }
        assert_eq!(read_to_close(&mut busy), b"");
        let end = server.end();
        assert_eq!(end.status.code(), Some(0), "{:?}", end.said);
        assert_eq!(end.said.len(), 2, "nothing was cut: {:?}", end.said);
        assert!(
            end.said[1].starts_with("uncopied: 2 requests, "),
            "{:?}",
            end.said
        );
    }
}

#[test]
fn after_the_grace_period_the_rest_is_cut() {
    let site = site();
    let server = Server::start(site.path(), &["--grace", "500ms"]);
    let mut stalled = connect_narrow(server.address());
    ask(&mut stalled, "/big");
    read_head(&mut stalled).unwrap();
    let began = Instant::now();
    let end = server.stop();
    let took = began.elapsed();
    assert_eq!(end.status.code(), Some(0), "{:?}", end.said);
    assert!(
        end.said[1].contains("cutting the connections that are still open: 1"),
        "{:?}",
        end.said
    );
    let range = Duration::from_millis(400)..Duration::from_secs(5);
    assert!(range.contains(&took), "{took:?}");
    assert!(read_to_close(&mut stalled).len() < BIG);
}

#[test]
fn a_second_signal_cuts_at_once() {
    let site = site();
    let server = Server::start(site.path(), &["--grace", "1h"]);
    let mut stalled = connect_narrow(server.address());
    ask(&mut stalled, "/big");
    read_head(&mut stalled).unwrap();
    server.signal(Signal::TERM);
    sleep(Duration::from_millis(300));
    let end = server.stop();
    assert_eq!(end.status.code(), Some(0), "{:?}", end.said);
}

#[test]
fn deadlines_hold_while_the_server_finishes() {
    let site = site();
    let server = Server::start(site.path(), &["--grace", "1h", "--send-timeout", "500ms"]);
    let mut stalled = connect_narrow(server.address());
    ask(&mut stalled, "/big");
    read_head(&mut stalled).unwrap();
    assert_eq!(server.stop().status.code(), Some(0));
}

#[test]
fn totals_are_printed_on_request_and_at_the_end() {
    let site = site();
    let mut server = Server::start(site.path(), &[]);
    let mut stream = connect(server.address());
    let mut sent = 0;
    for _ in 0..3 {
        let answer = get(&mut stream, "/");
        sent += answer.head.len() + answer.body.len();
    }
    let expected = format!("uncopied: 3 requests, {sent} bytes sent: sendfile ");
    // The last answer is counted after it was sent.
    sleep(Duration::from_millis(100));
    server.signal(Signal::USR1);
    let line = server.wait_for(" requests, ");
    assert!(line.starts_with(&expected), "{line}");
    let words: Vec<_> = line
        .split([' ', ',', ':'])
        .filter(|word| !word.is_empty())
        .collect();
    let amount = |name| {
        let at = words.iter().position(|word| *word == name).unwrap();
        words[at + 1].parse::<usize>().unwrap()
    };
    let parts = ["sendfile", "splice", "mmap_write", "copy"].map(amount);
    assert_eq!(parts.iter().sum::<usize>(), sent, "{line}");
    assert_eq!(server.stop().said.last(), Some(&line));
}
