//! Sends in flight when the sender or the completion is dropped, the peer closes, or the thread
//! panics.

use std::fs::File;
use std::io::Write;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use rustix::net::sockopt::{set_socket_linger, set_socket_recv_buffer_size};
use uncopied::arena::Pages;
use uncopied::{
    Completion, ErrorKind, FreeReason, Mechanism, SendOptions, Sender, Sent, in_flight_bytes,
};

use crate::harness::{
    FAMILIES, Family, HANG_TIMEOUT, expect_bytes, expect_eof, in_child, memory_mechanisms, pattern,
    pattern_pages, sender, small_buffer_sender, wait_until,
};

const SEND_BYTES: usize = 100_001;

/// The number of sends: more than fit into the buffer of a peer that does not read, so that some of
/// them stay in flight.
const SEND_COUNT: usize = 3;

/// Returns a sender with sends in flight, its peer, which has read nothing yet, the pages that are
/// sent, and the completions of the sends.
fn sender_in_flight() -> (Sender<OwnedFd>, File, Pages, Vec<Completion>) {
    let mut in_flight = None;
    // Retry until all sends are zero-copy, because sends are copied while the user's other
    // processes lock too much memory.
    wait_until("a sender with sends in flight", || {
        in_flight = try_sender_in_flight();
        in_flight.is_some()
    });
    in_flight.unwrap()
}

/// Like [`sender_in_flight`], but tries only once. Returns `None` if a send was copied.
fn try_sender_in_flight() -> Option<(Sender<OwnedFd>, File, Pages, Vec<Completion>)> {
    let plan = [Mechanism::MsgZerocopy];
    let (mut sender, peer) = sender(Family::Tcp, &plan, SendOptions::default());
    // Shrink the peer's receive buffer. With the default size, it may hold all the sends, and none
    // of them would stay in flight.
    set_socket_recv_buffer_size(&peer, 32 << 10).unwrap();
    let pages = pattern_pages(SEND_BYTES);
    let sends: Vec<_> = (0..SEND_COUNT)
        .map(|_| sender.send(pages.clone()).unwrap())
        .collect();
    let is_zero_copy = |sent: &Sent| sent.report().by(Mechanism::MsgZerocopy) == SEND_BYTES as u64;
    let all_zero_copy = sends.iter().all(is_zero_copy);
    let completions = sends.into_iter().map(Sent::into_completion).collect();
    all_zero_copy.then_some((sender, peer, pages, completions))
}

fn expect_all_sends(peer: &mut File) {
    for _ in 0..SEND_COUNT {
        expect_bytes(peer, &pattern(SEND_BYTES));
    }
}

fn assert_all_complete(completions: &[Completion]) {
    for completion in completions {
        let outcome = completion.wait(Some(HANG_TIMEOUT)).unwrap();
        assert_eq!(
            (outcome.bytes, outcome.reason),
            (SEND_BYTES as u64, FreeReason::Notification)
        );
    }
}

/// Closes the peer's socket so that the connection is reset.
fn reset(peer: File) {
    set_socket_linger(&peer, Some(Duration::ZERO)).unwrap();
}

/// Whether the reaper is running: the library's thread that waits for the notifications of dropped
/// senders.
fn reaper_runs() -> bool {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks.flatten().any(|task| {
        let name = std::fs::read_to_string(task.path().join("comm"));
        name.is_ok_and(|name| name.starts_with("uncopied-reaper"))
    })
}

fn assert_nothing_in_flight_and_reaper_ends(pages: Pages) {
    wait_until("the end of all leases", || in_flight_bytes() == 0);
    assert_no_other_handle(pages);
    wait_until("the end of the reaper", || !reaper_runs());
}

/// Asserts that there is no other handle to the pages, so that they can become a buffer again.
fn assert_no_other_handle(pages: Pages) {
    pages.try_into_buffer().expect("no other handle is left");
}

#[test]
fn a_reset_ends_every_send_in_flight() {
    let (mut sender, peer, pages, completions) = sender_in_flight();
    reset(peer);
    assert_all_complete(&completions);
    assert_eq!(sender.in_flight_bytes(), 0);
    assert_no_other_handle(pages);
    let error = sender.send(pattern_pages(SEND_BYTES)).unwrap_err();
    assert_eq!((error.kind(), error.moved()), (ErrorKind::PeerClosed, 0));
    assert_eq!(sender.in_flight_bytes(), 0);
}

/// Like [`a_reset_ends_every_send_in_flight`], but the sender is dropped before the reset. The
/// reaper must complete the sends, and it must still be possible to wait for the completions.
#[test]
fn a_reset_after_the_sender_is_dropped_ends_every_send_in_flight() {
    in_child(
        "sender_dropped::a_reset_after_the_sender_is_dropped_ends_every_send_in_flight",
        |_| {},
        || {
            let (sender, peer, pages, completions) = sender_in_flight();
            drop(sender);
            wait_until("the reaper", reaper_runs);
            assert!(in_flight_bytes() > 0);
            reset(peer);
            assert_all_complete(&completions);
            assert_nothing_in_flight_and_reaper_ends(pages);
        },
    );
}

