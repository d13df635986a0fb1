//! Peers that close the connection: sending to them fails with an error, and never raises SIGPIPE.

#![allow(unsafe_code)]

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::ptr;

use uncopied::{ErrorKind, Mechanism, SendFile};

use crate::harness::{
    DRIVERS, FAMILIES, Family, in_child, pattern_file, receive, send, set_nonblocking, socket_pair,
};

/// The size of the test file: more than the buffers of any socket pair hold, so that a send can
/// complete only if the peer reads.
const FILE_BYTES: usize = 16 << 20;

/// Sends several times to a peer that has closed its socket, because the errno changes after the
/// first error.
fn send_to_closed_peer(mechanism: Mechanism, family: Family, nonblocking: bool, file: &File) {
    let case = format!("{mechanism} to {family:?}, non-blocking: {nonblocking}");
    let (socket, peer) = socket_pair(family);
    if nonblocking {
        set_nonblocking(&socket);
    }
    drop(peer);
    let forced = [mechanism];
    let send = SendFile::new(file).force_mechanisms(&forced);
    // TCP reports the reset only once (`ECONNRESET`). Every later send fails with `EPIPE`, and the
    // kernel raises SIGPIPE together with `EPIPE`.
    for _ in 0..3 {
        let error = send.to(&socket).expect_err(&case);
        assert_eq!(error.kind(), ErrorKind::PeerClosed, "{case}: {error}");
        assert!(error.moved() < FILE_BYTES as u64, "{case}");
    }
    let error = send.to(&socket).expect_err(&case);
    assert_eq!(error.moved(), 0, "{case}");
    assert_eq!(
        std::io::Error::from(error).kind(),
        std::io::ErrorKind::BrokenPipe
    );
}

/// Sends to closed peers with every mechanism, over every kind of socket.
fn send_to_closed_peers_with_every_mechanism() {
    let file = pattern_file(FILE_BYTES);
    for mechanism in Mechanism::FILE_TO_SOCKET {
        for family in FAMILIES {
            for nonblocking in [false, true] {
                send_to_closed_peer(mechanism, family, nonblocking, &file);
            }
        }
    }
}

#[test]
fn sending_to_a_closed_peer_is_an_error() {
    send_to_closed_peers_with_every_mechanism();
}

/// The peer reads a part of the file and then closes its socket. The bytes that the peer has read
/// must be correct, and the error must count at least those bytes as sent.
#[test]
fn a_peer_that_closes_during_a_transfer_is_an_error() {
    use std::io::Read;

    let file = pattern_file(FILE_BYTES);
    for mechanism in Mechanism::FILE_TO_SOCKET {
        for family in FAMILIES {
            for &driver in DRIVERS {
                let (socket, peer) = socket_pair(family);
                let file = &file;
                std::thread::scope(|scope| {
                    let receiver = scope.spawn(move || receive(&mut peer.take(100_000), file, 0));
                    let forced = [mechanism];
                    let send_file = SendFile::new(file).force_mechanisms(&forced);
                    let error = send(driver, family, socket, &send_file).expect_err("closed");
                    assert_eq!(error.kind(), ErrorKind::PeerClosed, "{error}");
                    assert_eq!(receiver.join().unwrap(), 100_000);
                    assert!(error.moved() >= 100_000 && error.moved() < FILE_BYTES as u64);
                });
            }
        }
    }
}

/// Restores the default disposition of SIGPIPE, so that the signal ends the process. Rust ignores
/// the signal at start-up.
fn restore_default_sigpipe() {
    // SAFETY: the default disposition is valid, and this process runs only this test.
    let before = unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    assert_eq!(before, libc::SIG_IGN, "Rust ignores SIGPIPE at start-up");
}

fn ignore_sigpipe() {
    // SAFETY: ignoring a signal is a valid disposition, and this process runs only this test.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Whether SIGPIPE is in the signal set that `get_set` writes to its argument.
fn has_sigpipe(get_set: impl FnOnce(*mut libc::sigset_t) -> libc::c_int) -> bool {
    let mut set = MaybeUninit::zeroed();
    assert_eq!(get_set(set.as_mut_ptr()), 0);
    // SAFETY: all zeros is a valid, empty set, and the call has filled it in.
    unsafe { libc::sigismember(set.as_ptr(), libc::SIGPIPE) == 1 }
}

fn sigpipe_is_pending() -> bool {
    // SAFETY: the pointer is valid: it points to a local set.
    has_sigpipe(|set| unsafe { libc::sigpending(set) })
}

fn sigpipe_is_blocked() -> bool {
    // SAFETY: the pointer is valid: it points to a local set. A null set changes nothing.
    has_sigpipe(|set| unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), set) })
}

