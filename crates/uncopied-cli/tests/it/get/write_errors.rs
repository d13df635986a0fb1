//! Writes that fail: by injection, by a limit on the size of files, and on a full disk.
//!
//! Whatever fails, the message says what, nothing is under the final name, and the bytes that are
//! said to be kept are right: `-c` makes the file whole.

use std::fs;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Output;

use super::resume::cut_once;
use super::scripted::{Scripted, Then, Version, header};
use super::{get, get_behind, get_ok, names};
use crate::data::test_bytes;
use crate::skip::{skip, skip_optional};
use crate::trace::can_trace;

/// Of the version on the server: longer than a write with `O_DIRECT`.
const LARGE: usize = 2_500_000;
/// Arrives with the head.
const SMALL: usize = 3000;

fn server(len: usize) -> Scripted {
    let version = Version {
        data: test_bytes(len),
        tag: "\"a\"",
    };
    Scripted::start(move |head, socket, _| version.send(head, socket))
}

/// Checks that a download has failed with one line that contains `words`. Returns how many bytes
/// the line says are kept.
fn assert_failed(output: &Output, words: &str, context: &str) -> u64 {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{context}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{context}: {stderr}");
    assert!(stderr.contains(words), "{context}: {stderr}");
    let kept = stderr.split_once(" bytes are kept in f.part, go on with -c");
    let number = kept.and_then(|(before, _)| before.rsplit(' ').next()?.parse().ok());
    number.unwrap_or(0)
}

/// Checks what a failed download has left, and that `-c` goes on from it.
fn assert_resumable(directory: &Path, server: &Scripted, len: usize, kept: u64, context: &str) {
    let expected = test_bytes(len);
    let left = names(directory);
    if kept > 0 {
        assert_eq!(left, ["f.part", "f.part.json"], "{context}");
        let part = fs::read(directory.join("f.part")).unwrap();
        let kept = usize::try_from(kept).unwrap();
        assert!(part[..kept] == expected[..kept], "{context}");
    } else {
        assert_eq!(left, [""; 0], "{context}");
    }
    let requests = server.heads().len();
    get_ok(directory, &[&server.url("f"), "-c"]);
    let head = &server.heads()[requests];
    if kept > 0 && kept < len as u64 {
        let range = format!("bytes={kept}-");
        assert_eq!(header(head, "range"), Some(&range[..]), "{context}");
    }
    assert!(fs::read(directory.join("f")).unwrap() == expected);
    assert_eq!(names(directory), ["f"], "{context}");
}

#[test]
fn each_error_of_a_file_is_told_and_what_was_written_before_is_kept() {
    if !can_trace("each_error_of_a_file_is_told_and_what_was_written_before_is_kept") {
        return;
    }
    let sinks: &[(&str, usize, &[&str], &str, &str)] = &[
        // The second splice is from the pipe to the file.
        (
            "splice",
            LARGE,
            &[],
            "splice:when=2+",
            "cannot write f.part",
        ),
        (
            "direct",
            LARGE,
            &["--direct"],
            "pwrite64:when=1+",
            "cannot write f.part",
        ),
        (
            "direct, later",
            LARGE,
            &["--direct"],
            "pwrite64:when=2+",
            "cannot write f.part",
        ),
        (
            "head",
            SMALL,
            &[],
            "pwrite64:when=1+",
            "cannot write f.part",
        ),
        (
            "reserve",
            LARGE,
            &["--connections", "2"],
            "fallocate:when=1+",
            "cannot reserve space for f.part",
        ),
        ("sync", LARGE, &[], "fsync:when=1+", "cannot sync f.part"),
        (
            "rename",
            LARGE,
            &[],
            "renameat2:when=1+",
            "cannot rename f.part",
        ),
        ("link", SMALL, &[], "linkat:when=1+", "cannot create f"),
    ];
    for (sink, len, flags, call, words) in sinks {
        for (errno, text) in [
            ("ENOSPC", "no space left on device; make room"),
            ("EDQUOT", "disk quota exceeded; make room"),
            ("EFBIG", "file too large"),
            ("EIO", "input/output error"),
            ("EROFS", "read-only file system; choose a directory"),
        ] {
            let context = format!("{sink} {errno}");
            let server = server(*len);
            let directory = tempfile::tempdir().unwrap();
            let (name, when) = call.split_once(':').unwrap();
            let inject = format!("inject={name}:error={errno}:{when}");
            let trace = format!("trace={name}");
            let url = server.url("f");
            let arguments = [&[url.as_str(), "--retries", "0"], *flags].concat();
            let strace = [
                "strace",
                "-f",
                "-q",
                "-o",
                "/dev/null",
                "-e",
                &trace,
                "-e",
                &inject,
            ];
            let output = get_behind(&strace, directory.path(), &arguments);
            let output = { output }.output().unwrap();
            let kept = assert_failed(&output, &format!("{words}: {text}"), &context);
            assert_resumable(directory.path(), &server, *len, kept, &context);
        }
    }
}

