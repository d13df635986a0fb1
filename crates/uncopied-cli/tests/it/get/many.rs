//! Several URLs, and several connections for one file.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::process::Stdio;

use super::scripted::{Scripted, Then, Version, header};
use super::{get, get_behind, get_fails, get_ok, names};
use crate::data::test_bytes;
use crate::server::Server;

#[test]
fn many_files_share_a_few_connections() {
    let version = Version {
        data: test_bytes(1024),
        tag: "\"a\"",
    };
    let server = Scripted::start(move |head, socket, _| version.send(head, socket));
    let directory = tempfile::tempdir().unwrap();
    let mut list = "# a comment\n\n".to_owned();
    for number in 0..300 {
        writeln!(list, "{}", server.url(&format!("{number}"))).unwrap();
    }
    let mut child = get(directory.path(), &["-i", "-", "-P", "3", "-o", "new/sub/"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(list.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success());
    let saved = directory.path().join("new/sub");
    assert_eq!(names(&saved).len(), 300);
    for name in names(&saved) {
        assert!(fs::read(saved.join(name)).unwrap() == test_bytes(1024));
    }
    assert!(server.connections() <= 3, "{}", server.connections());
}

/// Files that wait for the disk are open, so their number has to fit the limit on descriptors.
#[test]
fn many_files_need_few_descriptors() {
    let version = Version {
        data: test_bytes(1024),
        tag: "\"a\"",
    };
    let server = Scripted::start(move |head, socket, _| version.send(head, socket));
    let directory = tempfile::tempdir().unwrap();
    let urls: String = (0..300)
        .map(|number| server.url(&format!("{number}\n")))
        .collect();
    let list = directory.path().join("list");
    fs::write(&list, urls).unwrap();
    let limited = ["sh", "-c", "ulimit -n 48; exec \"$0\" \"$@\""];
    let arguments = ["-i", "list", "-P", "4", "-o", "new/"];
    let output = get_behind(&limited, directory.path(), &arguments)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success());
    assert_eq!(names(&directory.path().join("new")).len(), 300);
}

/// A file that exists is not fetched, and a temporary file of an earlier run does not stay: in a
/// directory with few other names, and in one with more names than the program reads.
#[test]
fn what_is_there_is_found_among_many_names() {
    for others in [0, 500] {
        let directory = tempfile::tempdir().unwrap();
        for number in 0..others {
            fs::write(directory.path().join(format!("other{number}")), "").unwrap();
        }
        fs::write(directory.path().join("f.part"), "old").unwrap();
        fs::write(directory.path().join("f.part.json"), "{}").unwrap();
        let server = Scripted::start(|_, socket, _| {
            socket
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nnew")
                .unwrap();
            Then::KeepAlive
        });
        fs::write(directory.path().join("d"), "mine").unwrap();
        let urls = [server.url("d"), server.url("e"), server.url("f")];
        let output = get(directory.path(), &urls.each_ref().map(String::as_str));
        let output = { output }.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("d exists; replace it with -f"), "{stderr}");
        assert!(stderr.contains("1 of 3 downloads failed"), "{stderr}");
        assert_eq!(server.heads().len(), 2);
        let mut left = names(directory.path());
        left.retain(|name| !name.starts_with("other"));
        assert_eq!(left, ["d", "e", "f"], "{others} other files");
        assert_eq!(fs::read(directory.path().join("d")).unwrap(), b"mine");
        assert_eq!(fs::read(directory.path().join("f")).unwrap(), b"new");
    }
}

#[test]
fn one_failure_does_not_stop_the_others() {
    let site = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        fs::write(site.path().join(name), name).unwrap();
    }
    let server = Server::start(site.path(), &[]);
    let directory = tempfile::tempdir().unwrap();
    let url = |name: &str| format!("{}{name}", server.urls[0]);
    let output = get(
        directory.path(),
        &[
            &url("a"),
            &url("missing"),
            "ftp://x/y",
            &url("b"),
            &url("a"),
        ],
    )
    .output()
    .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    for words in [
        "missing: the server responded with status 404",
        "ftp:// is not supported",
        "another URL is saved there",
        "3 of 5 downloads failed",
    ] {
        assert!(stderr.contains(words), "{words:?} is missing in {stderr}");
    }
    assert_eq!(stderr.lines().count(), 4, "{stderr}");
    assert_eq!(names(directory.path()), ["a", "b"]);
}

