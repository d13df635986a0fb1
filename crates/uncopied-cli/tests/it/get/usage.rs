//! Names, files that exist, checksums, limits, the summary, and the progress display.

use std::fs;
use std::io::{Read as _, Write as _};
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::scripted::{Scripted, Then, Version, header};
use super::{get, get_fails, get_ok, names};
use crate::data::test_bytes;
use crate::server::assert_fails;
use crate::terminal::Terminal;

const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
const SHA256: &str = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
const BLAKE3: &str = "blake3:ea8f163db38682925e4491c5e58d4bb3506ef8c14eb78a86e908c5624a67200f";

#[test]
fn wrong_usage_has_status_2() {
    for (arguments, words) in [
        (&[][..], "URL"),
        (&["http://a/", "--checksum", "md5:0"], "sha256"),
        (
            &["http://a/", "http://b/", "--checksum", SHA256],
            "single URL",
        ),
        (&["http://a/", "-c", "-o", "-"], "standard output"),
        (&["http://a/", "http://b/", "-o", "x"], "directory"),
        (&["http://a/", "-H", "Range: bytes=0-"], "set by uncopied"),
        (&["http://a/", "--limit-rate", "0"], "minimum"),
        (&["http://a/", "--connections", "0"], "connections"),
    ] {
        assert_fails(&[&["get"], arguments].concat(), 2, &[words]);
    }
    assert_fails(&["get", "-i", "/nonexistent"], 1, &["--input /nonexistent"]);
    assert_fails(&["get", "http://a/..%2fx"], 1, &["give one with -o"]);
}

#[test]
fn files_that_exist_are_not_replaced_unless_asked() {
    let server = Scripted::bytes(HELLO);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("f");
    fs::write(&file, "mine").unwrap();
    get_fails(
        directory.path(),
        &[&server.url("f")],
        &["f exists; replace it with -f"],
    );
    assert_eq!(server.heads().len(), 0);
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    get_ok(directory.path(), &[&server.url("f"), "-f"]);
    assert_eq!(fs::read(&file).unwrap(), b"hello");
    get_ok(directory.path(), &[&server.url("f"), "-o", "g"]);
    get_ok(directory.path(), &[&server.url("f"), "-o", "/dev/null"]);
    assert_eq!(names(directory.path()), ["f", "g"]);
}

/// The name is free when the download begins. It is taken before a body that arrives with its head,
/// before the first bytes of one that does not, or before its last bytes.
#[test]
fn a_file_that_appears_during_the_download_is_not_replaced() {
    for (sent, is_taken_first) in [
        (HELLO.len(), true),
        (HELLO.len() - 3, true),
        (HELLO.len() - 3, false),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let (file, part) = (directory.path().join("f"), directory.path().join("f.part"));
        let taken = file.clone();
        let server = Scripted::start(move |_, socket, _| {
            let (early, late) = HELLO.split_at(sent);
            if is_taken_first {
                fs::write(&taken, "mine").unwrap();
                socket.write_all(early.as_bytes()).unwrap();
                // The rest is not needed to find out. Ends when the client has.
                let _ = socket.read(&mut [0]);
            } else {
                socket.write_all(early.as_bytes()).unwrap();
                while !part.exists() {
                    sleep(Duration::from_millis(1));
                }
                fs::write(&taken, "mine").unwrap();
                socket.write_all(late.as_bytes()).unwrap();
            }
            Then::Close
        });
        get_fails(directory.path(), &[&server.url("f")], &["f exists"]);
        assert_eq!(fs::read(&file).unwrap(), b"mine");
        assert_eq!(names(directory.path()), ["f"]);
    }
}

#[test]
fn what_is_no_regular_file_is_not_replaced() {
    let server = Scripted::bytes(HELLO);
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("directory")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", directory.path().join("device")).unwrap();
    let fifo = directory.path().join("fifo");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    for name in ["directory", "device", "fifo"] {
        for flags in [&[][..], &["-f"], &["-c", "--checksum", SHA256]] {
            let url = server.url(name);
            let arguments = [&[url.as_str()], flags].concat();
            let words = format!("{name} is not a regular file");
            get_fails(directory.path(), &arguments, &[&words]);
        }
    }
    assert_eq!(server.heads().len(), 0);
    assert_eq!(names(directory.path()), ["device", "directory", "fifo"]);
}