/// Many small files are synced with one call. If it fails, any of them may be damaged.
#[test]
fn no_file_of_a_batch_that_cannot_be_synced_gets_its_name() {
    const FILES: usize = 64;
    if !can_trace("no_file_of_a_batch_that_cannot_be_synced_gets_its_name") {
        return;
    }
    let server = server(SMALL);
    let directory = tempfile::tempdir().unwrap();
    let trace = tempfile::NamedTempFile::new().unwrap();
    // The first files are synced one by one, which takes long enough for the others to arrive.
    let strace = [
        "strace",
        "-f",
        "-q",
        "-o",
        trace.path().to_str().unwrap(),
        "-e",
        "trace=fsync,syncfs",
        "-e",
        "inject=fsync:delay_enter=1s",
        "-e",
        "inject=syncfs:error=EIO",
    ];
    let urls: Vec<_> = (0..FILES).map(|n| server.url(&format!("f{n}"))).collect();
    let arguments: Vec<_> = urls.iter().map(String::as_str).collect();
    let output = get_behind(&strace, directory.path(), &arguments).output();
    let output = output.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let calls = fs::read_to_string(trace.path()).unwrap();
    assert!(calls.contains("(INJECTED)"), "{calls}");
    let saved = names(directory.path());
    let failed = stderr.matches("cannot sync f").count();
    assert!(failed >= FILES / 2, "{stderr}");
    assert_eq!(saved.len() + failed, FILES, "{stderr}");
    for name in saved {
        assert!(
            fs::read(directory.path().join(&name)).unwrap() == test_bytes(SMALL),
            "{name}"
        );
        assert!(
            !stderr.contains(&format!("cannot sync {name}.part")),
            "{stderr}"
        );
    }
}

/// A body that arrives with its head needs no temporary name, where the system allows that.
#[test]
fn a_small_file_gets_its_name_in_each_way() {
    if !can_trace("a_small_file_gets_its_name_in_each_way") {
        return;
    }
    // In one call, so that the body never arrives later than its head.
    let server = Scripted::start(|_, socket, _| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {SMALL}\r\n\r\n");
        let response = [head.as_bytes(), &test_bytes(SMALL)].concat();
        socket.write_all(&response).unwrap();
        Then::Close
    });
    let directory = tempfile::tempdir().unwrap();
    let shown = directory.path().display().to_string();
    let trace = directory.path().join("trace").display().to_string();
    for (name, options, call) in [
        ("unnamed", &["-e", "trace=linkat"][..], "AT_EMPTY_PATH"),
        (
            "proc",
            &[
                "-e",
                "trace=linkat",
                "-e",
                "inject=linkat:error=ENOENT:when=1",
            ],
            "/proc/self/fd/",
        ),
        (
            "named",
            &["-P", &shown, "-e", "inject=openat:error=EOPNOTSUPP"],
            "O_TMPFILE",
        ),
    ] {
        let strace = [&["strace", "-f", "-q", "-o", &trace], options].concat();
        let path = directory.path().join(name).display().to_string();
        let arguments = [&server.url("f"), "-o", &path];
        let output = get_behind(&strace, directory.path(), &arguments).output();
        let output = output.unwrap();
        let calls = fs::read_to_string(&trace).unwrap();
        assert!(output.status.success(), "{name}: {calls}");
        let has_failed = calls.contains("(INJECTED)");
        assert_eq!(has_failed, name != "unnamed", "{calls}");
        assert!(calls.contains(call), "{name}: {calls}");
        assert!(fs::read(&path).unwrap() == test_bytes(SMALL));
    }
    let left = names(directory.path());
    assert_eq!(left, ["named", "proc", "trace", "unnamed"]);
}

