//! Receiving into files that fails: full disks, limits on the size of files, pipes that nobody
//! reads, files that others truncate, and peers that stop or reset the connection.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_linger, set_socket_timeout};
use rustix::process::{Resource, Rlimit, setrlimit};
use uncopied::policy::Length;
use uncopied::{Error, ErrorKind, Mechanism, ReceiveFile, driver};

use crate::harness::{
    DRIVERS, Driver, FAMILIES, Family, TO_FILES, for_each_way_to_files, in_child,
    in_mount_namespace, pattern, receive_into, sending, socket_pair, wait_until,
};

const MIB: usize = 1 << 20;

fn contents(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Asserts that the sink has failed in this way, and that the file has the bytes that the error
/// counts, and no others.
fn check_failure(error: Error, kind: io::ErrorKind, file: &File, case: &str) {
    assert_eq!(error.kind(), ErrorKind::Sink, "{case}: {error}");
    let moved = error.moved() as usize;
    let written = contents(file);
    assert_eq!(written.len(), moved, "{case}");
    assert!(written == pattern(moved), "{case}");
    assert_eq!(io::Error::from(error).kind(), kind, "{case}");
}

/// Mounts a file system in memory that holds this many bytes.
fn mount_tmpfs(folder: &Path, bytes: usize) {
    let mut mount = std::process::Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]);
    assert!(mount.arg(folder).status().unwrap().success());
}

#[test]
fn a_full_disk_is_an_error_that_counts_the_bytes() {
    let name = "receiving_failures::a_full_disk_is_an_error_that_counts_the_bytes";
    in_mount_namespace(name, || {
        let folder = tempfile::tempdir().unwrap();
        mount_tmpfs(folder.path(), MIB);
        for_each_way_to_files(|mechanism, family, driver| {
            let case = format!("{mechanism} {family:?} {driver:?}");
            let file = tempfile::tempfile_in(folder.path()).unwrap();
            let (socket, peer) = socket_pair(family);
            let peer = sending(peer, pattern(3 * MIB));
            let receive = ReceiveFile::new(&file).force_mechanisms(&[mechanism]);
            let error = receive_into(driver, family, socket, &receive).expect_err(&case);
            peer.join().unwrap();
            assert!(error.moved() > MIB as u64 / 2, "{case}: {error}");
            let text = error.to_string();
            assert!(text.contains("free some space on the disk"), "{text}");
            check_failure(error, io::ErrorKind::StorageFull, &file, &case);
        });
    });
}

/// The bytes that were taken from the socket when the disk was full are not lost.
#[test]
fn a_transfer_goes_on_once_the_disk_has_space_again() {
    let name = "receiving_failures::a_transfer_goes_on_once_the_disk_has_space_again";
    in_mount_namespace(name, || {
        let folder = tempfile::tempdir().unwrap();
        mount_tmpfs(folder.path(), 2 * MIB);
        for mechanism in TO_FILES {
            let ballast = tempfile::tempfile_in(folder.path()).unwrap();
            ballast.write_all_at(&vec![1; MIB], 0).unwrap();
            let file = tempfile::tempfile_in(folder.path()).unwrap();
            let (socket, peer) = socket_pair(Family::Tcp);
            let bytes = pattern(3 * MIB / 2);
            let peer = sending(peer, bytes.clone());
            let receive = ReceiveFile::new(&file).force_mechanisms(&[mechanism]);
            let mut transfer = receive.transfer(&socket).unwrap();
            for _ in 0..2 {
                let result = driver::blocking::run_receive(&mut transfer, &socket, &file);
                let error = result.expect_err("the disk is full");
                assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
                assert!(transfer.held_bytes() > 0, "{mechanism}");
            }
            ballast.set_len(0).unwrap();
            driver::blocking::run_receive(&mut transfer, &socket, &file).unwrap();
            peer.join().unwrap();
            assert!(contents(&file) == bytes, "{mechanism}");
            assert_eq!(transfer.report().by(mechanism), bytes.len() as u64);
        }
    });
}