#[test]
fn a_checksum_decides_about_the_final_name() {
    let server = Scripted::bytes(HELLO);
    let directory = tempfile::tempdir().unwrap();
    for sum in [SHA256, BLAKE3] {
        get_ok(
            directory.path(),
            &[&server.url("f"), "-f", "--checksum", sum],
        );
        let output = get_ok(
            directory.path(),
            &[&server.url("f"), "-o", "-", "--checksum", sum],
        );
        assert_eq!(output.stdout, b"hello");
        let wrong = sum.replacen('2', "3", 1);
        let wrong = if wrong.starts_with("sha356") {
            sum.replace('4', "5")
        } else {
            wrong
        };
        let arguments = [&server.url("g"), "--checksum", &wrong];
        get_fails(directory.path(), &arguments, &["the checksum is", sum]);
        assert_eq!(names(directory.path()), ["f"]);
    }
    // A file that has the checksum is not fetched again.
    let count = server.heads().len();
    get_ok(
        directory.path(),
        &[&server.url("f"), "-c", "--checksum", SHA256],
    );
    assert_eq!(server.heads().len(), count);
}

#[test]
fn statuses_that_pass_are_retried_and_others_are_not() {
    for (status, requests) in [
        (503, 3),
        (429, 3),
        (408, 3),
        (500, 3),
        (404, 1),
        (403, 1),
        (501, 1),
    ] {
        let server = Scripted::start(move |_, socket, _| {
            let head =
                format!("HTTP/1.1 {status} X\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n");
            socket.write_all(head.as_bytes()).unwrap();
            Then::Close
        });
        let directory = tempfile::tempdir().unwrap();
        let words = [format!("status {status}")];
        get_fails(
            directory.path(),
            &[&server.url("f"), "--retries", "2"],
            &[&words[0]],
        );
        assert_eq!(server.heads().len(), requests, "{status}");
    }
}

#[test]
fn a_kept_connection_that_the_server_closed_is_replaced() {
    let server = Scripted::start(|_, socket, _| {
        socket.write_all(HELLO.as_bytes()).unwrap();
        Then::Close
    });
    let directory = tempfile::tempdir().unwrap();
    let urls = [server.url("1"), server.url("2"), server.url("3")];
    get_ok(
        directory.path(),
        &[&urls[0], &urls[1], &urls[2], "-P", "1", "--retries", "0"],
    );
    assert_eq!(names(directory.path()), ["1", "2", "3"]);
}

#[test]
fn a_server_that_stops_sending_is_given_up() {
    let server = Scripted::start(|head, socket, _| {
        let bytes = if head.contains("/head") {
            "HTTP/1.1"
        } else {
            &HELLO[..HELLO.len() - 2]
        };
        socket.write_all(bytes.as_bytes()).unwrap();
        sleep(Duration::from_secs(60));
        Then::Close
    });
    let directory = tempfile::tempdir().unwrap();
    for (path, flags) in [
        ("head", ["--read-timeout", "50ms"]),
        ("body", ["--read-timeout", "50ms"]),
        ("body", ["--max-time", "100ms"]),
    ] {
        let url = server.url(path);
        let arguments = [&[url.as_str(), "--retries", "0"], &flags[..]].concat();
        get_fails(directory.path(), &arguments, &["took more than", flags[0]]);
        assert_eq!(names(directory.path()), [""; 0]);
    }
}

#[test]
fn the_time_limit_includes_the_check_for_changes() {
    let server = Scripted::start(|_, _, _| {
        sleep(Duration::from_secs(60));
        Then::Close
    });
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("f"), "hello").unwrap();
    let url = server.url("f");
    let arguments = [url.as_str(), "-c", "--max-time", "100ms"];
    get_fails(directory.path(), &arguments, &["took more than 100 ms"]);
    assert_eq!(fs::read(directory.path().join("f")).unwrap(), b"hello");
}

