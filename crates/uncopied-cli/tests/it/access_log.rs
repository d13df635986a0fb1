//! Tests of the access log: formats, escapes, and log readers that are slow or have gone away.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, Signal, prlimit};

use crate::client::{TEST_TIMEOUT, connect, get, read_response, read_to_close};
use crate::server::{BIG_FILE_BYTES, ProgramExit, Server, assert_fails, program, site};
use crate::terminal::Terminal;

/// Sends requests with bytes that the log must escape, stops the server, and returns its output.
fn serve_requests_that_need_escapes(format: &str) -> ProgramExit {
    let site = site();
    // Use a single worker, so that the lines of all connections are in the order in which the
    // responses end.
    let flags = ["--access-log", format, "--threads", "1"];
    let mut server = Server::start(site.path(), &flags);
    server.collect_stdout();
    let mut stream = connect(server.address());
    assert_eq!(get(&mut stream, "/").status, 200);
    let target = b"/\"\\\xc2\x9b%1b%0aforged";
    let request = [
        &b"GET "[..],
        target,
        b" HTTP/1.1\r\nHost: a\r\nUser-Agent: x\ty\xff\"\r\n\r\n",
    ];
    stream.write_all(&request.concat()).unwrap();
    assert_eq!(read_response(&mut stream).unwrap().status, 404);
    let mut refused = connect(server.address());
    refused
        .write_all(b"GET /\x1b[2J HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    read_to_close(&mut refused);
    server.stop()
}

#[test]
fn text_lines_are_combined_and_escaped() {
    let exit = serve_requests_that_need_escapes("text");
    let lines: Vec<_> = exit.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[0].starts_with("127.0.0.1 - - ["), "{}", lines[0]);
    assert!(
        lines[0].ends_with(" +0000] \"GET / HTTP/1.1\" 200 6 \"-\" \"-\" copy \"-\""),
        "{}",
        lines[0]
    );
    let expected = "\"GET /\\x22\\x5C\\xC2\\x9B%1b%0aforged HTTP/1.1\" 404 ";
    assert!(lines[1].contains(expected), "{}", lines[1]);
    assert!(
        lines[1].ends_with("\"-\" \"x\\x09y\\xFF\\x22\" copy \"-\""),
        "{}",
        lines[1]
    );
    assert!(
        lines[2].ends_with(" +0000] \"-\" 400 16 \"-\" \"-\" copy \"-\""),
        "{}",
        lines[2]
    );
}

#[test]
fn json_lines_are_objects_and_escaped() {
    let exit = serve_requests_that_need_escapes("json");
    let lines: Vec<_> = exit.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    for part in [
        "{\"time\":\"20",
        "\"client\":\"127.0.0.1\",\"port\":",
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
        exit.stdout.chars().all(|c| c == '\n' || !c.is_control()),
        "{}",
        exit.stdout
    );
}

/// A socket for all addresses accepts IPv4 as IPv6, with addresses like `::ffff:127.0.0.1`.
#[test]
fn a_client_of_ipv4_is_logged_as_ipv4_on_a_socket_for_all_addresses() {
    let site = site();
    for (format, expected) in [
        ("text", "127.0.0.1 - - ["),
        ("json", "\"client\":\"127.0.0.1\",\"port\":"),
    ] {
        let flags = ["--listen", ":0", "--access-log", format];
        let mut server = Server::start(site.path(), &flags);
        server.collect_stdout();
        let (_, port) = server.urls[1].rsplit_once(':').unwrap();
        let port: u16 = port.trim_end_matches('/').parse().unwrap();
        get(&mut connect(([127, 0, 0, 1], port).into()), "/");
        let exit = server.stop();
        assert!(exit.stdout.contains(expected), "{}", exit.stdout);
    }
}

#[test]
fn a_response_that_is_cut_short_is_not_complete() {
    let site = site();
    let mut server = Server::start(site.path(), &["--access-log", "json"]);
    server.collect_stdout();
    let mut stream = crate::client::connect_with_small_window(server.address());
    crate::client::send_get(&mut stream, "/big");
    let (head, _) = crate::client::read_head(&mut stream).unwrap();
    drop(stream);
    let exit = server.stop();
    let [line] = lines(&exit)[..] else {
        panic!("{}", exit.stdout);
    };
    assert!(line.contains("\"status\":200"), "{line}");
    assert!(line.contains("\"complete\":false"), "{line}");
    // Compare with the totals, which also count the bytes that the socket accepted, but include the
    // head.
    let taken = exit.totals().bytes - head.len() as u64;
    assert!(
        line.contains(&format!("\"bytes\":{taken},")),
        "{line}: {taken}"
    );
    assert!((1..BIG_FILE_BYTES as u64).contains(&taken), "{taken}");
}

fn lines(exit: &ProgramExit) -> Vec<&str> {
    exit.stdout.lines().collect()
}

