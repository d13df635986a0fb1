//! Copies that fail or are dropped: what was counted, and where the files then stand.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::process::{Resource, Rlimit, setrlimit};
use uncopied::{Error, ErrorKind, Side, Through};

use crate::copies::{AnyEnd, KINDS, Kind, MIB, START, SourceOf, file_of, run};
use crate::harness::{
    DRIVERS, Family, in_child, in_mount_namespace, pattern, small_buffer_pair, socket_pair,
};

/// The sinks that can be closed.
const SINKS: [Kind; 3] = [Kind::Tcp, Kind::Unix, Kind::Pipe];

/// Returns a sink whose other end reads this many bytes, and is then closed.
fn closing_sink(kind: Kind, after: usize) -> (AnyEnd, JoinHandle<()>) {
    let (end, mut peer) = match kind {
        Kind::Tcp => {
            let (socket, peer) = small_buffer_pair(Family::Tcp);
            (AnyEnd::Tcp(socket), peer)
        }
        Kind::Unix => {
            let (socket, peer) = small_buffer_pair(Family::Unix);
            (AnyEnd::Unix(socket), peer)
        }
        _ => {
            let (reader, writer) = io::pipe().unwrap();
            let reader = File::from(OwnedFd::from(reader));
            (AnyEnd::Pipe(writer.into()), reader)
        }
    };
    let reader = thread::spawn(move || {
        let mut read = vec![0; after];
        peer.read_exact(&mut read).unwrap();
        assert!(read == pattern(after));
    });
    (end, reader)
}

/// Asserts that a source that is a file stands behind the bytes that were counted.
fn check_position(source: &mut AnyEnd, error: &Error, case: &str) {
    if let AnyEnd::File(file) = source {
        let position = file.stream_position().unwrap();
        assert_eq!(position, START + error.moved(), "{case}: {error}");
    }
}

#[test]
fn a_sink_that_is_closed_is_an_error_that_counts_the_bytes() {
    check_closed_sinks(&KINDS);
}

fn check_closed_sinks(sources: &[Kind]) {
    let pairs = sources.iter().flat_map(|from| SINKS.map(|to| (*from, to)));
    for (from, to) in pairs {
        for &driver in DRIVERS {
            let case = format!("{from:?} to {to:?}, {driver:?}");
            let mut source = SourceOf::new(from, pattern(8 * MIB));
            let (mut sink, reader) = closing_sink(to, 100_000);
            let error = run(driver, &mut source.end, &mut sink).expect_err(&case);
            reader.join().unwrap();
            assert!(
                (100_000..8 * MIB as u64).contains(&error.moved()),
                "{case}: {error}"
            );
            assert_eq!(error.side(), Some(Side::Sink), "{case}: {error}");
            let kind = match to {
                Kind::Pipe => ErrorKind::Sink,
                _ => ErrorKind::PeerClosed,
            };
            assert_eq!(error.kind(), kind, "{case}: {error}");
            if to == Kind::Pipe {
                let text = error.to_string();
                assert!(text.contains("its reader has closed the pipe"), "{text}");
            }
            check_position(&mut source.end, &error, &case);
        }
    }
}

/// Without the library's care, SIGPIPE would end this process.
#[allow(unsafe_code)]
#[test]
fn a_sink_that_is_closed_raises_no_signal() {
    in_child(
        "copying_failures::a_sink_that_is_closed_raises_no_signal",
        |_| {},
        || {
            // SAFETY: the default disposition is a valid one, and this process runs only this test.
            unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
            // The other sources have senders, which would raise the signal themselves.
            check_closed_sinks(&[Kind::File, Kind::Memory, Kind::Through]);
            // A TCP socket accepts what comes first.
            for (to, &driver) in [Kind::Unix, Kind::Pipe]
                .iter()
                .flat_map(|to| DRIVERS.iter().map(move |it| (*to, it)))
            {
                let (reader, mut writer) = io::pipe().unwrap();
                writer.write_all(&pattern(5_000)).unwrap();
                let (mut sink, closed) = closing_sink(to, 0);
                closed.join().unwrap();
                let error = run(driver, &mut AnyEnd::Pipe(reader.into()), &mut sink).unwrap_err();
                assert_eq!(error.side(), Some(Side::Sink), "{to:?}: {error}");
            }
        },
    );
}

