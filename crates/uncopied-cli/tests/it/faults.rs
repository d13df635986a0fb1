//! Refusals of the kernel: the bytes stay the same, and the totals tell the way.

use std::fs;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use tempfile::TempDir;

use crate::client::{ask, connect, get, read_head, read_to_close};
use crate::server::{Server, Totals};
use crate::system_calls::noise;
use crate::trace::{Trace, Traced, can_trace};

/// The files of the site. The third answer is another file, so that it shows whether a refusal is
/// held against one file or the whole process.
const LARGE: u64 = 1 << 20;
const OTHER: u64 = 100_000;
const ALL: u64 = LARGE + LARGE + OTHER;

fn site() -> TempDir {
    let site = tempfile::tempdir().unwrap();
    fs::write(site.path().join("large"), noise(LARGE as usize)).unwrap();
    fs::write(site.path().join("other"), noise(OTHER as usize)).unwrap();
    site
}

/// Asks for `large` twice and for `other`, under strace with these options, and checks every byte.
/// `LARGE` in an option stands for the large file's path.
fn serve_under(mechanism: &str, options: &[&str]) -> (Totals, Trace) {
    let site = site();
    let large = site.path().join("large").display().to_string();
    let options: Vec<_> = options
        .iter()
        .map(|option| option.replace("LARGE", &large))
        .collect();
    let options: Vec<_> = options.iter().map(String::as_str).collect();
    let traced = Traced::start(site.path(), &["--mechanism", mechanism], &options);
    let mut stream = connect(traced.server.address());
    for (target, len) in [("/large", LARGE), ("/large", LARGE), ("/other", OTHER)] {
        let answer = get(&mut stream, target);
        let same = answer.body == noise(len as usize);
        assert!(same, "{mechanism} {options:?}: {target} has other bytes");
    }
    let (end, trace) = traced.stop();
    assert_eq!(end.status.code(), Some(0), "{:?}", end.said);
    (end.totals(), trace)
}

/// Asserts how many bytes went by each mechanism. What is left went by copy, with the heads.
fn assert_ways(mechanism: &str, options: &[&str], ways: [u64; 3]) {
    let (totals, trace) = serve_under(mechanism, options);
    let was = [totals.sendfile, totals.splice, totals.mmap_write];
    assert_eq!(was, ways, "{mechanism} {options:?}: {totals:?}");
    let bodies_copied = ALL - ways.iter().sum::<u64>();
    let heads = totals.copy.checked_sub(bodies_copied);
    assert!(heads.is_some_and(|heads| heads < 3 * 1000), "{totals:?}");
    let injected = trace
        .calls
        .iter()
        .any(|call| call.text.contains("(INJECTED)"));
    assert!(injected, "{options:?} met no call");
}

#[test]
fn refusals_of_sendfile_step_down_to_splice() {
    if !can_trace("refusals_of_sendfile_step_down_to_splice") {
        return;
    }
    // What the pair refuses is held against the file, what a filter refuses against the process,
    // and what is short for a moment against nobody.
    for errno in ["EINVAL", "EOPNOTSUPP", "ESPIPE"] {
        let inject = format!("inject=sendfile:error={errno}:when=1");
        assert_ways("auto", &["-e", &inject], [OTHER, 2 * LARGE, 0]);
    }
    for errno in ["ENOSYS", "EPERM"] {
        let inject = format!("inject=sendfile:error={errno}:when=1");
        assert_ways("auto", &["-e", &inject], [0, ALL, 0]);
    }
    for errno in ["ENOMEM", "EOVERFLOW"] {
        let inject = format!("inject=sendfile:error={errno}:when=1");
        assert_ways("auto", &["-e", &inject], [LARGE + OTHER, LARGE, 0]);
    }
    assert_ways(
        "auto",
        &["-e", "inject=sendfile:error=EINTR:when=1..3"],
        [ALL, 0, 0],
    );
}

