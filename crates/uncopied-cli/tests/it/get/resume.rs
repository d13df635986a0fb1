//! Downloads that were interrupted.

use std::fs;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::Duration;

use super::scripted::{Scripted, Then, Version, header};
use super::{get, get_fails, get_ok, names};
use crate::data::test_bytes;
use crate::rng::{Rng, seed};

/// Serves a version, but cuts the first response after `cut` bytes of its body.
pub(super) fn cut_once(version: Version, cut: usize) -> Scripted {
    Scripted::start(move |head, socket, number| {
        if number > 0 {
            return version.send(head, socket);
        }
        let (response, body) = version.response(head);
        socket.write_all(response.as_bytes()).unwrap();
        socket.write_all(&body[..cut]).unwrap();
        Then::Close
    })
}

/// Leaves the first 100,000 bytes of a file of `len` bytes in `f.part`. Returns the server.
fn interrupt(directory: &Path, len: usize, tag: &'static str) -> Scripted {
    let version = Version {
        data: test_bytes(len),
        tag,
    };
    let server = cut_once(version, 100_000);
    get_fails(
        directory,
        &[&server.url("f"), "--retries", "0"],
        &[
            "after 100000 of",
            "100000 bytes are kept in f.part, go on with -c",
        ],
    );
    assert_eq!(names(directory), ["f.part", "f.part.json"]);
    server
}

/// Replaces the port in the record, so that another server can take the place of the first.
fn move_record(directory: &Path, from: &Scripted, to: &Scripted) {
    let path = directory.join("f.part.json");
    let record = fs::read_to_string(&path).unwrap();
    let moved = record.replace(&from.address.to_string(), &to.address.to_string());
    assert_ne!(record, moved);
    fs::write(path, moved).unwrap();
}

#[test]
fn a_download_goes_on_from_what_is_there() {
    for connections in ["1", "3"] {
        let directory = tempfile::tempdir().unwrap();
        let server = interrupt(directory.path(), 5_000_000, "\"a\"");
        let url = server.url("f");
        let arguments = [url.as_str(), "-c", "--connections", connections];
        get_ok(directory.path(), &arguments);
        assert_eq!(names(directory.path()), ["f"]);
        assert!(fs::read(directory.path().join("f")).unwrap() == test_bytes(5_000_000));
        let heads = &server.heads()[1..];
        let ranges = heads.iter().map(|head| header(head, "range").unwrap());
        let first = |range: &str| range["bytes=".len()..].split('-').next().unwrap().parse();
        let starts: Vec<u64> = ranges.map(|range| first(range).unwrap()).collect();
        assert_eq!(starts.iter().min(), Some(&100_000));
        let if_ranges = heads.iter().map(|head| header(head, "if-range"));
        assert!(if_ranges.into_iter().all(|tag| tag == Some("\"a\"")));
    }
}

#[test]
fn without_the_flag_a_download_starts_afresh() {
    let directory = tempfile::tempdir().unwrap();
    let server = interrupt(directory.path(), 300_000, "\"a\"");
    get_ok(directory.path(), &[&server.url("f")]);
    assert_eq!(header(&server.heads()[1], "range"), None);
    assert!(fs::read(directory.path().join("f")).unwrap() == test_bytes(300_000));
}

#[test]
fn a_file_that_changed_starts_afresh() {
    for len in [50_000, 100_000, 300_000, 300_001] {
        let directory = tempfile::tempdir().unwrap();
        let old = interrupt(directory.path(), 300_000, "\"a\"");
        let data: Vec<u8> = test_bytes(len).iter().map(|byte| !byte).collect();
        let expected = data.clone();
        let version = Version { data, tag: "\"b\"" };
        let new = Scripted::start(move |head, socket, _| version.send(head, socket));
        move_record(directory.path(), &old, &new);
        get_ok(directory.path(), &[&new.url("f"), "-c"]);
        assert_eq!(names(directory.path()), ["f"]);
        assert!(fs::read(directory.path().join("f")).unwrap() == expected);
    }
}