#[test]
fn each_error_of_standard_output_is_told() {
    if !can_trace("each_error_of_standard_output_is_told") {
        return;
    }
    for (errno, text) in [
        ("ENOSPC", "no space left on device; make room"),
        ("EDQUOT", "disk quota exceeded; make room"),
        ("EFBIG", "file too large"),
        ("EIO", "input/output error"),
    ] {
        let server = server(SMALL);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        let inject = format!("inject=write:error={errno}");
        let shown = path.display().to_string();
        let strace = [
            "strace",
            "-f",
            "-q",
            "-o",
            "/dev/null",
            "-P",
            &shown,
            "-e",
            &inject,
        ];
        let arguments = [&server.url("f"), "-o", "-"];
        let output = get_behind(&strace, directory.path(), &arguments)
            .stdout(fs::File::create(&path).unwrap())
            .output()
            .unwrap();
        let words = format!("cannot write to standard output: {text}");
        assert_eq!(assert_failed(&output, &words, errno), 0);
        assert_eq!(fs::read(&path).unwrap(), b"", "{errno}");
    }
    let server = server(SMALL);
    let directory = tempfile::tempdir().unwrap();
    let arguments = [&server.url("f"), "-o", "/dev/full"];
    let output = get(directory.path(), &arguments).output().unwrap();
    let words = "cannot write to /dev/full: no space left on device";
    assert_eq!(assert_failed(&output, words, "/dev/full"), 0);
}

#[test]
fn a_limit_on_the_size_of_files_is_an_error_and_no_signal() {
    // The unit is 512 bytes.
    const LIMIT: u64 = 3000 * 512;
    for (flags, kept) in [
        (&[][..], LIMIT),
        (&["--direct"], LIMIT),
        // The space cannot be reserved, but the first piece is there.
        (&["--connections", "2"], 1 << 20),
    ] {
        let context = format!("{flags:?}");
        let server = server(LARGE);
        let directory = tempfile::tempdir().unwrap();
        let url = server.url("f");
        let arguments = [&[url.as_str()], flags].concat();
        let words = ["sh", "-c", "ulimit -f 3000; exec \"$0\" \"$@\""];
        let output = get_behind(&words, directory.path(), &arguments)
            .output()
            .unwrap();
        assert_eq!(
            assert_failed(&output, "file too large", &context),
            kept,
            "{context}"
        );
        assert_resumable(directory.path(), &server, LARGE, kept, &context);
    }
}

/// A full disk has no room for a new record either.
#[test]
fn what_fits_on_a_full_disk_is_kept() {
    // Runs in a mount namespace of its own: $1 is the directory, the rest is the command.
    let script = "mount -t tmpfs -o size=1m tmpfs \"$0\" && cd \"$0\" || exit 99; \
                  \"$@\" >/dev/null; status=$?; ls; cp f.part* \"$0.copy\"; exit $status";
    for flags in [&[][..], &["--direct"]] {
        let server = server(LARGE);
        let directory = tempfile::tempdir().unwrap();
        let mount = directory.path().join("mount");
        let copy = directory.path().join("mount.copy");
        fs::create_dir(&mount).unwrap();
        fs::create_dir(&copy).unwrap();
        let url = server.url("f");
        let words = [
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            script,
        ];
        let words = [&words[..], &[mount.to_str().unwrap()]].concat();
        let arguments = [&[url.as_str()], flags].concat();
        let output = get_behind(&words, &mount, &arguments).output();
        let Some(output) = output
            .ok()
            .filter(|output| !matches!(output.status.code(), Some(99)))
        else {
            let why = "needs unshare, user namespaces and mounts";
            return skip("what_fits_on_a_full_disk_is_kept", why);
        };
        let kept = assert_failed(&output, "no space left on device; make room", "tmpfs");
        assert!(kept > 900_000, "{kept}");
        assert_eq!(output.stdout, b"f.part\nf.part.json\n");
        assert_resumable(&copy, &server, LARGE, kept, "tmpfs");
    }
}

