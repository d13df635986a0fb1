//! Sends in flight when the process forks.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::Arc;

use rustix::net::sockopt::set_socket_recv_buffer_size;
use uncopied::arena::{FileMapping, Located, PageBuffer, Region, locate};
use uncopied::{Completion, FreeReason, Mechanism, SendOptions, Sender, in_flight_bytes};

use crate::harness::{
    Family, HANG_TIMEOUT, expect_bytes, expect_eof, in_child, in_forked_child, pattern,
    pattern_file, pattern_pages, sender, wait_until,
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

/// A program that is started while sends are in flight must not inherit the socket, because it
/// would keep the connection open.
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

/// Sends that are in flight when a process forks are in flight only for the parent. In the child,
/// the counts of the process and of the sender must be 0, and must stay so when the child drops its
/// copies.
#[test]
fn a_child_has_nothing_in_flight() {
    in_child(
        "fork::a_child_has_nothing_in_flight",
        |_| {},
        || {
            let (sender, mut peer, completions) = sender_in_flight();
            let (before, of_sender) = (in_flight_bytes(), sender.in_flight_bytes());
            let mut sender = Some(sender);
            let childs_completions = completions.clone();
            in_forked_child(|| {
                let counts = [
                    in_flight_bytes(),
                    sender.as_ref().unwrap().in_flight_bytes(),
                ];
                assert_eq!(counts, [0, 0]);
                drop((sender.take(), childs_completions));
                assert_eq!(in_flight_bytes(), 0);
            });
            let sender = sender.unwrap();
            let after = (in_flight_bytes(), sender.in_flight_bytes());
            assert_eq!(after, (before, of_sender));
            assert_all_arrive_and_complete(&mut peer, &completions);
            drop(sender);
            wait_until("the end of all leases", || in_flight_bytes() == 0);
        },
    );
}

/// In a forked child, [`locate`] must find the pages and mappings that the child has inherited as
/// well as those that it creates itself.
#[test]
fn a_child_locates_what_it_has_inherited() {
    in_child(
        "fork::a_child_locates_what_it_has_inherited",
        |_| {},
        || {
            let pages = pattern_pages(SEND_BYTES);
            let mapping = FileMapping::new(Arc::new(pattern_file(SEND_BYTES)), 0..5000).unwrap();
            in_forked_child(|| {
                let own = pattern_pages(SEND_BYTES);
                let own_mapping = FileMapping::new(Arc::clone(mapping.file()), 0..5000).unwrap();
                for pages in [&pages, &own] {
                    assert!(matches!(locate(&pages[1..]), Some(Located::Pages(_))));
                }
                assert!(!mapping.is_of_this_process() && own_mapping.is_of_this_process());
                for bytes in [mapping.bytes(), own_mapping.bytes()] {
                    let found = locate(&bytes[1..]);
                    assert!(matches!(found, Some(Located::File { offset: 1, .. })));
                }
            });
        },
    );
}

/// A buffer length that is too large for the caches of threads, so that each buffer of this length
/// comes from the pool that all threads share, and whose locks this test needs.
const POOLED_BYTES: usize = 2 << 20;

fn take_and_drop_buffers() {
    loop {
        drop(PageBuffer::with_capacity(POOLED_BYTES).unwrap());
    }
}

fn take_and_drop_mappings_and_regions_and_send() {
    let file = Arc::new(pattern_file(5000));
    let plan = [Mechanism::Vmsplice];
    let (mut sender, mut peer) = sender(Family::Unix, &plan, SendOptions::default());
    std::thread::spawn(move || std::io::copy(&mut peer, &mut std::io::sink()));
    for round in 0_usize.. {
        let mapping = FileMapping::new(Arc::clone(&file), 0..5000).unwrap();
        assert!(locate(&mapping.bytes()).is_some());
        if round % 16 == 0 {
            let (region, _writer) = Region::new(1).unwrap();
            sender.send(region.part(..)).unwrap();
            sender.send(pattern_pages(SEND_BYTES)).unwrap();
        }
    }
}

fn use_the_arena_once() {
    assert_eq!(in_flight_bytes(), 0);
    let mut buffers = [1, SEND_BYTES, POOLED_BYTES].map(|len| PageBuffer::zeroed(len).unwrap());
    buffers.iter_mut().for_each(|buffer| buffer.fill(1));
    assert!(Region::new(1).is_ok());
    let mapping = FileMapping::new(Arc::new(pattern_file(5000)), 0..5000).unwrap();
    assert!(mapping.bytes()[..] == pattern(5000), "wrong bytes");
    for mechanism in [Mechanism::MsgZerocopy, Mechanism::Vmsplice] {
        let (mut sender, mut peer) = sender(Family::Tcp, &[mechanism], SendOptions::default());
        let sent = sender.send(pattern_pages(SEND_BYTES)).unwrap();
        expect_bytes(&mut peer, &pattern(SEND_BYTES));
        sent.into_completion().wait(Some(HANG_TIMEOUT)).unwrap();
    }
}

/// Threads of the parent hold the locks of the arena most of the time, so a lock is often held at
/// the time of a fork. The child must not wait for such a lock, because the thread that would
/// unlock it does not exist in the child.
#[test]
fn a_child_can_use_the_arena_whatever_its_parent_does() {
    in_child(
        "fork::a_child_can_use_the_arena_whatever_its_parent_does",
        |_| {},
        || {
            const FORKS: u32 = 200;
            // Generate the pattern before the first fork. Otherwise, the process could fork while
            // another thread generates it, and the child would wait for that thread forever.
            drop(pattern(SEND_BYTES));
            std::thread::spawn(take_and_drop_buffers);
            std::thread::spawn(take_and_drop_mappings_and_regions_and_send);
            for _ in 0..FORKS {
                in_forked_child(use_the_arena_once);
            }
        },
    );
}