#[test]
fn sends_in_flight_arrive_and_are_freed_after_the_sender_is_dropped() {
    in_child(
        "sender_dropped::sends_in_flight_arrive_and_are_freed_after_the_sender_is_dropped",
        |_| {},
        || {
            // Run two rounds, because the reaper ends when it has nothing left to wait for, and
            // must start again for the next dropped sender.
            for _ in 0..2 {
                let (sender, mut peer, pages, completions) = sender_in_flight();
                drop(completions);
                drop(sender);
                wait_until("the reaper", reaper_runs);
                let pages = pages.try_into_buffer().expect_err("in flight");
                // As long as the peer does not read, the sends must stay in flight.
                std::thread::sleep(Duration::from_millis(100));
                assert!(in_flight_bytes() > 0);
                expect_all_sends(&mut peer);
                expect_eof(&mut peer);
                assert_nothing_in_flight_and_reaper_ends(pages);
            }
        },
    );
}

/// Several senders are dropped while they have sends in flight. Each peer then either reads or
/// resets the connection, in a different order from that in which the senders were dropped. All
/// sends must complete.
#[test]
fn the_reaper_serves_many_dropped_senders() {
    in_child(
        "sender_dropped::the_reaper_serves_many_dropped_senders",
        |_| {},
        || {
            let mut peers = Vec::new();
            for _ in 0..8 {
                let (sender, peer, _, completions) = sender_in_flight();
                peers.push((peer, completions));
                drop(sender);
            }
            while !peers.is_empty() {
                let (mut peer, completions) = peers.swap_remove(peers.len() / 2);
                match peers.len() % 3 {
                    0 => reset(peer),
                    _ => {
                        expect_all_sends(&mut peer);
                        expect_eof(&mut peer);
                    }
                }
                assert_all_complete(&completions);
            }
            assert_nothing_in_flight_and_reaper_ends(pattern_pages(1));
        },
    );
}

/// If a sender is dropped right after a send, every byte of the send must still arrive, whichever
/// mechanism is used.
#[test]
fn dropping_a_sender_loses_no_byte() {
    for family in FAMILIES {
        for &mechanism in memory_mechanisms(family) {
            let (mut sender, mut peer) = sender(family, &[mechanism], SendOptions::default());
            let sent =
                std::thread::spawn(move || sender.send(pattern_pages(SEND_BYTES)).unwrap().bytes());
            // Read while the other thread sends, because a Unix socket does not hold all the bytes.
            expect_bytes(&mut peer, &pattern(SEND_BYTES));
            assert_eq!(sent.join().unwrap(), SEND_BYTES as u64);
            expect_eof(&mut peer);
        }
    }
}

#[test]
fn the_socket_of_a_sender_can_be_used_afterwards() {
    let (sender, mut peer, pages, completions) = sender_in_flight();
    let socket = TcpStream::from(sender.into_inner());
    let writer = std::thread::spawn(move || {
        (&socket).write_all(b"and something else").unwrap();
        socket
    });
    expect_all_sends(&mut peer);
    expect_bytes(&mut peer, b"and something else");
    let socket = writer.join().unwrap();
    assert_all_complete(&completions);
    assert_no_other_handle(pages);
    // Taking the socket out of the sender must neither shut the socket down nor leave a pending
    // error (`SO_ERROR`) on it.
    assert!(socket.take_error().unwrap().is_none());
    (&peer).write_all(b"reply").unwrap();
    expect_bytes(&mut &socket, b"reply");
    (&socket).write_all(b"end").unwrap();
    expect_bytes(&mut peer, b"end");
    drop(socket);
    expect_eof(&mut peer);
}

/// Dropping a sender must not shut down the connection: the peer must see the end of the stream
/// only when the last clone of the socket is closed.
#[test]
fn dropping_a_sender_leaves_a_clone_of_its_socket_open() {
    let (sender, mut peer, pages, completions) = sender_in_flight();
    let clone = TcpStream::from(sender.get_ref().try_clone().unwrap());
    drop(sender);
    let writer = std::thread::spawn(move || {
        (&clone).write_all(b"and something else").unwrap();
        clone
    });
    expect_all_sends(&mut peer);
    expect_bytes(&mut peer, b"and something else");
    let clone = writer.join().unwrap();
    assert_all_complete(&completions);
    (&peer).write_all(b"reply").unwrap();
    expect_bytes(&mut &clone, b"reply");
    (&clone).write_all(b"end").unwrap();
    expect_bytes(&mut peer, b"end");
    drop(clone);
    expect_eof(&mut peer);
    wait_for_last_handle(pages);
}

