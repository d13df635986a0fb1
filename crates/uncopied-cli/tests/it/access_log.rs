//! Formats, escapes, and readers that are slow or gone.

use std::io::Write as _;

use crate::client::{connect, get, read_answer, read_to_close};
use crate::server::{End, Server, site};

/// Asks for the nasty things and returns how the server ended.
fn nasty(format: &str) -> End {
    let site = site();
    let mut server = Server::start(site.path(), &["--access-log", format]);
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
    crate::client::read_head(&mut stream).unwrap();
    drop(stream);
    let end = server.stop();
    assert!(end.output.contains("\"status\":200"), "{}", end.output);
    assert!(end.output.contains("\"complete\":false"), "{}", end.output);
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