fn block_sigpipe() {
    let mut set = MaybeUninit::zeroed();
    // SAFETY: the call writes to a local set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: the call above initialized the set.
    unsafe { libc::sigaddset(set.as_mut_ptr(), libc::SIGPIPE) };
    // SAFETY: the set is initialized, and only the mask of this thread changes.
    let result = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut()) };
    assert_eq!(result, 0);
}

fn raise_sigpipe() {
    // SAFETY: the signal is blocked for this thread, so that raising it only makes it pending.
    assert_eq!(unsafe { libc::raise(libc::SIGPIPE) }, 0);
}

/// In a program whose main function is not written in Rust, SIGPIPE is not ignored, so raising it
/// ends the process. Sends must neither raise SIGPIPE nor leave it pending, and they must not
/// change the thread's signal mask.
///
/// Fails if either `without_sigpipe` or `MSG_NOSIGNAL` is removed.
#[test]
fn sigpipe_is_never_raised() {
    in_child(
        "closed_peers::sigpipe_is_never_raised",
        |_| {},
        || {
            restore_default_sigpipe();
            send_to_closed_peers_with_every_mechanism();
            assert!(!sigpipe_is_pending());
            assert!(!sigpipe_is_blocked());
        },
    );
}

/// A program may stop ignoring SIGPIPE at any time, even right after a send. Fails if
/// `without_sigpipe` remembers from an earlier send that the signal is ignored, instead of looking
/// that up for each send.
#[test]
fn sigpipe_is_not_raised_right_after_the_program_stops_ignoring_it() {
    in_child(
        "closed_peers::sigpipe_is_not_raised_right_after_the_program_stops_ignoring_it",
        |_| {},
        || {
            let file = pattern_file(1000);
            for mechanism in [Mechanism::Sendfile, Mechanism::Splice] {
                let forced = [mechanism];
                let send = SendFile::new(&file).force_mechanisms(&forced);
                let (socket, peer) = socket_pair(Family::Unix);
                send.to(&socket).unwrap();
                drop(peer);
                restore_default_sigpipe();
                let error = send.to(&socket).expect_err("the peer has closed");
                assert_eq!(error.kind(), ErrorKind::PeerClosed, "{mechanism}: {error}");
                ignore_sigpipe();
            }
        },
    );
}

/// `ignore_sigpipe` must ignore the signal itself, because the library then no longer looks up
/// whether it is ignored.
#[test]
fn a_program_can_promise_to_ignore_sigpipe() {
    in_child(
        "closed_peers::a_program_can_promise_to_ignore_sigpipe",
        |_| {},
        || {
            restore_default_sigpipe();
            uncopied::ignore_sigpipe().unwrap();
            send_to_closed_peers_with_every_mechanism();
        },
    );
}

/// If the caller has blocked SIGPIPE, sends must not leave the signal pending, and must not unblock
/// it.
#[test]
fn sigpipe_is_not_left_pending() {
    in_child(
        "closed_peers::sigpipe_is_not_left_pending",
        |_| {},
        || {
            restore_default_sigpipe();
            block_sigpipe();
            send_to_closed_peers_with_every_mechanism();
            assert!(!sigpipe_is_pending());
            assert!(sigpipe_is_blocked());
        },
    );
}

/// The library must clear only a SIGPIPE that it has caused itself, not one that was pending before
/// the transfer.
#[test]
fn a_sigpipe_that_was_pending_before_stays_pending() {
    in_child(
        "closed_peers::a_sigpipe_that_was_pending_before_stays_pending",
        |_| {},
        || {
            restore_default_sigpipe();
            block_sigpipe();
            raise_sigpipe();
            send_to_closed_peers_with_every_mechanism();
            assert!(sigpipe_is_pending());
            assert!(sigpipe_is_blocked());
        },
    );
}

#[test]
fn an_unconnected_socket_is_an_error() {
    use rustix::net::{AddressFamily, SocketType, socket};

    let file = pattern_file(1000);
    for mechanism in Mechanism::FILE_TO_SOCKET {
        for family in [AddressFamily::INET, AddressFamily::UNIX] {
            let socket: OwnedFd = socket(family, SocketType::STREAM, None).unwrap();
            let error = SendFile::new(&file)
                .force_mechanisms(&[mechanism])
                .to(&socket);
            let error = error.expect_err("not connected");
            assert_eq!(
                error.kind(),
                ErrorKind::NotConnected,
                "{mechanism}: {error}"
            );
            assert_eq!(error.moved(), 0);
        }
    }
}
