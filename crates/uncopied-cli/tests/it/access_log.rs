//! Formats, escapes, and readers that are slow or gone.

use std::io::{Read as _, Write as _};
use std::thread::sleep;
use std::time::Duration;

use crate::client::{connect, get, read_answer, read_to_close};
use crate::server::{BIG, End, Server, site};

/// Asks for the nasty things and returns how the server ended.
fn nasty(format: &str) -> End {
    let site = site();
    // By one thread: the lines of different connections are then in the order of their answers.
    let flags = ["--access-log", format, "--threads", "1"];
    let mut server = Server::start(site.path(), &flags);
    server.collect_output();
    let mut stream = connect(server.address());
    assert_eq!(get(&mut stream, "/").status, 200);
    let target = b"/\"\\\xc2\x9b%1b%0aforged";
    let request = [
        &b"GET "[..],
        target,
        b" HTTP/1.1\r\nHost: a\r\nUser-Agent: x\ty\xff\"\r\n\r\n",
    ];
    stream.write_all(&request.concat()).unwrap();
    assert_eq!(read_answer(&mut stream).unwrap().status, 404);
    let mut refused = connect(server.address());
    refused
        .write_all(b"GET /\x1b[2J HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    read_to_close(&mut refused);
    server.stop()
}

#[test]
fn text_lines_are_combined_and_escaped() {
    let end = nasty("text");
    let lines: Vec<_> = end.output.lines().collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[0].starts_with("127.0.0.1 - - ["), "{}", lines[0]);
    assert!(
        lines[0].ends_with(" +0000] \"GET / HTTP/1.1\" 200 6 \"-\" \"-\""),
        "{}",
        lines[0]
    );
    let expected = "\"GET /\\x22\\x5C\\xC2\\x9B%1b%0aforged HTTP/1.1\" 404 ";
    assert!(lines[1].contains(expected), "{}", lines[1]);
    assert!(
        lines[1].ends_with("\"-\" \"x\\x09y\\xFF\\x22\""),
        "{}",
        lines[1]
    );
    assert!(
        lines[2].ends_with(" +0000] \"-\" 400 0 \"-\" \"-\""),
        "{}",
        lines[2]
    );
}

#[test]
fn json_lines_are_objects_and_escaped() {
    let end = nasty("json");
    let lines: Vec<_> = end.output.lines().collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    for part in [
        "{\"time\":\"20",
        "\"client\":\"127.0.0.1:",
        "\"method\":\"GET\",\"target\":\"/\",\"version\":\"HTTP/1.1\",\"status\":200,\"bytes\":6,\"complete\":true,\"seconds\":0.",
    ] {
        assert!(lines[0].contains(part), "{part} is missing in {}", lines[0]);
    }
    for part in [
        r#""target":"/\"\\\u009b%1b%0aforged""#,
        "\"user_agent\":\"x\\u0009y\u{fffd}\\\"\"",
        "\"status\":404",
    ] {
        assert!(lines[1].contains(part), "{part} is missing in {}", lines[1]);
    }
    assert!(
        lines[2].contains("\"status\":400") && !lines[2].contains("target"),
        "{}",
        lines[2]
    );
    assert!(
        end.output.chars().all(|c| c == '\n' || !c.is_control()),
        "{}",
        end.output
    );
}

#[test]
fn an_answer_that_was_cut_short_is_not_complete() {
    let site = site();
    let mut server = Server::start(site.path(), &["--access-log", "json"]);
    server.collect_output();
    let mut stream = crate::client::connect_narrow(server.address());
    crate::client::ask(&mut stream, "/big");
    let (head, _) = crate::client::read_head(&mut stream).unwrap();
    drop(stream);
    let end = server.stop();
    let [line] = lines(&end)[..] else {
        panic!("{}", end.output);
    };
    assert!(line.contains("\"status\":200"), "{line}");
    assert!(line.contains("\"complete\":false"), "{line}");
    // What the socket took is in the totals as well, and there with the head.
    let taken = end.totals().bytes - head.len() as u64;
    assert!(
        line.contains(&format!("\"bytes\":{taken},")),
        "{line}: {taken}"
    );
    assert!((1..BIG as u64).contains(&taken), "{taken}");
}