#[test]
fn the_rate_is_limited() {
    let version = Version {
        data: test_bytes(300_000),
        tag: "\"a\"",
    };
    let server = Scripted::start(move |head, socket, _| version.send(head, socket));
    let directory = tempfile::tempdir().unwrap();
    let began = Instant::now();
    get_ok(
        directory.path(),
        &[&server.url("f"), "--limit-rate", "500k"],
    );
    // It cannot take less, however fast the machine is. The last tenth of a second is not waited
    // for.
    assert!(
        began.elapsed() >= Duration::from_millis(450),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn headers_come_from_the_command_line_and_from_files() {
    let server = Scripted::bytes(HELLO);
    let directory = tempfile::tempdir().unwrap();
    fs::write(
        directory.path().join("secret"),
        "Authorization: Bearer x\n\nX-B: c\n",
    )
    .unwrap();
    let url = server.url("f?q=1#fragment");
    let arguments = [
        url.as_str(),
        "-H",
        "X-A: b",
        "-H",
        "@secret",
        "-H",
        "User-Agent: me",
    ];
    get_ok(directory.path(), &arguments);
    let head = &server.heads()[0];
    for (name, value) in [
        ("x-a", "b"),
        ("x-b", "c"),
        ("authorization", "Bearer x"),
        ("user-agent", "me"),
        ("host", &server.address.to_string()),
    ] {
        assert_eq!(header(head, name), Some(value), "{head}");
    }
    assert!(head.starts_with("GET /f?q=1 HTTP/1.1\r\n"), "{head}");
    assert_eq!(head.to_lowercase().matches("user-agent").count(), 1);
    fs::write(directory.path().join("secret"), "password\n").unwrap();
    let output = get(directory.path(), &[&url, "-H", "@secret"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(!String::from_utf8_lossy(&output.stderr).contains("password"));
}

#[test]
fn the_summary_counts_bytes_by_mechanism() {
    let server = Scripted::start(|head, socket, _| {
        let missing = "HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n";
        let response = if head.contains("/missing") {
            missing
        } else {
            HELLO
        };
        socket.write_all(response.as_bytes()).unwrap();
        Then::KeepAlive
    });
    let directory = tempfile::tempdir().unwrap();
    let urls = [server.url("f"), server.url("missing")];
    let output = get(directory.path(), &[&urls[0], &urls[1], "--json"])
        .output()
        .unwrap();
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["bytes"], 5);
    assert_eq!(summary["failed"], 1);
    assert_eq!(summary["mechanisms"]["copy"], 5);
    let (first, second) = (&summary["downloads"][0], &summary["downloads"][1]);
    assert_eq!((&first["status"], &first["size"]), (&200.into(), &5.into()));
    assert_eq!(
        (&first["path"], &first["error"]),
        (&"f".into(), &serde_json::Value::Null)
    );
    assert_eq!(second["status"], 404);
    assert!(second["error"].as_str().unwrap().contains("404"));
    // On standard output are the bytes.
    let output = get(directory.path(), &[&urls[0], "--json", "-o", "-"])
        .output()
        .unwrap();
    assert_eq!(output.stdout, b"hello");
    let summary: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(summary["downloads"][0]["path"], serde_json::Value::Null);
}

/// Whatever arrives together with the head has passed through memory.
#[test]
fn bodies_are_moved_by_the_kernel_unless_that_is_switched_off() {
    const LEN: u64 = 3_000_000;
    let version = Version {
        data: test_bytes(LEN as usize),
        tag: "\"a\"",
    };
    let expected = version.data.clone();
    let server = Scripted::start(move |head, socket, _| version.send(head, socket));
    let directory = tempfile::tempdir().unwrap();
    let url = server.url("f");
    for (output, switch, mechanism) in [
        ("f", "on", "splice"),
        ("f", "off", "copy"),
        ("/dev/null", "on", "discard"),
        ("/dev/null", "off", "copy"),
    ] {
        let run = get(directory.path(), &[&url, "-f", "--json", "-o", output])
            .env("UNCOPIED_RECEIVE", switch)
            .output()
            .unwrap();
        let summary: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
        let moved = summary["mechanisms"][mechanism].as_u64().unwrap();
        assert!(moved > LEN - 100_000, "{output} {switch}: {summary}");
        assert_eq!(summary["bytes"], LEN);
    }
    assert_eq!(std::fs::read(directory.path().join("f")).unwrap(), expected);
}

#[test]
fn progress_is_shown_on_a_terminal_only() {
    let version = Version {
        data: test_bytes(400_000),
        tag: "\"a\"",
    };
    let server = Scripted::start(move |head, socket, _| version.send(head, socket));
    let directory = tempfile::tempdir().unwrap();
    for (flags, is_shown) in [(&[][..], true), (&["-q"], false)] {
        let terminal = Terminal::open();
        let url = server.url("f");
        let output = directory.path().join("name");
        let output = output.to_str().unwrap();
        let arguments = [url.as_str(), "-f", "--limit-rate", "800k", "-o", output];
        let status = get(directory.path(), &[&arguments, flags].concat())
            .stdout(Stdio::null())
            .stderr(terminal.other_end())
            .status()
            .unwrap();
        assert!(status.success());
        let text = terminal.written();
        assert_eq!(text.contains("B/s"), is_shown, "{text}");
        assert_eq!(text.contains('%'), is_shown, "{text}");
        assert_eq!(text.contains("name "), is_shown, "{text}");
    }
}