#[test]
fn a_record_that_is_foreign_or_damaged_is_not_used() {
    for (from, to) in [
        ("/f\"", "/other\""),
        ("\"boot\":\"", "\"boot\":\"x"),
        // The validator would become two lines of the request.
        ("\\\"a\\\"", "\\\"a\\r\\nX: \\\""),
        ("{", "x{"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let server = interrupt(directory.path(), 300_000, "\"a\"");
        let path = directory.path().join("f.part.json");
        let record = fs::read_to_string(&path).unwrap();
        let changed = record.replacen(from, to, 1);
        assert_ne!(record, changed);
        fs::write(path, changed).unwrap();
        get_ok(directory.path(), &[&server.url("f"), "-c"]);
        assert_eq!(header(&server.heads()[1], "range"), None, "{from}");
        assert!(fs::read(directory.path().join("f")).unwrap() == test_bytes(300_000));
    }
}

/// Interrupts a download, and changes what it has left. Returns the server.
fn interrupt_and_change(directory: &Path, change: impl Fn(&Path, &Path)) -> Scripted {
    let server = interrupt(directory, 300_000, "\"a\"");
    change(&directory.join("f.part"), &directory.join("f.part.json"));
    server
}

#[test]
fn a_temporary_file_that_is_too_long_starts_afresh() {
    for connections in ["1", "3"] {
        let directory = tempfile::tempdir().unwrap();
        let server = interrupt_and_change(directory.path(), |part, _| {
            let file = fs::OpenOptions::new().append(true).open(part).unwrap();
            file.set_len(400_000).unwrap();
        });
        let url = server.url("f");
        let arguments = [url.as_str(), "-c", "--connections", connections];
        get_ok(directory.path(), &arguments);
        assert!(fs::read(directory.path().join("f")).unwrap() == test_bytes(300_000));
    }
}

/// The machine has crashed after only a part of the file was on the disk. What follows that part is
/// never used, even if the download is interrupted once more.
#[test]
fn bytes_that_a_crash_has_lost_are_not_used_later() {
    let directory = tempfile::tempdir().unwrap();
    let old = interrupt_and_change(directory.path(), |part, record| {
        let mut bytes = fs::read(part).unwrap();
        bytes[20_000..].fill(0);
        fs::write(part, bytes).unwrap();
        let text = fs::read_to_string(record).unwrap();
        let changed = text
            .replace("\"boot\":\"", "\"boot\":\"x")
            .replace("\"synced\":[]", "\"synced\":[[0,20000]]");
        assert_eq!(changed.len(), text.len() + 1 + "[0,20000]".len());
        fs::write(record, changed).unwrap();
    });
    let version = Version {
        data: test_bytes(300_000),
        tag: "\"a\"",
    };
    let new = cut_once(version, 10);
    move_record(directory.path(), &old, &new);
    get_fails(
        directory.path(),
        &[&new.url("f"), "-c", "--retries", "0"],
        &["20010 bytes are kept"],
    );
    get_ok(directory.path(), &[&new.url("f"), "-c"]);
    assert_eq!(header(&new.heads()[1], "range"), Some("bytes=20010-"));
    assert!(fs::read(directory.path().join("f")).unwrap() == test_bytes(300_000));
}

/// A pipe at the name of the new record would be waited for, and a second name of another file
/// would be overwritten.
#[test]
fn what_is_at_the_name_of_the_new_record_is_not_written_to() {
    for is_pipe in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let victim = directory.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        let new = directory.path().join("f.part.json.new");
        if is_pipe {
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(rustix::fs::CWD, &new, rustix::fs::FileType::Fifo, mode, 0)
                .unwrap();
        } else {
            fs::hard_link(&victim, &new).unwrap();
        }
        let head = "HTTP/1.1 200 OK\r\nETag: \"a\"\r\nContent-Length: 9\r\n\r\nhi";
        let server = Scripted::bytes(head);
        get_fails(
            directory.path(),
            &[&server.url("f"), "--retries", "0"],
            &["2 bytes are kept"],
        );
        let left = names(directory.path());
        assert_eq!(left, ["f.part", "f.part.json", "victim"]);
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
    }
}