/// Asserts that the file contains exactly the bytes that the error counts, and stands behind them.
fn check_sink(file: &mut File, error: &Error, case: &str) {
    let moved = error.moved();
    assert_eq!(
        file.stream_position().unwrap(),
        START + moved,
        "{case}: {error}"
    );
    assert_eq!(
        file.metadata().unwrap().len(),
        START + moved,
        "{case}: {error}"
    );
    let mut written = vec![0; moved as usize];
    file.read_exact_at(&mut written, START).unwrap();
    assert!(written == pattern(moved as usize), "{case}");
}

#[test]
fn a_full_disk_is_an_error_that_counts_the_bytes() {
    let name = "copying_failures::a_full_disk_is_an_error_that_counts_the_bytes";
    in_mount_namespace(name, || {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=1M", "tmpfs"]);
        assert!(mount.arg(folder.path()).status().unwrap().success());
        for (from, &driver) in KINDS
            .iter()
            .flat_map(|from| DRIVERS.iter().map(move |it| (from, it)))
        {
            let case = format!("{from:?}, {driver:?}");
            let mut source = SourceOf::new(*from, pattern(3 * MIB));
            let mut file = tempfile::tempfile_in(folder.path()).unwrap();
            file.seek(io::SeekFrom::Start(START)).unwrap();
            let mut sink = AnyEnd::File(file.try_clone().unwrap());
            let error = run(driver, &mut source.end, &mut sink).expect_err(&case);
            assert!(error.moved() > MIB as u64 / 2, "{case}: {error}");
            assert_eq!(error.side(), Some(Side::Sink), "{case}: {error}");
            let text = error.to_string();
            assert!(
                text.contains("free some space on the disk"),
                "{case}: {text}"
            );
            check_sink(&mut file, &error, &case);
            check_position(&mut source.end, &error, &case);
            assert_eq!(io::Error::from(error).kind(), io::ErrorKind::StorageFull);
        }
    });
}

/// Without the library's care, SIGXFSZ would end this process.
#[test]
fn a_file_size_limit_is_an_error_and_no_signal() {
    in_child(
        "copying_failures::a_file_size_limit_is_an_error_and_no_signal",
        |_| {},
        || {
            let sources = |&from| {
                let source = move |&driver| (driver, from, SourceOf::new(from, pattern(MIB)));
                DRIVERS.iter().map(source)
            };
            // The limit concerns the sources as well.
            let sources: Vec<_> = KINDS.iter().flat_map(sources).collect();
            let limit = Rlimit {
                current: Some(500_001),
                maximum: None,
            };
            setrlimit(Resource::Fsize, limit).unwrap();
            for (driver, from, mut source) in sources {
                let case = format!("{from:?}, {driver:?}");
                let mut file = file_of(START, b"");
                let mut sink = AnyEnd::File(file.try_clone().unwrap());
                let error = run(driver, &mut source.end, &mut sink).expect_err(&case);
                assert_eq!(error.moved(), 500_001 - START, "{case}: {error}");
                assert!(error.to_string().contains("RLIMIT_FSIZE"), "{error}");
                check_sink(&mut file, &error, &case);
                check_position(&mut source.end, &error, &case);
            }
        },
    );
}

#[test]
fn the_send_timeout_of_a_socket_applies() {
    for from in KINDS {
        let mut source = SourceOf::new(from, pattern(8 * MIB));
        let (socket, _peer) = socket_pair(Family::Tcp);
        let timeout = Some(Duration::from_millis(100));
        set_socket_timeout(&socket, Timeout::Send, timeout).unwrap();
        let driver = crate::harness::Driver::Blocking;
        let error = run(driver, &mut source.end, &mut AnyEnd::Tcp(socket)).expect_err("a timeout");
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{from:?}: {error}");
        check_position(&mut source.end, &error, &format!("{from:?}"));
    }
}