/// A real file system with sectors of each size, behind a loop device: whole blocks are written
/// past the page cache, and the download is whole, also if it goes on in the middle of a block.
#[test]
fn direct_writes_reach_xfs() {
    // Runs in a mount namespace of its own: $0 is the directory, $1 the sector size, the rest is
    // the command, which runs twice: the first download is cut.
    let script = "sector=$1; shift; truncate -s 320M \"$0.image\" && \
                  mkfs.xfs -q -s size=$sector \"$0.image\" && \
                  mount -o loop \"$0.image\" \"$0\" && cd \"$0\" || exit 99; \
                  \"$@\" 2>/dev/null; \"$@\" -c && cat f >&3";
    for sector in ["512", "4096"] {
        let version = Version {
            data: test_bytes(LARGE),
            tag: "\"a\"",
        };
        let server = cut_once(version, 1_300_001);
        let directory = tempfile::tempdir().unwrap();
        let mount = directory.path().join("mount");
        fs::create_dir(&mount).unwrap();
        let copy = directory.path().join("copy");
        let words = [
            "sh",
            "-c",
            "exec 3>\"$0\"; exec unshare --mount sh -c \"$@\"",
            copy.to_str().unwrap(),
            script,
            mount.to_str().unwrap(),
            sector,
        ];
        let url = server.url("f");
        let arguments = [url.as_str(), "--direct", "--retries", "0"];
        let output = get_behind(&words, &mount, &arguments).output().unwrap();
        if matches!(output.status.code(), Some(1 | 99)) && server.heads().is_empty() {
            let why = "needs root, mkfs.xfs (xfsprogs), loop devices and XFS in the kernel";
            return skip_optional("direct_writes_reach_xfs", why);
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{sector}: {stderr}");
        assert!(fs::read(&copy).unwrap() == test_bytes(LARGE), "{sector}");
        let range = header(&server.heads()[1], "range").map(str::to_owned);
        assert_eq!(range.as_deref(), Some("bytes=1300001-"), "{sector}");
    }
}

/// Waiting for room must not keep the time limit from being noticed.
#[test]
fn a_full_output_that_does_not_block_is_waited_for() {
    let server = server(LARGE);
    let directory = tempfile::tempdir().unwrap();
    for is_read in [true, false] {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let url = server.url("f");
        let limit = if is_read { "60s" } else { "200ms" };
        let child = get(directory.path(), &[&url, "-o", "-", "--max-time", limit])
            .stdout(OwnedFd::from(theirs))
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        if is_read {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut ours, &mut bytes).unwrap();
            assert!(bytes == test_bytes(LARGE));
        }
        let output = child.wait_with_output().unwrap();
        match is_read {
            true => assert!(output.status.success()),
            false => assert_eq!(assert_failed(&output, "took more than 200 ms", ""), 0),
        }
    }
}

/// The lock on the temporary file does not keep other programs out.
#[test]
fn a_file_that_another_program_makes_longer_is_not_given_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let part = directory.path().join("f.part");
    let server = Scripted::start(move |_, socket, _| {
        socket
            .write_all(b"HTTP/1.1 200 OK\r\nETag: \"a\"\r\nContent-Length: 10\r\n\r\n01234")
            .unwrap();
        while fs::metadata(&part).map_or(0, |metadata| metadata.len()) < 5 {
            std::thread::yield_now();
        }
        let file = fs::OpenOptions::new().append(true).open(&part).unwrap();
        file.set_len(100).unwrap();
        socket.write_all(b"56789").unwrap();
        Then::Close
    });
    let output = get(directory.path(), &[&server.url("f")]).output().unwrap();
    assert_eq!(assert_failed(&output, "f.part is not the file", ""), 0);
    assert!(!directory.path().join("f").exists());
}
