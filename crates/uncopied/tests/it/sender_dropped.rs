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

/// More sends than fit into the buffer of a peer that does not read, so that some of them stay in
/// flight.
const SEND_COUNT: usize = 3;

/// A sender with sends in flight, its peer, which has read nothing, the pages, and the completions.
fn sender_in_flight() -> (Sender<OwnedFd>, File, Pages, Vec<Completion>) {
    let mut in_flight = None;
    // Fails as long as the user's other processes lock too much memory.
    wait_until("a sender with sends in flight", || {
        in_flight = try_sender_in_flight();
        in_flight.is_some()
    });
    in_flight.unwrap()
}

fn try_sender_in_flight() -> Option<(Sender<OwnedFd>, File, Pages, Vec<Completion>)> {
    let plan = [Mechanism::MsgZerocopy];
    let (mut sender, peer) = sender(Family::Tcp, &plan, SendOptions::default());
    // The default size may be large enough for all the sends.
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

/// Closes the connection by a reset.
fn reset(peer: File) {
    set_socket_linger(&peer, Some(Duration::ZERO)).unwrap();
}

/// Whether the reaper, the library's own thread, is running.
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

/// Asserts that nothing else keeps the pages, so that they become a buffer again.
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

/// The same after the sender is dropped and the reaper has taken over. The completions can still
/// be waited for.
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
fn what_a_dropped_sender_has_in_flight_arrives_and_is_freed() {
    in_child(
        "sender_dropped::what_a_dropped_sender_has_in_flight_arrives_and_is_freed",
        |_| {},
        || {
            // Twice, because the reaper ends and must start again.
            for _ in 0..2 {
                let (sender, mut peer, pages, completions) = sender_in_flight();
                drop(completions);
                drop(sender);
                wait_until("the reaper", reaper_runs);
                let pages = pages.try_into_buffer().expect_err("in flight");
                // Nothing is freed before the peer reads.
                std::thread::sleep(Duration::from_millis(100));
                assert!(in_flight_bytes() > 0);
                expect_all_sends(&mut peer);
                expect_eof(&mut peer);
                assert_nothing_in_flight_and_reaper_ends(pages);
            }
        },
    );
}

/// Several senders are dropped at the same time, and their peers read in a different order.
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

/// A sender by any mechanism that is dropped right after a send has sent every byte.
#[test]
fn dropping_a_sender_loses_no_byte() {
    for family in FAMILIES {
        for &mechanism in memory_mechanisms(family) {
            let (mut sender, mut peer) = sender(family, &[mechanism], SendOptions::default());
            let sent =
                std::thread::spawn(move || sender.send(pattern_pages(SEND_BYTES)).unwrap().bytes());
            // The peer reads meanwhile, because a Unix socket does not hold all of it.
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
    // The end of the sender has neither shut the socket down nor left an error on it.
    assert!(socket.take_error().unwrap().is_none());
    (&peer).write_all(b"reply").unwrap();
    expect_bytes(&mut &socket, b"reply");
    (&socket).write_all(b"end").unwrap();
    expect_bytes(&mut peer, b"end");
    drop(socket);
    expect_eof(&mut peer);
}

/// The peer sees the end of the stream only when the last clone of the socket is closed.
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

/// The kernel numbers the sends of a socket. A second sender on the same socket does not know where
/// the numbers continue, so it copies, and reports why.
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

/// A thread panics while sends are in flight: it unwinds, and everything that it has sent arrives.
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

/// Another thread waits for the completions while the sender is dropped.
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

/// Waits until nothing else keeps the pages.
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

/// When a send fails half-way, the bytes that it has sent stay leased until their notifications,
/// like those of any other send.
#[test]
fn the_pages_of_a_send_that_fails_half_way_are_freed() {
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