/// The kernel numbers the zero-copy sends of a socket, and its notifications contain those numbers.
/// A second sender on the same socket does not know the next number. So the second sender must
/// copy, and must report `EBUSY` as the reason.
#[test]
fn a_second_sender_on_a_socket_copies() {
    let (sender, mut peer, _, completions) = sender_in_flight();
    let plan = [Mechanism::MsgZerocopy, Mechanism::Copy];
    let options = SendOptions::default().force_mechanisms(&plan);
    let mut second = Sender::with(sender.into_inner(), options);
    let sent = std::thread::spawn(move || second.send(pattern_pages(SEND_BYTES)).unwrap());
    expect_all_sends(&mut peer);
    expect_bytes(&mut peer, &pattern(SEND_BYTES));
    let sent = sent.join().unwrap();
    assert_eq!(sent.report().by(Mechanism::Copy), SEND_BYTES as u64);
    let [fallback] = sent.report().fallbacks() else {
        panic!("{}", sent.report());
    };
    assert_eq!(fallback.errno, uncopied::Errno::BUSY);
    assert_all_complete(&completions);
}

#[test]
fn dropping_the_completions_leaks_nothing() {
    let (sender, mut peer, pages, completions) = sender_in_flight();
    drop(completions);
    expect_all_sends(&mut peer);
    wait_until("all notifications", || {
        sender.reap();
        sender.in_flight_bytes() == 0
    });
    assert_no_other_handle(pages);
}

/// A thread panics while its sends are in flight. Unwinding drops the thread's sender, but every
/// byte that was sent must still arrive.
#[test]
fn a_panic_with_sends_in_flight_loses_nothing() {
    in_child(
        "sender_dropped::a_panic_with_sends_in_flight_loses_nothing",
        |_| {},
        || {
            let (sender, mut peer, pages, completions) = sender_in_flight();
            let thread = std::thread::spawn(move || {
                let _dropped_by_unwinding = (sender, pages.clone(), completions);
                panic!("on purpose");
            });
            assert!(thread.join().is_err());
            assert!(in_flight_bytes() > 0);
            expect_all_sends(&mut peer);
            expect_eof(&mut peer);

            let (mut sender, mut peer, pages, completions) = sender_in_flight();
            let result = catch_unwind(AssertUnwindSafe(|| {
                let _sent = sender.send(pattern_pages(10)).unwrap();
                panic!("on purpose");
            }));
            assert!(result.is_err());
            expect_all_sends(&mut peer);
            expect_bytes(&mut peer, &pattern(10));
            assert_all_complete(&completions);
            assert_eq!(sender.send(pattern_pages(20)).unwrap().bytes(), 20);
            expect_bytes(&mut peer, &pattern(20));
            drop(sender);
            assert_nothing_in_flight_and_reaper_ends(pages);
        },
    );
}

/// A thread that waits for completions must still get them if another thread drops the sender.
#[test]
fn a_completion_outlives_its_sender() {
    let (sender, mut peer, pages, completions) = sender_in_flight();
    let waiting = std::thread::spawn(move || assert_all_complete(&completions));
    drop(sender);
    expect_all_sends(&mut peer);
    waiting.join().unwrap();
    expect_eof(&mut peer);
    wait_for_last_handle(pages);
}

/// Waits until no other handle to the pages exists.
fn wait_for_last_handle(pages: Pages) {
    let mut pages = Some(pages);
    wait_until("the pages", || {
        match pages.take().unwrap().try_into_buffer() {
            Ok(_) => true,
            Err(in_flight) => {
                pages = Some(in_flight);
                false
            }
        }
    });
}

/// If a send fails halfway, some of its bytes have been sent. As with any other send, their memory
/// must stay in flight until the kernel's notification arrives, and must then become reusable.
#[test]
fn the_pages_of_a_send_that_fails_halfway_are_freed() {
    let plan = [Mechanism::MsgZerocopy];
    let (mut sender, mut peer) = small_buffer_sender(Family::Tcp, &plan, SendOptions::default());
    let pages = pattern_pages(16 << 20);
    let handle = pages.clone();
    let sending = std::thread::spawn(move || {
        let error = sender.send(handle).unwrap_err();
        (sender, error)
    });
    expect_bytes(&mut peer, &pattern(100_000));
    reset(peer);
    let (sender, error) = sending.join().unwrap();
    assert_eq!(error.kind(), ErrorKind::PeerClosed, "{error}");
    assert!(error.moved() > 0);
    wait_until("all notifications", || {
        sender.reap();
        sender.in_flight_bytes() == 0
    });
    assert!(sender.get_ref().as_fd().try_clone_to_owned().is_ok());
    assert_no_other_handle(pages);
}
