//! Tests of kernel errors: all bytes must arrive, and the totals must report the mechanism that
//! sent them.

use std::fs;

use tempfile::TempDir;

use crate::client::{connect, get, read_head, read_to_close, send_get};
use crate::data::test_bytes;
use crate::seccomp::filtered;
use crate::server::{Server, Totals};
use crate::trace::{Trace, TracedServer, can_trace};

/// The sizes of the two files. Tests request `large` twice and then `other`. The mechanism that
/// sends `other` shows whether an error disables a mechanism for one file or for the whole process.
const LARGE_FILE_BYTES: u64 = 1 << 20;
const OTHER_FILE_BYTES: u64 = 100_000;
const ALL_BODY_BYTES: u64 = LARGE_FILE_BYTES + LARGE_FILE_BYTES + OTHER_FILE_BYTES;

fn site() -> TempDir {
    let site = tempfile::tempdir().unwrap();
    fs::write(
        site.path().join("large"),
        test_bytes(LARGE_FILE_BYTES as usize),
    )
    .unwrap();
    fs::write(
        site.path().join("other"),
        test_bytes(OTHER_FILE_BYTES as usize),
    )
    .unwrap();
    site
}

/// Requests `large` twice and `other` once, under strace with these options, and checks every byte.
/// `LARGE_FILE_PATH` in an option is replaced by the path of the large file.
fn serve_under(mechanism: &str, options: &[&str]) -> (Totals, Trace) {
    let site = site();
    let large = site.path().join("large").display().to_string();
    let options: Vec<_> = options
        .iter()
        .map(|option| option.replace("LARGE_FILE_PATH", &large))
        .collect();
    let options: Vec<_> = options.iter().map(String::as_str).collect();
    let traced = TracedServer::start(site.path(), &["--mechanism", mechanism], &options);
    let mut stream = connect(traced.server.address());
    for (target, len) in [
        ("/large", LARGE_FILE_BYTES),
        ("/large", LARGE_FILE_BYTES),
        ("/other", OTHER_FILE_BYTES),
    ] {
        let response = get(&mut stream, target);
        let same = response.body == test_bytes(len as usize);
        assert!(same, "{mechanism} {options:?}: {target} has wrong bytes");
    }
    let (exit, trace) = traced.stop();
    assert_eq!(exit.status.code(), Some(0), "{:?}", exit.stderr);
    (exit.totals(), trace)
}

/// Asserts that sendfile, splice and mmap_write have sent the `expected` numbers of bytes, in this
/// order. All other bytes, including the heads, must have been copied.
fn assert_mechanisms(mechanism: &str, options: &[&str], expected: [u64; 3]) {
    let (totals, trace) = serve_under(mechanism, options);
    let actual = [totals.sendfile, totals.splice, totals.mmap_write];
    assert_eq!(actual, expected, "{mechanism} {options:?}: {totals:?}");
    let bodies_copied = ALL_BODY_BYTES - expected.iter().sum::<u64>();
    let heads = totals.copy.checked_sub(bodies_copied);
    assert!(heads.is_some_and(|heads| heads < 3 * 1000), "{totals:?}");
    let injected = trace
        .calls
        .iter()
        .any(|call| call.text.contains("(INJECTED)"));
    assert!(injected, "{options:?} affected no call");
}

#[test]
fn errors_of_sendfile_fall_back_to_splice() {
    if !can_trace("errors_of_sendfile_fall_back_to_splice") {
        return;
    }
    // If the kernel refuses a mechanism for a pair of descriptors, the mechanism is disabled for
    // that file. If the kernel or a filter refuses the system call as such, the mechanism is
    // disabled for the process. ENOMEM and EOVERFLOW disable nothing: only the current response
    // falls back. EINTR is retried.
    for errno in ["EINVAL", "EOPNOTSUPP", "ESPIPE"] {
        let inject = format!("inject=sendfile:error={errno}:when=1");
        assert_mechanisms(
            "auto",
            &["-e", &inject],
            [OTHER_FILE_BYTES, 2 * LARGE_FILE_BYTES, 0],
        );
    }
    for errno in ["ENOSYS", "EPERM"] {
        let inject = format!("inject=sendfile:error={errno}:when=1");
        assert_mechanisms("auto", &["-e", &inject], [0, ALL_BODY_BYTES, 0]);
    }
    for errno in ["ENOMEM", "EOVERFLOW"] {
        let inject = format!("inject=sendfile:error={errno}:when=1");
        assert_mechanisms(
            "auto",
            &["-e", &inject],
            [LARGE_FILE_BYTES + OTHER_FILE_BYTES, LARGE_FILE_BYTES, 0],
        );
    }
    assert_mechanisms(
        "auto",
        &["-e", "inject=sendfile:error=EINTR:when=1..3"],
        [ALL_BODY_BYTES, 0, 0],
    );
}