#[test]
fn refusals_in_the_middle_of_a_file_lose_and_double_nothing() {
    if !can_trace("refusals_in_the_middle_of_a_file_lose_and_double_nothing") {
        return;
    }
    let bytes = noise(12 << 20);
    let site = tempfile::tempdir().unwrap();
    fs::write(site.path().join("large"), &bytes).unwrap();
    for (mechanism, inject) in [
        ("auto", "inject=sendfile:error=EINVAL:when=2"),
        ("auto", "inject=sendfile:error=EINVAL:when=3"),
        ("splice", "inject=splice:error=EINVAL:when=2"),
        ("splice", "inject=splice:error=EINVAL:when=5"),
        ("splice", "inject=splice:error=ENOMEM:when=8"),
        // The first is the head's.
        ("mmap", "inject=sendto:error=EFAULT:when=3"),
    ] {
        let flags = ["--mechanism", mechanism];
        let traced = Traced::start(site.path(), &flags, &["-e", inject]);
        let mut stream = connect(traced.server.address());
        let answer = get(&mut stream, "/large");
        assert!(answer.body == bytes, "{mechanism} {inject}: other bytes");
        let totals = traced.stop().0.totals();
        let sent = (bytes.len() + answer.head.len()) as u64;
        assert_eq!(totals.bytes, sent, "{mechanism} {inject}");
        let (first, rest) = match mechanism {
            "auto" => (totals.sendfile, totals.splice),
            "splice" => (totals.splice, totals.copy),
            _ => (totals.mmap_write, totals.copy),
        };
        // A pipe's contents may be dropped before any byte of them has gone out.
        assert!(first > 0 || mechanism == "splice", "{inject}: {totals:?}");
        assert!(rest > 0, "{inject}: {totals:?}");
    }
}

#[test]
fn refusals_of_everything_else_step_down_to_copy() {
    if !can_trace("refusals_of_everything_else_step_down_to_copy") {
        return;
    }
    assert_ways(
        "sendfile",
        &["-e", "inject=sendfile:error=EINVAL"],
        [0, 0, 0],
    );
    assert_ways(
        "auto",
        &["-e", "inject=sendfile,splice:error=EPERM"],
        [0, 0, 0],
    );
    assert_ways(
        "splice",
        &["-e", "inject=splice:error=EINVAL:when=1"],
        [0, OTHER, 0],
    );
    for errno in ["EMFILE", "ENFILE", "ENOMEM"] {
        let inject = format!("inject=pipe2:error={errno}");
        assert_ways("splice", &["-e", &inject], [0, 0, 0]);
    }
}

#[test]
fn a_file_that_cannot_be_mapped_is_read() {
    if !can_trace("a_file_that_cannot_be_mapped_is_read") {
        return;
    }
    for mechanism in ["auto", "mmap"] {
        // Only calls on this path are seen, and refused.
        let options = ["-P", "LARGE", "-e", "inject=mmap:error=ENOMEM"];
        let (totals, _) = serve_under(mechanism, &options);
        let zero_copied = totals.sendfile + totals.mmap_write;
        assert_eq!(zero_copied, OTHER, "{mechanism}: {totals:?}");
        assert!(totals.copy > 2 * LARGE, "{mechanism}: {totals:?}");
    }
}

/// Runs the server in a sandbox that answers `errno` to these calls, as containers do.
fn serve_filtered(calls: &[i64], errno: i32) -> Totals {
    let site = site();
    let rules = calls.iter().map(|&call| (call, vec![])).collect();
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let errno = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, errno, arch).unwrap();
    let filter: BpfProgram = filter.try_into().unwrap();
    // A filter is a thread's, and that of the processes that the thread starts.
    let server = std::thread::scope(|scope| {
        let start = || {
            seccompiler::apply_filter(&filter).unwrap();
            Server::start(site.path(), &["--threads", "1"])
        };
        scope.spawn(start).join().unwrap()
    });
    let mut stream = connect(server.address());
    for (target, len) in [("/large", LARGE), ("/large", LARGE), ("/other", OTHER)] {
        let answer = get(&mut stream, target);
        assert!(answer.body == noise(len as usize), "{calls:?}: {target}");
    }
    server.stop().totals()
}

