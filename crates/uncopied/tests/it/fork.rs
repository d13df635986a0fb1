//! Sends in flight when the process forks.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::Command;

use rustix::net::sockopt::set_socket_recv_buffer_size;
use uncopied::arena::PageBuffer;
use uncopied::{Completion, FreeReason, Mechanism, SendOptions, Sender, in_flight_bytes};

use crate::harness::{
    Family, HANG_TIMEOUT, expect_bytes, expect_eof, in_child, in_forked_child, pattern,
    pattern_pages, sender, wait_until,
};

const SEND_BYTES: usize = 100_001;

/// A sender with sends in flight, its peer, which has read nothing, and the completions.
fn sender_in_flight() -> (Sender<OwnedFd>, File, Vec<Completion>) {
    let plan = [Mechanism::MsgZerocopy];
    let (mut sender, peer) = sender(Family::Tcp, &plan, SendOptions::default());
    // The default size may be large enough for all the sends.
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

/// A program that is started while sends are in flight inherits neither the socket nor the memory.
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
    // The stream ends although the program is still running.
    expect_eof(&mut peer);
    program.kill().unwrap();
    program.wait().unwrap();
}

/// The child drops its copy of the sender and of the completions. The parent's socket stays open,
/// its bytes stay correct, and it gets its notifications.
#[test]
fn a_child_that_drops_everything_does_not_affect_its_parent() {
    in_child(
        "fork::a_child_that_drops_everything_does_not_affect_its_parent",
        |_| {},
        || {
            let (sender, mut peer, completions) = sender_in_flight();
            // The closure consumes its completions, so they are clones. Only the child drops the
            // sender.
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

/// Notifications that have arrived before the fork belong to the parent: a child that calls `reap`
/// takes none of them.
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
            // Time for the notifications to arrive. They are not processed before the fork.
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

/// A child that writes to its buffers while the parent's are in flight does not change the parent's
/// bytes, and the parent does not change those of the child.
#[test]
fn parent_and_child_do_not_overwrite_each_others_buffers() {
    in_child(
        "fork::parent_and_child_do_not_overwrite_each_others_buffers",
        |_| {},
        || {
            let (sender, mut peer, completions) = sender_in_flight();
            let mut buffer = PageBuffer::zeroed(SEND_BYTES).unwrap();
            in_forked_child(|| {
                // Whatever the child fills is its own copy.
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