#[test]
fn several_urls_on_standard_output_keep_their_order() {
    let server = Scripted::start(|head, socket, _| {
        let path = head.split(' ').nth(1).unwrap();
        let response = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}",
            path.len()
        );
        socket.write_all(response.as_bytes()).unwrap();
        Then::KeepAlive
    });
    let directory = tempfile::tempdir().unwrap();
    let urls = [server.url("1"), server.url("2"), server.url("3")];
    let output = get_ok(directory.path(), &[&urls[0], &urls[1], &urls[2], "-o", "-"]);
    assert_eq!(output.stdout, b"/1/2/3");
    assert_eq!(server.connections(), 1);
}

#[test]
fn connections_fetch_different_parts_of_one_version() {
    let len = 9_000_001;
    let version = Version {
        data: test_bytes(len),
        tag: "\"a\"",
    };
    let server = Scripted::start(move |head, socket, _| version.send(head, socket));
    let directory = tempfile::tempdir().unwrap();
    get_ok(directory.path(), &[&server.url("f"), "--connections", "4"]);
    assert!(fs::read(directory.path().join("f")).unwrap() == test_bytes(len));
    assert_eq!(names(directory.path()), ["f"]);
    let heads = server.heads();
    let mut ranges: Vec<_> = heads
        .iter()
        .map(|head| header(head, "range").unwrap().to_owned())
        .collect();
    let count = ranges.len();
    ranges.sort();
    ranges.dedup();
    assert_eq!(ranges.len(), count, "no part is fetched twice");
    assert!(count > 4);
    assert!(server.connections() <= 4);
    assert!(
        heads[1..]
            .iter()
            .all(|head| header(head, "if-range") == Some("\"a\""))
    );
}

#[test]
fn without_ranges_or_a_validator_one_connection_fetches_the_file() {
    let data = test_bytes(3_000_000);
    for has_ranges in [false, true] {
        let data = data.clone();
        let expected = data.clone();
        let server = Scripted::start(move |head, socket, _| {
            let (response, body) = match header(head, "range").filter(|_| has_ranges) {
                None => (
                    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", data.len()),
                    &data[..],
                ),
                Some(_) => (
                    format!(
                        "HTTP/1.1 206 P\r\nContent-Range: bytes 0-1048575/{}\r\nContent-Length: 1048576\r\n\r\n",
                        data.len()
                    ),
                    &data[..1 << 20],
                ),
            };
            let is_sent = socket
                .write_all(response.as_bytes())
                .and_then(|()| socket.write_all(body));
            if is_sent.is_ok() {
                Then::KeepAlive
            } else {
                Then::Close
            }
        });
        let directory = tempfile::tempdir().unwrap();
        get_ok(directory.path(), &[&server.url("f"), "--connections", "4"]);
        assert!(fs::read(directory.path().join("f")).unwrap() == expected);
        assert_eq!(server.heads().len(), if has_ranges { 2 } else { 1 });
    }
}

#[test]
fn a_file_that_changes_between_two_parts_is_fetched_again() {
    let old = Version {
        data: vec![1; 5_000_000],
        tag: "\"a\"",
    };
    let new = Version {
        data: vec![2; 4_000_000],
        tag: "\"b\"",
    };
    let server = Scripted::start(move |head, socket, number| {
        if number < 3 {
            old.send(head, socket)
        } else {
            new.send(head, socket)
        }
    });
    let directory = tempfile::tempdir().unwrap();
    get_ok(directory.path(), &[&server.url("f"), "--connections", "2"]);
    assert!(fs::read(directory.path().join("f")).unwrap() == vec![2; 4_000_000]);
}

#[test]
fn a_part_of_another_place_is_refused() {
    let version = Version {
        data: test_bytes(5_000_000),
        tag: "\"a\"",
    };
    let server = Scripted::start(move |head, socket, number| {
        // The second request gets the bytes from 1 on.
        let lie = head.replace("bytes=", "bytes=1-1048576\r\nX: ");
        version.send(if number == 1 { &lie } else { head }, socket)
    });
    let directory = tempfile::tempdir().unwrap();
    get_fails(
        directory.path(),
        &[&server.url("f"), "--connections", "2"],
        &["wrong range"],
    );
    assert!(!directory.path().join("f").exists());
}