/// A server that ignores `If-Range`. Without an entity tag, its response could be of any version.
#[test]
fn a_part_without_the_entity_tag_is_not_used() {
    let directory = tempfile::tempdir().unwrap();
    let old = interrupt(directory.path(), 300_000, "\"a\"");
    let data: Vec<u8> = test_bytes(300_000).iter().map(|byte| !byte).collect();
    let expected = data.clone();
    let version = Version { data, tag: "\"b\"" };
    let new = Scripted::start(move |head, socket, _| {
        if header(head, "range").is_none() {
            return version.send(head, socket);
        }
        let response = "HTTP/1.1 206 P\r\nContent-Range: bytes 100000-299999/300000\r\n\
                        Content-Length: 200000\r\n\r\n";
        let _ = socket.write_all(response.as_bytes());
        let _ = socket.write_all(&version.data[100_000..]);
        Then::Close
    });
    move_record(directory.path(), &old, &new);
    get_ok(directory.path(), &[&new.url("f"), "-c"]);
    assert!(fs::read(directory.path().join("f")).unwrap() == expected);
}

/// Each attempt brings other numbers of the same bytes, which is no progress.
#[test]
fn a_server_without_ranges_that_cuts_is_given_up() {
    for connections in ["1", "2"] {
        let server = Scripted::start(move |_, socket, number| {
            let head = "HTTP/1.1 200 OK\r\nETag: \"a\"\r\nContent-Length: 1000\r\n\r\n";
            socket.write_all(head.as_bytes()).unwrap();
            socket.write_all(&[1, 2, 3][..1 + number % 3]).unwrap();
            Then::Close
        });
        let directory = tempfile::tempdir().unwrap();
        let url = server.url("f");
        get_fails(
            directory.path(),
            &[&url, "--retries", "4", "--connections", connections],
            &["of 1000 bytes"],
        );
        assert!(server.heads().len() < 30, "{}", server.heads().len());
    }
}

#[test]
fn a_file_that_is_complete_is_fetched_again_only_if_it_changed() {
    let directory = tempfile::tempdir().unwrap();
    let server = Scripted::start(|head, socket, number| {
        // The third response is of a newer version.
        let (day, body) = if number < 2 {
            ("01", "hello")
        } else {
            ("02", "HELLO")
        };
        let body = if head.starts_with("HEAD") { "" } else { body };
        let response = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nLast-Modified: {} Jan 2026 00:00:00 GMT\r\n\r\n{body}",
            if day == "01" { "Thu, 01" } else { "Fri, 02" }
        );
        socket.write_all(response.as_bytes()).unwrap();
        Then::KeepAlive
    });
    let url = server.url("f");
    get_ok(directory.path(), &[&url, "-c"]);
    // A kill right after the rename leaves the record.
    fs::write(directory.path().join("f.part.json"), "{}").unwrap();
    let output = get_ok(directory.path(), &[&url, "-c", "--json"]);
    assert_eq!(names(directory.path()), ["f"]);
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .contains("\"unchanged\":true")
    );
    assert_eq!(fs::read(directory.path().join("f")).unwrap(), b"hello");
    get_ok(directory.path(), &[&url, "-c"]);
    assert_eq!(fs::read(directory.path().join("f")).unwrap(), b"HELLO");
    let methods: Vec<_> = server
        .heads()
        .iter()
        .map(|head| head[..4].to_owned())
        .collect();
    assert_eq!(methods, ["GET ", "HEAD", "HEAD", "GET "]);
}

/// A server that fails says nothing about whether a complete file is current.
#[test]
fn a_complete_file_is_not_fetched_again_because_the_server_fails() {
    const HEAD: &str = "Content-Length: 5\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n";
    let server = Scripted::start(|head, socket, number| {
        let is_head = head.starts_with("HEAD");
        assert_eq!(is_head, number > 0, "fetched again");
        let response = match number {
            0 => format!("HTTP/1.1 200 OK\r\n{HEAD}hello"),
            1 => "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n".to_owned(),
            _ => format!("HTTP/1.1 200 OK\r\n{HEAD}"),
        };
        socket.write_all(response.as_bytes()).unwrap();
        Then::KeepAlive
    });
    let directory = tempfile::tempdir().unwrap();
    let url = server.url("f");
    get_ok(directory.path(), &[&url]);
    get_ok(directory.path(), &[&url, "-c"]);
    assert_eq!(server.heads().len(), 3);
}

#[test]
fn a_link_or_a_second_name_at_the_temporary_name_is_not_written_to() {
    for is_link in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let victim = directory.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        let part = directory.path().join("f.part");
        if is_link {
            std::os::unix::fs::symlink(&victim, &part).unwrap();
        } else {
            fs::hard_link(&victim, &part).unwrap();
        }
        let server = Scripted::bytes("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
        get_fails(
            directory.path(),
            &[&server.url("f")],
            &["f.part is not the file of this download"],
        );
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
    }
}