#[test]
fn space_is_reserved_before_a_byte_is_taken() {
    let name = "receiving_failures::space_is_reserved_before_a_byte_is_taken";
    in_mount_namespace(name, || {
        let folder = tempfile::tempdir().unwrap();
        mount_tmpfs(folder.path(), MIB);
        for_each_way_to_files(|mechanism, family, driver| {
            let file = tempfile::tempfile_in(folder.path()).unwrap();
            let (socket, peer) = socket_pair(family);
            let mut same_socket = File::from(socket.try_clone().unwrap());
            let peer = sending(peer, pattern(1000));
            let receive = ReceiveFile::new(&file)
                .length(Length::Exact(3 * MIB as u64))
                .reserve(true)
                .force_mechanisms(&[mechanism]);
            let error = receive_into(driver, family, socket, &receive).unwrap_err();
            peer.join().unwrap();
            assert_eq!((error.call(), error.moved()), (Some("fallocate"), 0));
            check_failure(error, io::ErrorKind::StorageFull, &file, "reserved");
            let mut rest = vec![0; 1000];
            rustix::io::ioctl_fionbio(&same_socket, false).unwrap();
            same_socket.read_exact(&mut rest).unwrap();
            assert!(rest == pattern(1000), "no byte was taken");
        });
        // The size of the file is what was received, not what was reserved.
        let file = tempfile::tempfile_in(folder.path()).unwrap();
        let (socket, peer) = socket_pair(Family::Unix);
        let peer = sending(peer, pattern(1000));
        let length = Length::Exact(MIB as u64 / 2);
        let receive = ReceiveFile::new(&file).length(length).reserve(true);
        receive.from(&socket).expect_err("the peer ends the stream");
        peer.join().unwrap();
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), 1000);
        let reserved = std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
        assert_eq!(reserved, MIB as u64 / 2);
    });
}

/// Without the library's care, SIGXFSZ would end this process.
#[test]
fn a_file_size_limit_is_an_error_and_no_signal() {
    let name = "receiving_failures::a_file_size_limit_is_an_error_and_no_signal";
    in_child(
        name,
        |_| {},
        || {
            let limit = Rlimit {
                current: Some(500_001),
                maximum: None,
            };
            setrlimit(Resource::Fsize, limit).unwrap();
            for_each_way_to_files(|mechanism, family, driver| {
                let case = format!("{mechanism} {family:?} {driver:?}");
                let file = tempfile::tempfile().unwrap();
                let (socket, peer) = socket_pair(family);
                let peer = sending(peer, pattern(MIB));
                let receive = ReceiveFile::new(&file).force_mechanisms(&[mechanism]);
                let error = receive_into(driver, family, socket, &receive).expect_err(&case);
                peer.join().unwrap();
                assert_eq!(error.moved(), 500_001, "{case}: {error}");
                assert!(error.to_string().contains("RLIMIT_FSIZE"), "{error}");
                check_failure(error, io::ErrorKind::FileTooLarge, &file, &case);
            });
            // A file that appends is written to without an offset.
            let path = tempfile::NamedTempFile::new().unwrap();
            let appending = OpenOptions::new().append(true).open(path.path()).unwrap();
            let (socket, peer) = socket_pair(Family::Unix);
            let peer = sending(peer, pattern(MIB));
            let error = ReceiveFile::new(&appending).from(&socket).unwrap_err();
            drop(socket);
            peer.join().unwrap();
            check_failure(
                error,
                io::ErrorKind::FileTooLarge,
                path.as_file(),
                "appends",
            );
        },
    );
}

/// Without the library's care, SIGPIPE would end this process.
#[test]
#[allow(unsafe_code)]
fn a_pipe_that_nobody_reads_is_an_error_and_no_signal() {
    let name = "receiving_failures::a_pipe_that_nobody_reads_is_an_error_and_no_signal";
    in_child(
        name,
        |_| {},
        || {
            // SAFETY: the default action of the signal is no function.
            unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
            for_each_way_to_files(|mechanism, family, driver| {
                let (reader, writer) = io::pipe().unwrap();
                drop(reader);
                let (socket, mut peer) = socket_pair(family);
                // Not from a thread, because a write to a closed socket would raise the signal.
                peer.write_all(&pattern(1000)).unwrap();
                let receive = ReceiveFile::new(&writer).force_mechanisms(&[mechanism]);
                let error = receive_into(driver, family, socket, &receive).unwrap_err();
                assert_eq!(
                    (error.kind(), error.moved()),
                    (ErrorKind::Sink, 0),
                    "{error}"
                );
                assert!(error.to_string().contains("closed the pipe"), "{error}");
                assert_eq!(io::Error::from(error).kind(), io::ErrorKind::BrokenPipe);
            });
        },
    );
}