#[test]
fn a_response_to_a_slow_client_is_logged_at_its_end() {
    let site = site();
    let mut server = Server::start(site.path(), &["--access-log", "json"]);
    server.collect_stdout();
    let mut slow = crate::client::connect_with_small_window(server.address());
    crate::client::send_get(&mut slow, "/big");
    crate::client::read_head(&mut slow).unwrap();
    sleep(Duration::from_millis(600));
    get(&mut connect(server.address()), "/");
    slow.read_exact(&mut vec![0; BIG_FILE_BYTES]).unwrap();
    let exit = server.stop();
    let lines = lines(&exit);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].contains("\"target\":\"/\","), "{lines:?}");
    let expected = format!("\"bytes\":{BIG_FILE_BYTES},\"complete\":true,\"seconds\":");
    let (_, seconds) = lines[1].split_once(&expected).unwrap();
    let (seconds, _) = seconds.split_once(',').unwrap();
    let seconds: f64 = seconds.parse().unwrap();
    assert!((0.6..20.0).contains(&seconds), "{lines:?}");
}

#[test]
fn pipelined_requests_are_logged_in_order() {
    let site = site();
    let mut server = Server::start(site.path(), &["--access-log", "json", "--threads", "1"]);
    server.collect_stdout();
    let mut stream = connect(server.address());
    let requested = [
        ("GET", "/", 200, 6),
        ("HEAD", "/", 200, 0),
        ("GET", "/missing", 404, 14),
        ("GET", "/big", 200, BIG_FILE_BYTES),
        ("OPTIONS", "/", 204, 0),
        ("GET", "/", 200, 6),
    ];
    let requests: String = requested
        .iter()
        .map(|(method, target, ..)| format!("{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n"))
        .collect();
    stream.write_all(requests.as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    read_to_close(&mut stream);
    let exit = server.stop();
    let lines = lines(&exit);
    assert_eq!(lines.len(), requested.len(), "{lines:?}");
    for (line, (method, target, status, bytes)) in lines.iter().zip(requested) {
        let expected = [
            format!("\"method\":\"{method}\",\"target\":\"{target}\","),
            format!("\"status\":{status},\"bytes\":{bytes},\"complete\":true,"),
        ];
        assert!(expected.iter().all(|part| line.contains(part)), "{line}");
    }
}

#[test]
fn a_terminal_gets_a_short_line_per_request_unless_told_otherwise() {
    let site = site();
    for (flags, expected) in [
        (&[][..], Some("127.0.0.1 GET / 200 6 bytes ")),
        (&["--access-log", "json"], Some("{\"time\":\"20")),
        (&["--access-log", "off"], None),
    ] {
        let terminal = Terminal::open();
        let mut command = program();
        command
            .arg("serve")
            .arg(site.path())
            .args(["--listen", "127.0.0.1:0"])
            .args(flags);
        let server = Server::spawn_with_stdout(command, 1, terminal.other_end());
        get(&mut connect(server.address()), "/");
        assert_eq!(server.stop().status.code(), Some(0));
        let lines = terminal.written();
        match expected {
            Some(text) => assert!(lines.starts_with(text), "{flags:?}: {lines}"),
            None => assert_eq!(lines, "", "{flags:?}"),
        }
    }
}

#[test]
fn there_is_no_log_by_default() {
    let site = site();
    let mut server = Server::start(site.path(), &[]);
    server.collect_stdout();
    get(&mut connect(server.address()), "/");
    assert_eq!(server.stop().stdout, "");
}

/// Logs more lines than the pipe and the server's buffer can hold, while nobody reads the pipe.
#[test]
fn a_log_that_is_not_read_delays_no_request() {
    let site = site();
    let server = Server::start(site.path(), &["--access-log", "text"]);
    let mut stream = connect(server.address());
    let target = format!("/?{}", "a".repeat(8000));
    for _ in 0..600 {
        assert_eq!(get(&mut stream, &target).status, 200);
    }
    let exit = server.stop();
    assert_eq!(exit.status.code(), Some(0), "{:?}", exit.stderr);
    let totals = exit.stderr.last().unwrap();
    assert!(totals.starts_with("uncopied: 600 requests"), "{totals}");
    // 600 lines of 8 KB do not fit into the pipe and the buffer of 4 MiB, so some are dropped.
    let (_, dropped) = totals.rsplit_once("; ").unwrap();
    let dropped: u32 = dropped
        .strip_suffix(" access log lines dropped")
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..600).contains(&dropped), "{totals}");
}

/// Limits the size of the files that a process may write.
fn limit_file_size(server: &Server, bytes: u64) {
    let pid = rustix::process::Pid::from_raw(server.id().cast_signed());
    let limit = Rlimit {
        current: Some(bytes),
        maximum: None,
    };
    prlimit(pid, Resource::Fsize, limit).unwrap();
}