#[test]
fn old_kernels_and_filters_cost_no_byte() {
    /// libc does not list it yet; every architecture has the same number.
    const CACHESTAT: i64 = 451;
    let (sendfile, splice) = (libc::SYS_sendfile, libc::SYS_splice);
    for errno in [libc::ENOSYS, libc::EPERM] {
        for (calls, ways) in [
            (&[libc::SYS_openat2][..], [ALL, 0]),
            (&[CACHESTAT], [ALL, 0]),
            (&[sendfile], [0, ALL]),
            (&[sendfile, splice], [0, 0]),
        ] {
            let totals = serve_filtered(calls, errno);
            let was = [totals.sendfile, totals.splice];
            assert_eq!(was, ways, "{calls:?} {errno}: {totals:?}");
            let bodies_copied = ALL - ways.iter().sum::<u64>();
            assert!(totals.copy >= bodies_copied, "{totals:?}");
        }
    }
}

#[test]
fn a_file_that_cannot_be_asked_about_is_an_error_of_that_request_only() {
    if !can_trace("a_file_that_cannot_be_asked_about_is_an_error_of_that_request_only") {
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
        // statx names the open file, openat2 the path beneath the directory.
        let traced = Traced::start(
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

/// Where no mechanism would do: what was promised and cannot be kept closes the connection, and no
/// byte of anything else stands in for it.
#[test]
fn a_broken_disk_and_a_file_that_ends_early_close_the_connection() {
    if !can_trace("a_broken_disk_and_a_file_that_ends_early_close_the_connection") {
        return;
    }
    let bytes = noise(12 << 20);
    let site = tempfile::tempdir().unwrap();
    fs::write(site.path().join("large"), &bytes).unwrap();
    fs::write(site.path().join("other"), noise(OTHER as usize)).unwrap();
    for inject in [
        "inject=sendfile:error=EIO:when=2",
        "inject=sendfile:retval=0:when=2",
        "inject=sendfile:error=ENOBUFS:when=2",
        "inject=sendfile:error=ECONNRESET:when=2",
    ] {
        let traced = Traced::start(site.path(), &[], &["-e", inject]);
        let mut stream = connect(traced.server.address());
        ask(&mut stream, "/large");
        // Already on its way: it must not be answered inside the first answer.
        ask(&mut stream, "/other");
        let (_, length) = read_head(&mut stream).unwrap();
        assert_eq!(length, bytes.len());
        let body = read_to_close(&mut stream);
        assert!(body.len() < bytes.len(), "{inject}: {} bytes", body.len());
        assert!(bytes.starts_with(&body), "{inject}: other bytes");
        let answer = get(&mut connect(traced.server.address()), "/other");
        assert!(answer.body == noise(OTHER as usize), "{inject}");
        let (end, _) = traced.stop();
        assert_eq!(end.status.code(), Some(0), "{:?}", end.said);
    }
}

#[test]
fn a_connection_that_dies_before_it_is_accepted_concerns_nobody_else() {
    if !can_trace("a_connection_that_dies_before_it_is_accepted_concerns_nobody_else") {
        return;
    }
    let site = site();
    for (inject, says) in [
        ("inject=accept4:error=ECONNABORTED:when=1", None),
        ("inject=accept4:error=EPERM:when=1", None),
        (
            "inject=accept4:error=EMFILE:when=1",
            Some("too many open files"),
        ),
        ("inject=accept4:error=ENOMEM:when=1", Some("cannot accept")),
    ] {
        let mut traced = Traced::start(site.path(), &[], &["-e", inject]);
        let mut stream = connect(traced.server.address());
        assert_eq!(get(&mut stream, "/other").status, 200, "{inject}");
        let mut next = connect(traced.server.address());
        assert_eq!(get(&mut next, "/other").status, 200, "{inject}");
        if let Some(text) = says {
            traced.server.wait_for(text);
        }
        let (end, _) = traced.stop();
        let said = end.said.len();
        assert_eq!(said, 2 + usize::from(says.is_some()), "{:?}", end.said);
    }
}