/// The next write extends a file that another process has truncated, and leaves a hole.
#[test]
fn a_truncated_file_is_extended_again() {
    for_each_way_to_files(|mechanism, family, driver| {
        let case = format!("{mechanism} {family:?} {driver:?}");
        let file = tempfile::tempfile().unwrap();
        let (socket, mut peer) = socket_pair(family);
        let bytes = pattern(200_000);
        let report = thread::scope(|scope| {
            let (file, bytes) = (&file, &bytes);
            scope.spawn(move || {
                peer.write_all(&bytes[..100_000]).unwrap();
                let arrived = || file.metadata().unwrap().len() == 100_000;
                wait_until("the first bytes are in the file", arrived);
                file.set_len(10_000).unwrap();
                peer.write_all(&bytes[100_000..]).unwrap();
            });
            let receive = ReceiveFile::new(file).force_mechanisms(&[mechanism]);
            receive_into(driver, family, socket, &receive).expect(&case)
        });
        assert_eq!(report.by(mechanism), 200_000, "{case}");
        let written = contents(&file);
        assert!(written[..10_000] == bytes[..10_000], "{case}");
        assert!(
            written[10_000..100_000].iter().all(|&byte| byte == 0),
            "{case}"
        );
        assert!(written[100_000..] == bytes[100_000..], "{case}");
    });
}

/// A file that others write to stays theirs outside of the range.
#[test]
fn bytes_around_the_range_do_not_change() {
    for mechanism in TO_FILES {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[b'o'; 300_000], 0).unwrap();
        let (socket, peer) = socket_pair(Family::Tcp);
        let peer = sending(peer, pattern(100_001));
        let receive = ReceiveFile::new(&file).at(99_999);
        let receive = receive.force_mechanisms(&[mechanism]);
        assert_eq!(receive.from(&socket).unwrap().bytes(), 100_001);
        peer.join().unwrap();
        let written = contents(&file);
        assert_eq!(written.len(), 300_000);
        assert!(written[99_999..200_000] == pattern(100_001));
        let around = written[..99_999].iter().chain(&written[200_000..]);
        assert!(around.copied().all(|byte| byte == b'o'), "{mechanism}");
    }
}

#[test]
fn a_peer_that_stops_sending_is_an_error_after_the_timeout() {
    for family in FAMILIES {
        for mechanism in TO_FILES {
            for is_blocking in [true, false] {
                let file = tempfile::tempfile().unwrap();
                let (socket, mut peer) = socket_pair(family);
                let timeout = Some(Duration::from_millis(50));
                set_socket_timeout(&socket, Timeout::Recv, timeout).unwrap();
                rustix::io::ioctl_fionbio(&socket, !is_blocking).unwrap();
                peer.write_all(&pattern(1000)).unwrap();
                let receive = ReceiveFile::new(&file).length(Length::Exact(2000));
                let receive = receive.force_mechanisms(&[mechanism]);
                let mut transfer = receive.transfer(&socket).unwrap();
                let result = driver::blocking::run_receive(&mut transfer, &socket, &file);
                let error = result.expect_err("the peer sends no more");
                let case = format!("{mechanism} {family:?} {is_blocking}: {error}");
                assert_eq!(
                    (error.kind(), error.moved()),
                    (ErrorKind::TimedOut, 1000),
                    "{case}"
                );
                // It goes on where it stopped.
                peer.write_all(&pattern(2000)[1000..]).unwrap();
                driver::blocking::run_receive(&mut transfer, &socket, &file).unwrap();
                assert!(contents(&file) == pattern(2000), "{case}");
            }
        }
    }
}