/// Requests targets of 1 KB until `path` has `bytes` bytes. Returns the number of requests.
fn fill(server: &Server, path: &Path, bytes: u64) -> usize {
    let mut stream = connect(server.address());
    let target = format!("/?{}", "a".repeat(1000));
    for sent in 1.. {
        assert_eq!(get(&mut stream, &target).status, 200);
        if fs::metadata(path).unwrap().len() >= bytes {
            return sent;
        }
    }
    unreachable!("the loop has no end")
}

/// A limit on the size of the file stands for a disk that is full: the last write before it is
/// short, and the following ones fail.
#[test]
fn a_log_without_room_goes_on_when_there_is_room_and_loses_no_line() {
    let site = site();
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut command = program();
    command
        .arg("serve")
        .arg(site.path())
        .args(["--listen", "127.0.0.1:0", "--access-log", "json"]);
    let mut server = Server::spawn_with_stdout(command, 1, log.reopen().unwrap().into());
    limit_file_size(&server, 10_000);
    let mut requests = fill(&server, log.path(), 10_000);
    let mut stream = connect(server.address());
    get(&mut stream, "/");
    requests += 1;
    let line = server.wait_for_line("access log");
    assert!(
        line.contains("cannot write to standard output: file too large; raise the limit"),
        "{line}"
    );
    limit_file_size(&server, 1 << 30);
    server.wait_for_line("writing to standard output again; lines lost meanwhile: 0");
    assert_eq!(server.stop().status.code(), Some(0));
    let text = fs::read_to_string(log.path()).unwrap();
    assert_eq!(text.lines().count(), requests);
    for line in text.lines() {
        assert!(line.starts_with('{') && line.ends_with('}'), "{line}");
    }
}

#[test]
fn a_log_that_still_has_no_room_at_the_end_has_no_half_line_and_lost_lines_are_counted() {
    let site = site();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let flags = ["--access-log-file", path.to_str().unwrap()];
    let mut server = Server::start(site.path(), &flags);
    limit_file_size(&server, 10_000);
    let requests = fill(&server, &path, 10_000);
    let mut stream = connect(server.address());
    get(&mut stream, "/");
    server.wait_for_line("access log: cannot write to");
    let exit = server.stop();
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.ends_with("\"\n"), "{text}");
    let lost = requests + 1 - text.lines().count();
    let totals = exit.stderr.last().unwrap();
    let s = if lost == 1 { "" } else { "s" };
    assert!(
        totals.ends_with(&format!("; {lost} access log line{s} dropped")),
        "{totals}"
    );
}

#[test]
fn a_log_file_is_appended_to_and_opened_again_on_sighup() {
    let site = site();
    let directory = tempfile::tempdir().unwrap();
    let (path, old) = (
        directory.path().join("access.log"),
        directory.path().join("access.log.1"),
    );
    fs::write(&path, "a line of before\n").unwrap();
    let flags = ["--access-log-file", path.to_str().unwrap()];
    let server = Server::start(site.path(), &flags);
    let mut stream = connect(server.address());
    get(&mut stream, "/first");
    wait_for_text(&path, "/first");
    fs::rename(&path, &old).unwrap();
    server.signal(Signal::HUP);
    wait_for_text(&path, "");
    get(&mut stream, "/second");
    assert_eq!(server.stop().status.code(), Some(0));
    let (old, new) = (
        fs::read_to_string(&old).unwrap(),
        fs::read_to_string(&path).unwrap(),
    );
    let lines: Vec<_> = old.lines().collect();
    assert_eq!(lines.len(), 2, "{old}");
    assert!(lines[1].contains("\"GET /first HTTP/1.1\" 404 "), "{old}");
    assert!(new.contains("\"GET /second HTTP/1.1\" 404 "), "{new}");
    assert_eq!(new.lines().count(), 1, "{new}");
}

/// Waits until a file exists and contains `text`.
fn wait_for_text(path: &Path, text: &str) {
    let began = Instant::now();
    while !fs::read_to_string(path).is_ok_and(|content| content.contains(text)) {
        assert!(
            began.elapsed() < TEST_TIMEOUT,
            "{text:?} is not in {path:?}"
        );
        sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_log_file_that_cannot_be_opened_is_an_error() {
    assert_fails(
        &["serve", "--access-log-file", "/nowhere/access.log"],
        1,
        &["/nowhere/access.log", "no such file", "--access-log-file"],
    );
}

#[test]
fn a_closed_pipe_stops_the_log_but_not_the_server() {
    let site = site();
    let mut server = Server::start(site.path(), &["--access-log", "text"]);
    server.close_stdout();
    let mut stream = connect(server.address());
    for _ in 0..3 {
        assert_eq!(get(&mut stream, "/").status, 200);
    }
    server.wait_for_line("access log stopped");
    assert_eq!(get(&mut stream, "/").status, 200);
    let exit = server.stop();
    assert_eq!(exit.status.code(), Some(0), "{:?}", exit.stderr);
    assert!(
        exit.stderr
            .last()
            .unwrap()
            .starts_with("uncopied: 4 requests")
    );
}
