//! The choice of targets, refusals, and PROXY headers.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener};
use std::thread;

use super::peers::{Target, named, refusing};
use super::{assert_reset, metrics, relay};
use crate::client::{connect, read_to_end};
use crate::server::assert_fails;

#[test]
fn another_target_is_tried_when_one_refuses() {
    let (down, up) = (refusing(), named("up"));
    let flags = ["--metrics", "127.0.0.1:0", "--health-interval", "off"];
    let relay = relay(&[down, up], &flags);
    for _ in 0..4 {
        assert_eq!(read_to_end(&mut connect(relay.address())), b"up");
    }
    let metrics = metrics(&relay);
    // Round-robin begins with the one that is down every other time.
    let refused = metrics.value("connect_errors_total{error=\"refused\"}");
    assert_eq!(refused, 2);
    let listener = "127.0.0.1:0";
    let target = format!("{{listener=\"{listener}\",target=\"{down}\"}}");
    assert_eq!(metrics.value(&format!("target_failures_total{target}")), 2);
    let target = format!("{{listener=\"{listener}\",target=\"{up}\"}}");
    assert_eq!(
        metrics.value(&format!("target_connections_total{target}")),
        4
    );
}

#[test]
fn clients_are_refused_while_all_targets_are_down() {
    let down = refusing();
    let mut relay = relay(&[down], &["--access-log", "json"]);
    relay.collect_stdout();
    assert_reset(&connect(relay.address()), b"");
    let warning = relay.wait_for_line("no target accepts connections");
    assert!(warning.contains("refused"), "{warning}");
    let listener = TcpListener::bind(down).unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"back").unwrap();
    });
    assert_eq!(read_to_end(&mut connect(relay.address())), b"back");
    server.join().unwrap();
    let exit = relay.stop();
    let lines: Vec<serde_json::Value> = exit
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    // In any order, because a line is written once its client has seen the end.
    let with_end = |end: &str| lines.iter().find(|line| line["end"] == end).unwrap();
    let refused = with_end("no_target");
    assert_eq!(refused["target"], serde_json::Value::Null);
    let error = refused["error"].as_str().unwrap();
    assert!(error.contains(&down.to_string()), "{error}");
    assert_eq!(with_end("finished")["target"], down.to_string());
}

#[test]
fn an_address_that_is_in_use_is_an_error() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let target = refusing().to_string();
    assert_fails(&["relay", &address, &target], 1, &["in use", "LISTEN"]);
    let flags = ["relay", "127.0.0.1:0", &target, "--metrics", &address];
    assert_fails(&flags, 1, &["in use", "--metrics"]);
}

#[test]
fn a_target_that_does_not_accept_in_time_is_given_up() {
    // A listener whose queue is full does not respond to further clients.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    full.bind(&any.into()).unwrap();
    full.listen(0).unwrap();
    let address = full.local_addr().unwrap().as_socket().unwrap();
    let _queued = connect(address);
    let flags = ["--connect-timeout", "200ms", "--health-interval", "off"];
    let relay = relay(&[address, named("up")], &flags);
    for _ in 0..2 {
        assert_eq!(read_to_end(&mut connect(relay.address())), b"up");
    }
}

#[test]
fn a_proxy_header_is_sent_first() {
    let target = Target::start();
    let relay = relay(&[target.address], &["--send-proxy", "v1"]);
    let mut client = connect(relay.address());
    client.write_all(b"hello").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let (from, to) = (client.local_addr().unwrap(), relay.address());
    let header = format!(
        "PROXY TCP4 {} {} {} {}\r\nhello",
        from.ip(),
        to.ip(),
        from.port(),
        to.port()
    );
    let received = read_to_end(&mut target.accept());
    assert_eq!(String::from_utf8(received).unwrap(), header);
}

#[test]
fn a_proxy_header_that_arrives_in_pieces_is_read_logged_and_passed_on() {
    let target = Target::start();
    let flags = [
        "--accept-proxy",
        "v1",
        "--send-proxy",
        "v1",
        "--access-log",
        "text",
    ];
    let mut relay = relay(&[target.address], &flags);
    relay.collect_stdout();
    let line = "PROXY TCP4 192.0.2.7 198.51.100.9 4000 5432\r\n";
    let mut client = connect(relay.address());
    for piece in line.as_bytes().chunks(5) {
        client.write_all(piece).unwrap();
    }
    client.write_all(b"hello").unwrap();
    let mut server = target.accept();
    let mut received = vec![0; line.len() + 5];
    server.read_exact(&mut received).unwrap();
    assert_eq!(String::from_utf8(received).unwrap(), format!("{line}hello"));
    drop(server);
    assert_eq!(read_to_end(&mut client), b"");
    drop(client);
    let exit = relay.stop();
    assert!(
        exit.stdout.starts_with("192.0.2.7:4000 ["),
        "{}",
        exit.stdout
    );
}

#[test]
fn connections_without_a_valid_proxy_header_are_reset() {
    let target = Target::start();
    let flags = [
        "--accept-proxy",
        "any",
        "--connect-timeout",
        "300ms",
        "--access-log",
        "text",
    ];
    let mut relay = relay(&[target.address], &flags);
    relay.collect_stdout();
    let mut not_a_header = connect(relay.address());
    not_a_header.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert_reset(&not_a_header, b"");
    let mut incomplete = connect(relay.address());
    incomplete.write_all(b"PROXY TCP4 192.0.2.7 ").unwrap();
    assert_reset(&incomplete, b"");
    let ended = connect(relay.address());
    ended.shutdown(Shutdown::Write).unwrap();
    assert_reset(&ended, b"");
    let exit = relay.stop();
    let log: Vec<_> = exit.stdout.lines().collect();
    assert_eq!(log.len(), 3, "{log:?}");
    for line in &log {
        assert!(line.contains(" target=- "), "{line}");
        assert!(line.contains(" end=proxy_header "), "{line}");
    }
    for reason in [
        "does not begin with an accepted PROXY header",
        "it did not arrive in time",
        "the client closed the connection",
    ] {
        let count = log.iter().filter(|line| line.contains(reason)).count();
        assert_eq!(count, 1, "{reason}: {log:?}");
    }
}