#[test]
fn errors_in_the_middle_of_a_file_neither_lose_nor_repeat_bytes() {
    if !can_trace("errors_in_the_middle_of_a_file_neither_lose_nor_repeat_bytes") {
        return;
    }
    let bytes = test_bytes(12 << 20);
    let site = tempfile::tempdir().unwrap();
    fs::write(site.path().join("large"), &bytes).unwrap();
    for (mechanism, inject) in [
        ("auto", "inject=sendfile:error=EINVAL:when=2"),
        ("auto", "inject=sendfile:error=EINVAL:when=3"),
        ("splice", "inject=splice:error=EINVAL:when=2"),
        ("splice", "inject=splice:error=EINVAL:when=5"),
        ("splice", "inject=splice:error=ENOMEM:when=8"),
        // Fail the third `sendto`, because the first sends the head and the second the start of the
        // body.
        ("mmap_write", "inject=sendto:error=EFAULT:when=3"),
    ] {
        let flags = ["--mechanism", mechanism];
        let traced = TracedServer::start(site.path(), &flags, &["-e", inject]);
        let mut stream = connect(traced.server.address());
        let response = get(&mut stream, "/large");
        assert!(response.body == bytes, "{mechanism} {inject}: wrong bytes");
        let totals = traced.stop().0.totals();
        let sent = (bytes.len() + response.head.len()) as u64;
        assert_eq!(totals.bytes, sent, "{mechanism} {inject}");
        let (first, rest) = match mechanism {
            "auto" => (totals.sendfile, totals.splice),
            "splice" => (totals.splice, totals.copy),
            _ => (totals.mmap_write, totals.copy),
        };
        // With splice, `first` may be 0, because the error may occur before any byte has left the
        // pipe. The pipe is then discarded, and its bytes are sent with `copy` instead.
        assert!(first > 0 || mechanism == "splice", "{inject}: {totals:?}");
        assert!(rest > 0, "{inject}: {totals:?}");
    }
}

#[test]
fn errors_of_every_mechanism_fall_back_to_copy() {
    if !can_trace("errors_of_every_mechanism_fall_back_to_copy") {
        return;
    }
    assert_mechanisms(
        "sendfile",
        &["-e", "inject=sendfile:error=EINVAL"],
        [0, 0, 0],
    );
    // Expect `mmap_write` for the large file: the file is already mapped, and `mmap_write` saves
    // one of the two copies that `copy` makes. Expect `copy` for the other file, because by default
    // the library uses `mmap_write` only for sends of at least 256 KiB.
    assert_mechanisms(
        "auto",
        &["-e", "inject=sendfile,splice:error=EPERM"],
        [0, 0, 2 * LARGE_FILE_BYTES],
    );
    assert_mechanisms(
        "splice",
        &["-e", "inject=splice:error=EINVAL:when=1"],
        [0, OTHER_FILE_BYTES, 0],
    );
    for errno in ["EMFILE", "ENFILE", "ENOMEM"] {
        let inject = format!("inject=pipe2:error={errno}");
        assert_mechanisms("splice", &["-e", &inject], [0, 0, 0]);
    }
}

#[test]
fn a_file_that_cannot_be_mapped_is_read() {
    if !can_trace("a_file_that_cannot_be_mapped_is_read") {
        return;
    }
    // With -P, strace affects only calls that use this path.
    let options = ["-P", "LARGE_FILE_PATH", "-e", "inject=mmap:error=ENOMEM"];
    let (totals, _) = serve_under("mmap_write", &options);
    assert_eq!(totals.mmap_write, OTHER_FILE_BYTES, "{totals:?}");
    assert!(totals.copy > 2 * LARGE_FILE_BYTES, "{totals:?}");
}

/// Runs the server with a seccomp filter, as containers use it. The filter makes these calls fail
/// with `errno`. Returns the totals.
fn serve_filtered(calls: &[i64], errno: i32) -> Totals {
    let site = site();
    let server = filtered(calls, errno, || {
        Server::start(site.path(), &["--threads", "1"])
    });
    let mut stream = connect(server.address());
    for (target, len) in [
        ("/large", LARGE_FILE_BYTES),
        ("/large", LARGE_FILE_BYTES),
        ("/other", OTHER_FILE_BYTES),
    ] {
        let response = get(&mut stream, target);
        assert!(
            response.body == test_bytes(len as usize),
            "{calls:?}: {target}"
        );
    }
    server.stop().totals()
}

