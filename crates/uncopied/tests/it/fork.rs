//! Child processes that are made while memory is lent.

#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::Command;

use rustix::net::sockopt::set_socket_recv_buffer_size;
use uncopied::arena::PageBuffer;
use uncopied::{Completion, FreeReason, Mechanism, SendOptions, Sender, in_flight_bytes};

use crate::harness::{
    Family, HANG, content, expect_bytes, expect_end, in_child, pages_of, sender, until,
};

const SIZE: usize = 100_001;

/// A sender that has lent pages to a peer that has not read.
fn with_leases() -> (Sender<OwnedFd>, File, Vec<Completion>) {
    let plan = [Mechanism::MsgZerocopy];
    let (mut sender, peer) = sender(Family::Tcp, &plan, SendOptions::default());
    // Whatever the usual size is, it takes less than what is sent.
    set_socket_recv_buffer_size(&peer, 32 << 10).unwrap();
    let completions = (0..3)
        .map(|_| sender.send(pages_of(SIZE)).unwrap().into_completion())
        .collect();
    assert!(sender.in_flight_bytes() > 0);
    (sender, peer, completions)
}

fn assert_arrives_and_settles(peer: &mut File, completions: &[Completion]) {
    for _ in completions {
        expect_bytes(peer, &content(SIZE));
    }
    for completion in completions {
        let settled = completion.wait(Some(HANG)).unwrap();
        assert_eq!(
            (settled.bytes, settled.reason),
            (SIZE as u64, FreeReason::Notification)
        );
    }
}

/// A program that is started meanwhile inherits neither the socket nor the memory.
#[test]
fn a_program_is_started_while_memory_is_lent() {
    let (sender, mut peer, completions) = with_leases();
    let mut program = Command::new("sleep").arg("60").spawn().unwrap();
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", program.id())).unwrap();
    let sockets = descriptors.flatten().filter(|descriptor| {
        let target = std::fs::read_link(descriptor.path()).unwrap_or_default();
        target.to_string_lossy().starts_with("socket:")
    });
    assert_eq!(sockets.count(), 0);
    assert_arrives_and_settles(&mut peer, &completions);
    drop(sender);
    // The stream ends though the program still runs.
    expect_end(&mut peer);
    program.kill().unwrap();
    program.wait().unwrap();
}

/// Runs `body` in a copy of this process, which then ends, and waits for it.
fn in_copy(body: impl FnOnce()) {
    // SAFETY: the copy has this thread alone; it runs `body`, which is the library's and the
    // allocator's code, and ends by `_exit`. This process has no other thread that could have held a
    // lock at that moment: each caller runs in a child of its own, whose harness thread only waits.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        // SAFETY: it ends the copy, without running anything that is the original's.
        unsafe { libc::_exit(i32::from(result.is_err())) };
    }
    let mut status = 0;
    // SAFETY: the status is written to an integer, and the child is ours.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!((waited, status), (child, 0), "the copy has failed");
}

/// A copy of this process drops all that it has of the sender: the original's socket stays open, its
/// bytes stay right, and its notices stay its own.
#[test]
fn a_child_that_drops_everything_takes_nothing_from_its_parent() {
    in_child(
        "memory_fork::a_child_that_drops_everything_takes_nothing_from_its_parent",
        |_| {},
        || {
            let (sender, mut peer, completions) = with_leases();
            // A clone for each process: the original keeps its own.
            let (mut of_original, of_copy) = (Some(sender), completions.clone());
            in_copy(|| {
                assert!(of_copy[0].outcome().is_none());
                of_copy[1]
                    .wait(Some(std::time::Duration::from_millis(10)))
                    .ok();
                drop(of_copy);
                drop(of_original.take());
            });
            let mut sender = of_original.unwrap();
            assert!(in_flight_bytes() > 0);
            assert_arrives_and_settles(&mut peer, &completions);
            assert_eq!(sender.send(pages_of(SIZE)).unwrap().bytes(), SIZE as u64);
            expect_bytes(&mut peer, &content(SIZE));
            drop(sender);
            expect_end(&mut peer);
            until("all leases back", || in_flight_bytes() == 0);
        },
    );
}

/// NotificationSource that have come when a copy is made are the original's: a copy that looks takes none.
#[test]
fn a_child_that_looks_takes_no_notice() {
    in_child(
        "memory_fork::a_child_that_looks_takes_no_notice",
        |_| {},
        || {
            let (sender, mut peer, completions) = with_leases();
            for _ in &completions {
                expect_bytes(&mut peer, &content(SIZE));
            }
            // The notices are there within a moment, and nobody has looked.
            std::thread::sleep(std::time::Duration::from_millis(100));
            in_copy(|| {
                sender.reap();
            });
            for completion in &completions {
                completion.wait(Some(HANG / 4)).unwrap();
            }
        },
    );
}

/// A copy that writes to buffers of its own while the original's are lent changes nothing of them, and
/// the original nothing of the copy's.
#[test]
fn both_write_to_what_comes_back_to_them() {
    in_child(
        "memory_fork::both_write_to_what_comes_back_to_them",
        |_| {},
        || {
            let (sender, mut peer, completions) = with_leases();
            let mut buffer = PageBuffer::zeroed(SIZE).unwrap();
            in_copy(|| {
                // The copy's handles are all that it has: whatever it fills is its own.
                buffer.fill(7);
                for _ in 0..100 {
                    let mut other = PageBuffer::zeroed(SIZE).unwrap();
                    other.fill(8);
                }
                assert!(buffer.iter().all(|&byte| byte == 7));
            });
            assert!(buffer.iter().all(|&byte| byte == 0));
            buffer.fill(9);
            assert_arrives_and_settles(&mut peer, &completions);
            assert_eq!(sender.in_flight_bytes(), 0);
        },
    );
}