#[test]
fn two_downloads_of_one_file_do_not_mix() {
    let server = Scripted::start(|_, socket, number| {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe";
        socket.write_all(head.as_bytes()).unwrap();
        if number == 0 {
            // Held until the second download has been refused and this test ends the first.
            sleep(Duration::from_secs(60));
        }
        Then::Close
    });
    let directory = tempfile::tempdir().unwrap();
    let mut first = get(directory.path(), &[&server.url("f")]).spawn().unwrap();
    while server.heads().is_empty() {
        sleep(Duration::from_millis(5));
    }
    get_fails(
        directory.path(),
        &[&server.url("f")],
        &["f.part is in use by another download"],
    );
    first.kill().unwrap();
    first.wait().unwrap();
}

/// Starts downloads until this many of them were killed, at random moments, and sometimes changes
/// the file on the server between two of them. Whatever is under the final name at any time is
/// whole, and of the current version.
pub(crate) fn kill_downloads(kills: usize) {
    let seed = seed("UNCOPIED_TEST_SEED");
    println!("UNCOPIED_TEST_SEED={seed}");
    let mut rng = Rng::new(seed, 0);
    let first = test_bytes(6_000_000);
    let second: Vec<u8> = first[..5_500_000].iter().map(|byte| !byte).collect();
    let expected = [first.clone(), second.clone()];
    let current = Arc::new(AtomicUsize::new(0));
    let server = slow_server([(first, "\"a\""), (second, "\"b\"")], Arc::clone(&current));
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("f");
    let url = server.url("f");
    let (mut started, mut killed, mut whole, mut changes) = (0, 0, 0, 0);
    while killed < kills {
        started += 1;
        assert!(
            started <= 8 * kills,
            "only {killed} of {started} were killed"
        );
        if rng.chance(20) {
            current.fetch_xor(1, Ordering::SeqCst);
            changes += 1;
        }
        let connections = if rng.chance(50) { "1" } else { "4" };
        let mut arguments = vec![url.as_str(), "--connections", connections];
        if rng.chance(75) {
            arguments.push("-c");
        }
        let mut child = get(directory.path(), &arguments)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        sleep(rng.duration_below_millis(120));
        // SIGKILL.
        child.kill().unwrap();
        let status = child.wait().unwrap();
        match status.signal() {
            Some(_) => killed += 1,
            None => assert!(status.success(), "download {started}: {status}"),
        }
        if let Ok(bytes) = fs::read(&target) {
            let version = current.load(Ordering::SeqCst);
            assert!(bytes == expected[version], "download {started}");
            whole += 1;
            fs::remove_file(&target).unwrap();
        }
    }
    // Only a request of a single connection for the rest of a file has no end.
    let is_rest = |head: &String| {
        header(head, "range").is_some_and(|range| range.ends_with('-') && range != "bytes=0-")
    };
    let rests = server.heads().iter().filter(|head| is_rest(head)).count();
    println!(
        "{started} started, {killed} killed, {whole} whole, {changes} changes, {rests} requests for \
         the rest"
    );
    assert!(kills < 100 || (rests > 0 && changes > 0));
    get_ok(directory.path(), &[&url, "-c"]);
    assert!(fs::read(&target).unwrap() == expected[current.load(Ordering::SeqCst)]);
    assert_eq!(names(directory.path()), ["f"]);
}

/// Serves the current one of two versions, slowly enough to be killed on the way.
fn slow_server(versions: [(Vec<u8>, &'static str); 2], current: Arc<AtomicUsize>) -> Scripted {
    let versions = versions.map(|(data, tag)| Version { data, tag });
    Scripted::start(move |head, socket, _| {
        let version = &versions[current.load(Ordering::SeqCst)];
        let (response, body) = version.response(head);
        if socket.write_all(response.as_bytes()).is_err() {
            return Then::Close;
        }
        for piece in body.chunks(200_000) {
            sleep(Duration::from_millis(2));
            if socket.write_all(piece).is_err() {
                return Then::Close;
            }
        }
        Then::KeepAlive
    })
}

#[test]
fn killed_downloads_leave_nothing_wrong() {
    kill_downloads(20);
}