#[test]
fn old_kernels_and_filters_lose_no_byte() {
    /// The number of the system call `cachestat`, which the libc crate does not define. The number
    /// is the same on every architecture.
    const CACHESTAT: i64 = 451;
    let (sendfile, splice) = (libc::SYS_sendfile, libc::SYS_splice);
    for errno in [libc::ENOSYS, libc::EPERM] {
        for (calls, expected) in [
            (&[libc::SYS_openat2][..], [ALL_BODY_BYTES, 0, 0]),
            (&[libc::SYS_statx], [ALL_BODY_BYTES, 0, 0]),
            (&[CACHESTAT], [ALL_BODY_BYTES, 0, 0]),
            (&[sendfile], [0, ALL_BODY_BYTES, 0]),
            (&[sendfile, splice], [0, 0, 2 * LARGE_FILE_BYTES]),
            (&[libc::SYS_userfaultfd], [ALL_BODY_BYTES, 0, 0]),
        ] {
            let totals = serve_filtered(calls, errno);
            let actual = [totals.sendfile, totals.splice, totals.mmap_write];
            assert_eq!(actual, expected, "{calls:?} {errno}: {totals:?}");
            let bodies_copied = ALL_BODY_BYTES - expected.iter().sum::<u64>();
            assert!(totals.copy >= bodies_copied, "{totals:?}");
        }
    }
}

#[test]
fn an_error_when_a_file_is_opened_or_examined_fails_only_that_request() {
    if !can_trace("an_error_when_a_file_is_opened_or_examined_fails_only_that_request") {
        return;
    }
    for (inject, status) in [
        ("inject=statx:error=EIO", 500),
        ("inject=statx:error=ENOMEM", 503),
        ("inject=openat2:error=EACCES", 403),
        ("inject=openat2:error=EMFILE", 503),
        ("inject=openat2:error=EXDEV", 404),
    ] {
        let site = site();
        let large = site.path().join("large").display().to_string();
        // Give -P both paths of the file, because it must match two calls: statx, whose descriptor
        // strace resolves to the absolute path, and openat2, which gets the path relative to the
        // directory.
        let traced = TracedServer::start(
            site.path(),
            &[],
            &["-P", &large, "-P", "large", "-e", inject],
        );
        let mut stream = connect(traced.server.address());
        assert_eq!(get(&mut stream, "/large").status, status, "{inject}");
        assert_eq!(get(&mut stream, "/other").status, 200, "{inject}");
        drop(traced);
    }
}

/// No mechanism can send the promised bytes, so the connection is closed, and no other bytes are
/// sent in their place.
#[test]
fn a_broken_disk_and_a_file_that_ends_early_close_the_connection() {
    if !can_trace("a_broken_disk_and_a_file_that_ends_early_close_the_connection") {
        return;
    }
    let bytes = test_bytes(12 << 20);
    let site = tempfile::tempdir().unwrap();
    fs::write(site.path().join("large"), &bytes).unwrap();
    fs::write(
        site.path().join("other"),
        test_bytes(OTHER_FILE_BYTES as usize),
    )
    .unwrap();
    for inject in [
        "inject=sendfile:error=EIO:when=2",
        "inject=sendfile:retval=0:when=2",
        "inject=sendfile:error=ENOBUFS:when=2",
        "inject=sendfile:error=ECONNRESET:when=2",
    ] {
        let traced = TracedServer::start(site.path(), &[], &["-e", inject]);
        let mut stream = connect(traced.server.address());
        send_get(&mut stream, "/large");
        // The server receives this request while it sends the first response. The second response
        // must not appear inside the first.
        send_get(&mut stream, "/other");
        let (_, length) = read_head(&mut stream).unwrap();
        assert_eq!(length, bytes.len());
        let body = read_to_close(&mut stream);
        assert!(body.len() < bytes.len(), "{inject}: {} bytes", body.len());
        assert!(bytes.starts_with(&body), "{inject}: wrong bytes");
        let response = get(&mut connect(traced.server.address()), "/other");
        assert!(
            response.body == test_bytes(OTHER_FILE_BYTES as usize),
            "{inject}"
        );
        let (exit, _) = traced.stop();
        assert_eq!(exit.status.code(), Some(0), "{:?}", exit.stderr);
    }
}

#[test]
fn a_connection_that_fails_before_it_is_accepted_affects_no_other() {
    if !can_trace("a_connection_that_fails_before_it_is_accepted_affects_no_other") {
        return;
    }
    let site = site();
    for (inject, message) in [
        ("inject=accept4:error=ECONNABORTED:when=1", None),
        ("inject=accept4:error=EPERM:when=1", None),
        (
            "inject=accept4:error=EMFILE:when=1",
            Some("too many open files"),
        ),
        ("inject=accept4:error=ENOMEM:when=1", Some("cannot accept")),
    ] {
        let mut traced = TracedServer::start(site.path(), &["--list"], &["-e", inject]);
        let mut stream = connect(traced.server.address());
        assert_eq!(get(&mut stream, "/other").status, 200, "{inject}");
        let mut next = connect(traced.server.address());
        assert_eq!(get(&mut next, "/other").status, 200, "{inject}");
        if let Some(text) = message {
            traced.server.wait_for_line(text);
        }
        let (exit, _) = traced.stop();
        let lines = exit.stderr.len();
        assert_eq!(
            lines,
            2 + usize::from(message.is_some()),
            "{:?}",
            exit.stderr
        );
    }
}
