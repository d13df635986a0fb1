//! Sends in flight when the process forks.

#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::Command;

use rustix::net::sockopt::set_socket_recv_buffer_size;
use uncopied::arena::PageBuffer;
use uncopied::{Completion, FreeReason, Mechanism, SendOptions, Sender, in_flight_bytes};

use crate::harness::{
    Family, HANG_TIMEOUT, expect_bytes, expect_eof, in_child, pattern, pattern_pages, sender,
    wait_until,
};

const SEND_BYTES: usize = 100_001;

/// Returns a sender with sends in flight, its peer, which has read nothing yet, and the completions
/// of the sends.
fn sender_in_flight() -> (Sender<OwnedFd>, File, Vec<Completion>) {
    let plan = [Mechanism::MsgZerocopy];
    let (mut sender, peer) = sender(Family::Tcp, &plan, SendOptions::default());
    // Shrink the peer's receive buffer. With the default size, it may hold all the sends, and none
    // of them would stay in flight.
    set_socket_recv_buffer_size(&peer, 32 << 10).unwrap();
    let completions = (0..3)
        .map(|_| {
            sender
                .send(pattern_pages(SEND_BYTES))
                .unwrap()
                .into_completion()
        })
        .collect();
    assert!(sender.in_flight_bytes() > 0);
    (sender, peer, completions)
}

fn assert_all_arrive_and_complete(peer: &mut File, completions: &[Completion]) {
    for _ in completions {
        expect_bytes(peer, &pattern(SEND_BYTES));
    }
    for completion in completions {
        let outcome = completion.wait(Some(HANG_TIMEOUT)).unwrap();
        assert_eq!(
            (outcome.bytes, outcome.reason),
            (SEND_BYTES as u64, FreeReason::Notification)
        );
    }
}

/// A program that is started while sends are in flight must inherit neither the socket nor the
/// memory.
#[test]
fn a_program_started_with_sends_in_flight_inherits_nothing() {
    let (sender, mut peer, completions) = sender_in_flight();
    let mut program = Command::new("sleep").arg("60").spawn().unwrap();
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", program.id())).unwrap();
    let sockets = descriptors.flatten().filter(|descriptor| {
        let target = std::fs::read_link(descriptor.path()).unwrap_or_default();
        target.to_string_lossy().starts_with("socket:")
    });
    assert_eq!(sockets.count(), 0);
    assert_all_arrive_and_complete(&mut peer, &completions);
    drop(sender);
    // The program is still running. If it had inherited the socket, the stream would not end.
    expect_eof(&mut peer);
    program.kill().unwrap();
    program.wait().unwrap();
}

/// Forks, and runs `body` in the child. Waits until the child exits, and asserts that `body` has
/// not panicked.
fn in_forked_child(body: impl FnOnce()) {
    // SAFETY: the child has only this thread. It runs `body`, which calls only the library and the
    // allocator, and ends with `_exit`. No other thread of this process can hold a lock at the time
    // of the fork: each caller runs in a child process started by `in_child`, where the main thread
    // of the test harness only waits.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        // SAFETY: the call ends the child at once, without running the parent's exit handlers.
        unsafe { libc::_exit(i32::from(result.is_err())) };
    }
    let mut status = 0;
    // SAFETY: the call writes the status to a local integer, and `child` is a child of this
    // process.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!((waited, status), (child, 0), "the child has failed");
}

/// A forked child drops its copies of the sender and of the completions. The parent's socket must
/// stay open, the bytes in flight must stay correct, and the parent must get its notifications.
#[test]
fn a_child_that_drops_everything_does_not_affect_its_parent() {
    in_child(
        "fork::a_child_that_drops_everything_does_not_affect_its_parent",
        |_| {},
        || {
            let (sender, mut peer, completions) = sender_in_flight();
            // Clone the completions, because the closure consumes them and the parent still needs
            // its own. Put the sender in an `Option`, so that the child can drop its copy while the
            // parent keeps the sender.
            let (mut sender, childs_completions) = (Some(sender), completions.clone());
            in_forked_child(|| {
                assert!(childs_completions[0].outcome().is_none());
                childs_completions[1]
                    .wait(Some(std::time::Duration::from_millis(10)))
                    .ok();
                drop(childs_completions);
                drop(sender.take());
            });
            let mut sender = sender.unwrap();
            assert!(in_flight_bytes() > 0);
            assert_all_arrive_and_complete(&mut peer, &completions);
            assert_eq!(
                sender.send(pattern_pages(SEND_BYTES)).unwrap().bytes(),
                SEND_BYTES as u64
            );
            expect_bytes(&mut peer, &pattern(SEND_BYTES));
            drop(sender);
            expect_eof(&mut peer);
            wait_until("the end of all leases", || in_flight_bytes() == 0);
        },
    );
}

/// Parent and child share the socket's error queue. A call of `reap` in the child must not take
/// notifications from that queue, because the parent needs them.
#[test]
fn a_child_that_reaps_takes_no_notification() {
    in_child(
        "fork::a_child_that_reaps_takes_no_notification",
        |_| {},
        || {
            let (sender, mut peer, completions) = sender_in_flight();
            for _ in &completions {
                expect_bytes(&mut peer, &pattern(SEND_BYTES));
            }
            // Give the notifications time to arrive, so that they are in the error queue when the
            // child calls `reap`. The parent does not read them before the fork.
            std::thread::sleep(std::time::Duration::from_millis(100));
            in_forked_child(|| {
                sender.reap();
            });
            for completion in &completions {
                completion.wait(Some(HANG_TIMEOUT / 4)).unwrap();
            }
        },
    );
}

/// A forked child writes to its buffers while the parent's sends are in flight. That must change
/// neither the bytes that the parent sends nor the content of the parent's buffers.
#[test]
fn parent_and_child_do_not_overwrite_each_others_buffers() {
    in_child(
        "fork::parent_and_child_do_not_overwrite_each_others_buffers",
        |_| {},
        || {
            let (sender, mut peer, completions) = sender_in_flight();
            let mut buffer = PageBuffer::zeroed(SEND_BYTES).unwrap();
            in_forked_child(|| {
                // These writes must change only the child's own copies of the pages.
                buffer.fill(7);
                for _ in 0..100 {
                    let mut other = PageBuffer::zeroed(SEND_BYTES).unwrap();
                    other.fill(8);
                }
                assert!(buffer.iter().all(|&byte| byte == 7));
            });
            assert!(buffer.iter().all(|&byte| byte == 0));
            buffer.fill(9);
            assert_all_arrive_and_complete(&mut peer, &completions);
            assert_eq!(sender.in_flight_bytes(), 0);
        },
    );
}
