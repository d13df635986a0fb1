//! Tests of signals, the grace period and the totals.

use std::io::Read as _;
use std::net::TcpStream;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::client::{connect, connect_with_small_window, get, read_head, read_to_close, send_get};
use crate::server::{BIG_FILE_BYTES, Server, program, site};
use crate::terminal::Terminal;

#[test]
fn requests_in_progress_finish_and_idle_connections_close_at_once() {
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT] {
        let site = site();
        let server = Server::start(site.path(), &["--threads", "2"]);
        let address = server.address();
        let mut idle = connect(address);
        get(&mut idle, "/");
        let mut fresh = connect(address);
        let mut busy = connect_with_small_window(address);
        send_get(&mut busy, "/big");
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
        // Wait until the port is closed. This may take a moment, because each worker closes its own
        // duplicate of the listener.
        while TcpStream::connect(address).is_ok() {
            assert!(
                began.elapsed() < Duration::from_secs(5),
                "a listener is still open"
            );
        }

        let mut buffer = vec![0; BIG_FILE_BYTES / 20];
        for _ in 0..20 {
            busy.read_exact(&mut buffer).unwrap();
            sleep(Duration::from_millis(20));
        }
        assert_eq!(read_to_close(&mut busy), b"");
        let exit = server.wait();
        assert_eq!(exit.status.code(), Some(0), "{:?}", exit.stderr);
        assert_eq!(
            exit.stderr.len(),
            2,
            "no connection was aborted: {:?}",
            exit.stderr
        );
        assert!(
            exit.stderr[1].starts_with("uncopied: 2 requests, "),
            "{:?}",
            exit.stderr
        );
    }
}

#[test]
fn signals_that_ask_for_nothing_do_no_harm() {
    let site = site();
    let server = Server::start(site.path(), &[]);
    let mut stream = connect(server.address());
    for signal in [Signal::HUP, Signal::USR2, Signal::XFSZ] {
        server.signal(signal);
        assert_eq!(get(&mut stream, "/").status, 200, "{signal:?}");
    }
    assert_eq!(server.stop().status.code(), Some(0));
}

/// Starts a server whose standard error is a terminal.
fn start_on_terminal(site: &std::path::Path, flags: &[&str]) -> (std::process::Child, Terminal) {
    let terminal = Terminal::open();
    let mut command = program();
    command
        .arg("serve")
        .arg(site)
        .args(["--listen", "127.0.0.1:0"])
        .args(flags)
        .stdout(Stdio::null())
        .stderr(terminal.other_end());
    (command.spawn().unwrap(), terminal)
}

#[test]
fn a_user_at_a_terminal_is_told_what_the_server_waits_for() {
    let site = site();
    let (mut child, mut terminal) = start_on_terminal(site.path(), &["--grace", "5m"]);
    let address = terminal.wait_for_address();
    let mut busy = connect_with_small_window(address);
    send_get(&mut busy, "/big");
    read_head(&mut busy).unwrap();
    let process = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(process, Signal::INT).unwrap();
    terminal.wait_for_line("finishing 1 request, up to 5 m; Ctrl-C again to cut");
    rustix::process::kill_process(process, Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_server_whose_terminal_was_closed_stops() {
    let site = site();
    let (mut child, mut terminal) = start_on_terminal(site.path(), &[]);
    terminal.wait_for_address();
    drop(terminal);
    let process = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(process, Signal::HUP).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn connections_are_aborted_after_the_grace_period() {
    let site = site();
    let server = Server::start(site.path(), &["--grace", "500ms"]);
    let mut stalled = connect_with_small_window(server.address());
    send_get(&mut stalled, "/big");
    read_head(&mut stalled).unwrap();
    let began = Instant::now();
    let exit = server.stop();
    let took = began.elapsed();
    assert_eq!(exit.status.code(), Some(0), "{:?}", exit.stderr);
    assert!(
        exit.stderr[1].contains("closing connections that are still open: 1"),
        "{:?}",
        exit.stderr
    );
    let range = Duration::from_millis(400)..Duration::from_secs(5);
    assert!(range.contains(&took), "{took:?}");
    assert!(read_to_close(&mut stalled).len() < BIG_FILE_BYTES);
}

#[test]
fn a_second_signal_closes_all_connections_at_once() {
    let site = site();
    let server = Server::start(site.path(), &["--grace", "1h"]);
    let mut stalled = connect_with_small_window(server.address());
    send_get(&mut stalled, "/big");
    read_head(&mut stalled).unwrap();
    server.signal(Signal::TERM);
    sleep(Duration::from_millis(300));
    let exit = server.stop();
    assert_eq!(exit.status.code(), Some(0), "{:?}", exit.stderr);
}

#[test]
fn deadlines_apply_while_the_server_drains() {
    let site = site();
    let server = Server::start(site.path(), &["--grace", "1h", "--send-timeout", "500ms"]);
    let mut stalled = connect_with_small_window(server.address());
    send_get(&mut stalled, "/big");
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
        let response = get(&mut stream, "/");
        sent += response.head.len() + response.body.len();
    }
    let expected = format!("uncopied: 3 requests, {sent} bytes sent: sendfile ");
    // Wait until the server has counted the bytes of the last response. It counts them after
    // sending them, so the client may receive the response first.
    sleep(Duration::from_millis(100));
    server.signal(Signal::USR1);
    let line = server.wait_for_line(" bytes sent: ");
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
    assert_eq!(server.stop().stderr.last(), Some(&line));
}