#[test]
fn the_end_that_cannot_be_used_is_named() {
    let read_only = || File::open("/dev/null").unwrap();
    let folder = || File::open("/").unwrap();
    for &driver in DRIVERS {
        for from in KINDS {
            let mut source = SourceOf::new(from, pattern(5));
            let path = tempfile::NamedTempFile::new().unwrap();
            let mut sink = AnyEnd::File(File::open(path.path()).unwrap());
            let error = run(driver, &mut source.end, &mut sink).expect_err("read-only");
            assert_eq!(error.raw_os_error(), Some(libc::EBADF), "{from:?}: {error}");
            assert_eq!(
                (error.side(), error.moved()),
                (Some(Side::Sink), 0),
                "{error}"
            );
        }
        let mut sink = AnyEnd::Memory(Vec::new());
        let error = run(driver, &mut AnyEnd::File(folder()), &mut sink).expect_err("a folder");
        assert_eq!(error.raw_os_error(), Some(libc::EISDIR), "{error}");
        assert_eq!(error.side(), Some(Side::Source), "{error}");
        let mut sink = AnyEnd::File(read_only());
        let error = run(driver, &mut AnyEnd::File(folder()), &mut sink).expect_err("a folder");
        assert_eq!(error.side(), Some(Side::Source), "{error}");
    }
}

/// A reader that fails after some bytes, or a writer that accepts only some.
struct Failing(usize);

impl Read for Failing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0 {
            0 => Err(io::ErrorKind::InvalidData.into()),
            left => {
                let read = left.min(buffer.len());
                self.0 -= read;
                Ok(read)
            }
        }
    }
}

impl Write for Failing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.0.min(bytes.len());
        self.0 -= written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_errors_of_readers_and_writers_are_kept() {
    let mut file = file_of(START, &pattern(MIB));
    let error = uncopied::copy(&mut file, Through(Failing(300_000))).expect_err("full");
    assert_eq!((error.moved(), error.side()), (300_000, Some(Side::Sink)));
    assert_eq!(file.stream_position().unwrap(), START + 300_000);
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::WriteZero);

    let mut sink = Vec::new();
    let error = uncopied::copy(Through(Failing(300_000)), &mut sink).expect_err("invalid");
    assert_eq!((error.moved(), error.side()), (300_000, Some(Side::Source)));
    assert_eq!(sink.len(), 300_000);
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::InvalidData);
}

/// A copy that was dropped can be made again, and goes on with the next byte.
#[cfg(feature = "tokio")]
#[test]
fn a_dropped_copy_leaves_a_file_or_a_pipe_at_the_next_byte() {
    use crate::copies::on_tokio;
    for from in [Kind::File, Kind::Pipe] {
        let bytes = pattern(8 * MIB);
        let mut source = SourceOf::new(from, bytes.clone());
        let (socket, mut peer) = small_buffer_pair(Family::Tcp);
        let mut sink = AnyEnd::Tcp(socket);
        let reader = thread::spawn(move || {
            let mut received = Vec::new();
            let mut buffer = vec![0; 64 << 10];
            while let Ok(read @ 1..) = peer.read(&mut buffer) {
                received.extend_from_slice(&buffer[..read]);
                thread::sleep(Duration::from_micros(200));
            }
            received
        });
        let drops = crate::harness::runtime().block_on(async {
            let mut drops = 0;
            loop {
                let copy = on_tokio::copy(&mut source.end, &mut sink);
                match tokio::time::timeout(Duration::from_millis(1), copy).await {
                    Ok(report) => {
                        report.unwrap();
                        return drops;
                    }
                    Err(_) => drops += 1,
                }
            }
        });
        drop(sink);
        assert!(drops > 3, "{drops} futures were dropped");
        assert!(reader.join().unwrap() == bytes, "{from:?}");
    }
}

/// The thread that copies stops when the future is dropped.
#[cfg(feature = "tokio")]
#[test]
fn a_dropped_copy_between_files_stops() {
    const BYTES: u64 = 4 << 30;
    let source = tempfile::tempfile().unwrap();
    source.set_len(BYTES).unwrap();
    let sink = File::options().write(true).open("/dev/null").unwrap();
    let runtime = crate::harness::runtime();
    let position = || rustix::fs::seek(source.as_fd(), rustix::fs::SeekFrom::Current(0)).unwrap();
    runtime.block_on(async {
        let copy = uncopied::tokio::copy(&source, &sink);
        let copied = tokio::time::timeout(Duration::from_millis(1), copy).await;
        copied.expect_err("4 GiB take longer");
    });
    // Waits for the thread.
    drop(runtime);
    assert!(position() < BYTES, "the thread has copied everything");
}