#[test]
fn a_reset_is_an_error_that_counts_the_bytes() {
    for mechanism in TO_FILES {
        for &driver in DRIVERS {
            let case = format!("{mechanism} {driver:?}");
            let file = tempfile::tempfile().unwrap();
            let (socket, mut peer) = socket_pair(Family::Tcp);
            let error = thread::scope(|scope| {
                let file = &file;
                scope.spawn(move || {
                    peer.write_all(&pattern(10_000)).unwrap();
                    let arrived = || file.metadata().unwrap().len() == 10_000;
                    wait_until("the bytes are in the file", arrived);
                    // Closing the socket then resets the connection.
                    set_socket_linger(&peer, Some(Duration::ZERO)).unwrap();
                });
                let receive = ReceiveFile::new(file).force_mechanisms(&[mechanism]);
                let result = receive_into(driver, Family::Tcp, socket, &receive);
                result.expect_err("the connection is reset")
            });
            assert_eq!(
                (error.kind(), error.moved()),
                (ErrorKind::PeerClosed, 10_000),
                "{case}"
            );
            assert!(contents(&file) == pattern(10_000), "{case}");
        }
    }
}

#[test]
fn a_file_that_cannot_be_written_to_is_an_error() {
    for mechanism in TO_FILES {
        let path = tempfile::NamedTempFile::new().unwrap();
        let read_only = File::open(path.path()).unwrap();
        let (socket, peer) = socket_pair(Family::Unix);
        let peer = sending(peer, pattern(1000));
        let receive = ReceiveFile::new(&read_only).force_mechanisms(&[mechanism]);
        let error = receive.from(&socket).unwrap_err();
        peer.join().unwrap();
        assert_eq!(
            (error.kind(), error.moved()),
            (ErrorKind::Sink, 0),
            "{error}"
        );
        assert_eq!(error.raw_os_error(), Some(libc::EBADF), "{error}");
    }
}

#[test]
fn a_pipe_that_cannot_be_written_to_is_an_error_of_the_sink() {
    for_each_way_to_files(|mechanism, family, driver| {
        let (read_end, _write_end) = io::pipe().unwrap();
        let (socket, peer) = socket_pair(family);
        let peer = sending(peer, pattern(1000));
        let receive = ReceiveFile::new(&read_end).force_mechanisms(&[mechanism]);
        let error = receive_into(driver, family, socket, &receive).unwrap_err();
        peer.join().unwrap();
        let case = format!("{mechanism} {family:?} {driver:?}: {error}");
        assert_eq!(
            (error.kind(), error.moved()),
            (ErrorKind::Sink, 0),
            "{case}"
        );
        assert_eq!(error.raw_os_error(), Some(libc::EBADF), "{case}");
    });
}

/// Signals interrupt the calls that wait, and must not start the timeout again each time.
#[test]
#[allow(unsafe_code)]
fn the_timeout_expires_although_signals_arrive() {
    extern "C" fn ignore(_: libc::c_int) {}
    let handler: extern "C" fn(libc::c_int) = ignore;
    in_child(
        "receiving_failures::the_timeout_expires_although_signals_arrive",
        |_| {},
        || {
            // SAFETY: all zeroes is a valid action: no flags, and an empty set of signals.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = handler as libc::sighandler_t;
            // SAFETY: the handler does nothing, which is safe at any time.
            let result =
                unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) };
            assert_eq!(result, 0);
            for_each_way_to_files(|mechanism, family, driver| {
                if driver != Driver::Blocking {
                    return;
                }
                let file = tempfile::tempfile().unwrap();
                let (socket, mut peer) = socket_pair(family);
                let timeout = Some(Duration::from_millis(50));
                set_socket_timeout(&socket, Timeout::Recv, timeout).unwrap();
                peer.write_all(&pattern(1000)).unwrap();
                let has_ended = AtomicBool::new(false);
                // SAFETY: the call only returns the id of this thread.
                let receiving = unsafe { libc::pthread_self() };
                let error = thread::scope(|scope| {
                    scope.spawn(|| {
                        wait_until("the timeout expires", || {
                            // SAFETY: the scope ends before the thread that receives.
                            unsafe { libc::pthread_kill(receiving, libc::SIGUSR1) };
                            has_ended.load(Ordering::Relaxed)
                        });
                    });
                    let receive = ReceiveFile::new(&file).force_mechanisms(&[mechanism]);
                    let result = receive.from(&socket);
                    has_ended.store(true, Ordering::Relaxed);
                    result.unwrap_err()
                });
                assert_eq!(
                    (error.kind(), error.moved()),
                    (ErrorKind::TimedOut, 1000),
                    "{mechanism} {family:?}: {error}"
                );
            });
        },
    );
}

