//! Peers that have gone: an error, never SIGPIPE.
#![allow(unsafe_code)]

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::ptr;

use uncopied::{ErrorKind, Mechanism, SendFile};

use crate::harness::{
    DRIVERS, FAMILIES, Family, file_of, in_child, pair, receive, send, set_nonblocking,
};

/// More than a socket takes by itself.
const MUCH: usize = 16 << 20;

/// Sends into a socket whose peer has gone, until the socket knows.
fn send_to_nobody(mechanism: Mechanism, family: Family, nonblocking: bool, file: &File) {
    let what = format!("{mechanism} to {family:?}, non-blocking: {nonblocking}");
    let (socket, peer) = pair(family);
    if nonblocking {
        set_nonblocking(&socket);
    }
    drop(peer);
    let forced = [mechanism];
    let send = SendFile::new(file).force_mechanisms(&forced);
    // TCP hears of it by a reset, which is one error; from then on it is EPIPE, which is where SIGPIPE
    // comes with it.
    for _ in 0..3 {
        let error = send.to(&socket).expect_err(&what);
        assert_eq!(error.kind(), ErrorKind::PeerClosed, "{what}: {error}");
        assert!(error.moved() < MUCH as u64, "{what}");
    }
    let error = send.to(&socket).expect_err(&what);
    assert_eq!(error.moved(), 0, "{what}");
    assert_eq!(
        std::io::Error::from(error).kind(),
        std::io::ErrorKind::BrokenPipe
    );
}

fn send_to_nobody_by_all() {
    let file = file_of(MUCH);
    for mechanism in Mechanism::FILE_TO_SOCKET {
        for family in FAMILIES {
            for nonblocking in [false, true] {
                send_to_nobody(mechanism, family, nonblocking, &file);
            }
        }
    }
}

#[test]
fn a_peer_that_has_gone_is_an_error() {
    send_to_nobody_by_all();
}

/// The peer goes while it is being sent to: what it has read is right, and the count is at least that.
#[test]
fn a_peer_that_goes_meanwhile_is_an_error() {
    use std::io::Read;

    let file = file_of(MUCH);
    for mechanism in Mechanism::FILE_TO_SOCKET {
        for family in FAMILIES {
            for &driver in DRIVERS {
                let (socket, peer) = pair(family);
                let file = &file;
                std::thread::scope(|scope| {
                    let receiver = scope.spawn(move || receive(&mut peer.take(100_000), file, 0));
                    let forced = [mechanism];
                    let what = SendFile::new(file).force_mechanisms(&forced);
                    let error = send(driver, family, socket, &what).expect_err("nobody reads it");
                    assert_eq!(error.kind(), ErrorKind::PeerClosed, "{error}");
                    assert_eq!(receiver.join().unwrap(), 100_000);
                    assert!(error.moved() >= 100_000 && error.moved() < MUCH as u64);
                });
            }
        }
    }
}

/// Undoes what Rust's start-up does: writing into a closed socket now ends the process.
fn restore_default_sigpipe() {
    // SAFETY: the default disposition is a valid one, and this process runs this test only.
    let before = unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    assert_eq!(before, libc::SIG_IGN, "Rust starts with it ignored");
}

fn sigpipe_in(of: impl FnOnce(*mut libc::sigset_t) -> libc::c_int) -> bool {
    let mut set = MaybeUninit::zeroed();
    assert_eq!(of(set.as_mut_ptr()), 0);
    // SAFETY: all zeroes is an empty set, and the call has filled it in.
    unsafe { libc::sigismember(set.as_ptr(), libc::SIGPIPE) == 1 }
}

fn sigpipe_is_pending() -> bool {
    // SAFETY: the pointer is that of a local set.
    sigpipe_in(|set| unsafe { libc::sigpending(set) })
}

fn sigpipe_is_blocked() -> bool {
    // SAFETY: the pointer is that of a local set; a null set changes nothing.
    sigpipe_in(|set| unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), set) })
}

fn block_sigpipe() {
    let mut set = MaybeUninit::zeroed();
    // SAFETY: the call writes to a local set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: the set was initialised by the line above.
    unsafe { libc::sigaddset(set.as_mut_ptr(), libc::SIGPIPE) };
    // SAFETY: as above; the mask is this thread's own.
    let answer = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut()) };
    assert_eq!(answer, 0);
}

fn raise_sigpipe() {
    // SAFETY: raising a signal that is blocked for this thread does nothing but leave it pending.
    assert_eq!(unsafe { libc::raise(libc::SIGPIPE) }, 0);
}

/// Under a main function of another language SIGPIPE ends the process. It must neither come nor be
/// left pending, and the thread's mask is as it was. The guard: `without_sigpipe`, `MSG_NOSIGNAL`.
#[test]
fn sigpipe_never_comes() {
    in_child(
        "closed::sigpipe_never_comes",
        |_| {},
        || {
            restore_default_sigpipe();
            send_to_nobody_by_all();
            assert!(!sigpipe_is_pending());
            assert!(!sigpipe_is_blocked());
        },
    );
}

/// Where the caller has blocked the signal, none is left behind for it, and the block stays.
#[test]
fn sigpipe_is_not_left_pending() {
    in_child(
        "closed::sigpipe_is_not_left_pending",
        |_| {},
        || {
            restore_default_sigpipe();
            block_sigpipe();
            send_to_nobody_by_all();
            assert!(!sigpipe_is_pending());
            assert!(sigpipe_is_blocked());
        },
    );
}

/// One that was pending already belongs to somebody else.
#[test]
fn the_sigpipe_of_somebody_else_stays() {
    in_child(
        "closed::the_sigpipe_of_somebody_else_stays",
        |_| {},
        || {
            restore_default_sigpipe();
            block_sigpipe();
            raise_sigpipe();
            send_to_nobody_by_all();
            assert!(sigpipe_is_pending());
            assert!(sigpipe_is_blocked());
        },
    );
}

/// A socket that was never connected has no peer either.
#[test]
fn an_unconnected_socket_is_an_error() {
    use rustix::net::{AddressFamily, SocketType, socket};

    let file = file_of(1000);
    for mechanism in Mechanism::FILE_TO_SOCKET {
        for family in [AddressFamily::INET, AddressFamily::UNIX] {
            let socket: OwnedFd = socket(family, SocketType::STREAM, None).unwrap();
            let error = SendFile::new(&file)
                .force_mechanisms(&[mechanism])
                .to(&socket);
            let error = error.expect_err("nobody is there");
            assert_eq!(error.kind(), ErrorKind::PeerClosed, "{mechanism}: {error}");
            assert_eq!(error.moved(), 0);
        }
    }
}