fn lines(end: &End) -> Vec<&str> {
    end.output.lines().collect()
}

#[test]
fn an_answer_that_a_client_takes_slowly_is_logged_at_its_end() {
    let site = site();
    let mut server = Server::start(site.path(), &["--access-log", "json"]);
    server.collect_output();
    let mut slow = crate::client::connect_narrow(server.address());
    crate::client::ask(&mut slow, "/big");
    crate::client::read_head(&mut slow).unwrap();
    sleep(Duration::from_millis(600));
    get(&mut connect(server.address()), "/");
    slow.read_exact(&mut vec![0; BIG]).unwrap();
    let end = server.stop();
    let lines = lines(&end);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].contains("\"target\":\"/\","), "{lines:?}");
    let expected = format!("\"bytes\":{BIG},\"complete\":true,\"seconds\":");
    let (_, seconds) = lines[1].split_once(&expected).unwrap();
    let seconds: f64 = seconds.trim_end_matches('}').parse().unwrap();
    assert!((0.6..20.0).contains(&seconds), "{lines:?}");
}

#[test]
fn pipelined_requests_are_logged_in_order() {
    let site = site();
    let mut server = Server::start(site.path(), &["--access-log", "json", "--threads", "1"]);
    server.collect_output();
    let mut stream = connect(server.address());
    let asked = [
        ("GET", "/", 200, 6),
        ("HEAD", "/", 200, 0),
        ("GET", "/missing", 404, 14),
        ("GET", "/big", 200, BIG),
        ("OPTIONS", "/", 204, 0),
        ("GET", "/", 200, 6),
    ];
    let requests: String = asked
        .iter()
        .map(|(method, target, ..)| format!("{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n"))
        .collect();
    stream.write_all(requests.as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    read_to_close(&mut stream);
    let end = server.stop();
    let lines = lines(&end);
    assert_eq!(lines.len(), asked.len(), "{lines:?}");
    for (line, (method, target, status, bytes)) in lines.iter().zip(asked) {
        let expected = [
            format!("\"method\":\"{method}\",\"target\":\"{target}\","),
            format!("\"status\":{status},\"bytes\":{bytes},\"complete\":true,"),
        ];
        assert!(expected.iter().all(|part| line.contains(part)), "{line}");
    }
}

#[test]
fn there_is_no_log_unless_asked_for() {
    let site = site();
    let mut server = Server::start(site.path(), &[]);
    server.collect_output();
    get(&mut connect(server.address()), "/");
    assert_eq!(server.stop().output, "");
}

/// More lines than a pipe holds, and nobody reads it.
#[test]
fn a_log_that_nobody_reads_holds_nobody_up() {
    let site = site();
    let server = Server::start(site.path(), &["--access-log", "text"]);
    let mut stream = connect(server.address());
    let target = format!("/?{}", "a".repeat(8000));
    for _ in 0..600 {
        assert_eq!(get(&mut stream, &target).status, 200);
    }
    let end = server.stop();
    assert_eq!(end.status.code(), Some(0), "{:?}", end.said);
    let totals = end.said.last().unwrap();
    assert!(totals.starts_with("uncopied: 600 requests"), "{totals}");
    // 600 lines of 8 KB are more than the pipe and 4 MiB, so some were dropped, and not all.
    let (_, dropped) = totals.rsplit_once("; ").unwrap();
    let dropped: u32 = dropped
        .strip_suffix(" access log lines dropped")
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..600).contains(&dropped), "{totals}");
}

#[test]
fn a_reader_that_goes_away_is_a_success() {
    let site = site();
    let mut server = Server::start(site.path(), &["--access-log", "text"]);
    server.close_output();
    let mut stream = connect(server.address());
    for _ in 0..3 {
        assert_eq!(get(&mut stream, "/").status, 200);
    }
    server.wait_for("the access log stops");
    assert_eq!(get(&mut stream, "/").status, 200);
    let end = server.stop();
    assert_eq!(end.status.code(), Some(0), "{:?}", end.said);
    assert!(end.said.last().unwrap().starts_with("uncopied: 4 requests"));
}