/// If the future is dropped whenever it waits, and the transfer is run again, no byte is lost.
#[cfg(feature = "tokio")]
#[test]
fn a_receive_can_be_dropped_and_resumed_wherever_it_waits() {
    use std::future::{Future, poll_fn};
    use std::pin::pin;
    use std::task::Poll;

    for mechanism in TO_FILES {
        let (reader, writer) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        let (socket, peer) = socket_pair(Family::Tcp);
        rustix::io::ioctl_fionbio(&socket, true).unwrap();
        let bytes = pattern(2 * MIB);
        let peer = sending(peer, bytes.clone());
        let reading = thread::spawn(move || {
            let (mut reader, mut read) = (reader, Vec::new());
            while reader.by_ref().take(50_000).read_to_end(&mut read).unwrap() > 0 {
                thread::yield_now();
            }
            read
        });
        let mut dropped = 0;
        crate::harness::runtime().block_on(async {
            let socket = tokio::net::TcpStream::from_std(socket.into()).unwrap();
            let receive = ReceiveFile::new(&writer).force_mechanisms(&[mechanism]);
            let mut transfer = receive.transfer(&socket).unwrap();
            loop {
                let result = {
                    let mut run = pin!(uncopied::tokio::run_receive(
                        &mut transfer,
                        &socket,
                        &writer
                    ));
                    let mut polls = 0;
                    poll_fn(|context| match run.as_mut().poll(context) {
                        Poll::Ready(result) => Poll::Ready(Some(result)),
                        Poll::Pending => {
                            polls += 1;
                            // Wait once, so that the future is not dropped before it can go on.
                            if polls > 1 {
                                Poll::Ready(None)
                            } else {
                                Poll::Pending
                            }
                        }
                    })
                    .await
                };
                match result {
                    Some(result) => break result.unwrap(),
                    None => dropped += 1,
                }
            }
            assert_eq!(transfer.report().by(mechanism), bytes.len() as u64);
        });
        drop(OwnedFd::from(writer));
        peer.join().unwrap();
        assert!(reading.join().unwrap() == bytes, "{mechanism}");
        assert!(dropped > 0, "{mechanism}: the future was never dropped");
    }
}

/// Many transfers that wait for their peers hold no descriptors and no memory of their own.
#[test]
fn transfers_that_wait_hold_no_pipes() {
    in_child(
        "receiving_failures::transfers_that_wait_hold_no_pipes",
        |_| {},
        || {
            let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
            let file = tempfile::tempfile().unwrap();
            let pairs: Vec<_> = (0..50).map(|_| socket_pair(Family::Unix)).collect();
            let before = count();
            let mut transfers = Vec::new();
            for (socket, peer) in &pairs {
                rustix::io::ioctl_fionbio(socket, true).unwrap();
                let receive = ReceiveFile::new(&file);
                let receive = receive.force_mechanisms(&[Mechanism::Splice]);
                let mut transfer = receive.transfer(socket).unwrap();
                (&mut &*peer).write_all(b"hello").unwrap();
                let moved = transfer.step(socket, &file).unwrap();
                assert_eq!(moved, uncopied::Progress::Moved(5));
                let blocked = transfer.step(socket, &file).unwrap();
                assert_eq!(blocked, uncopied::Progress::Blocked(uncopied::Side::Source));
                transfers.push(transfer);
            }
            assert!(count() <= before + 2, "{} more", count() - before);
        },
    );
}
