//! Peers, senders and completions that have gone with memory lent.

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
    FAMILIES, Family, HANG, content, expect_bytes, expect_end, for_memory, in_child, narrow_sender,
    pages_of, sender, until,
};

const SIZE: usize = 100_001;

/// More than a peer's buffer takes that does not read, so that some of it stays lent.
const SENDS: usize = 3;

/// A sender that has lent pages to a peer that has not read.
fn with_leases() -> (Sender<OwnedFd>, File, Pages, Vec<Completion>) {
    let mut made = None;
    // In vain while the user's other processes have locked too much.
    until("a sender that may lend", || {
        made = try_with_leases();
        made.is_some()
    });
    made.unwrap()
}

fn try_with_leases() -> Option<(Sender<OwnedFd>, File, Pages, Vec<Completion>)> {
    let plan = [Mechanism::MsgZerocopy];
    let (mut sender, peer) = sender(Family::Tcp, &plan, SendOptions::default());
    // Whatever the usual size is, it takes less than what is sent.
    set_socket_recv_buffer_size(&peer, 32 << 10).unwrap();
    let pages = pages_of(SIZE);
    let sends: Vec<_> = (0..SENDS)
        .map(|_| sender.send(pages.clone()).unwrap())
        .collect();
    let is_lent = |sent: &Sent| sent.report().by(Mechanism::MsgZerocopy) == SIZE as u64;
    let all_lent = sends.iter().all(is_lent);
    let completions = sends.into_iter().map(Sent::into_completion).collect();
    all_lent.then_some((sender, peer, pages, completions))
}

fn expect_all(peer: &mut File) {
    for _ in 0..SENDS {
        expect_bytes(peer, &content(SIZE));
    }
}

fn assert_all_settle(completions: &[Completion]) {
    for completion in completions {
        let settled = completion.wait(Some(HANG)).unwrap();
        assert_eq!(
            (settled.bytes, settled.reason),
            (SIZE as u64, FreeReason::Notification)
        );
    }
}

/// Closes so that the other end gets a reset.
fn reset(peer: File) {
    set_socket_linger(&peer, Some(Duration::ZERO)).unwrap();
}

/// Whether the library's own thread runs.
fn reaper_runs() -> bool {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks.flatten().any(|task| {
        let name = std::fs::read_to_string(task.path().join("comm"));
        name.is_ok_and(|name| name.starts_with("uncopied-reaper"))
    })
}

fn assert_nothing_is_lent_and_nobody_waits(pages: Pages) {
    until("all leases back", || in_flight_bytes() == 0);
    pages.try_into_buffer().expect("nobody has them any more");
    until("the end of the thread", || !reaper_runs());
}

#[test]
fn a_reset_gives_everything_back() {
    let (mut sender, peer, pages, completions) = with_leases();
    reset(peer);
    assert_all_settle(&completions);
    assert_eq!(sender.in_flight_bytes(), 0);
    pages.try_into_buffer().expect("nobody has them any more");
    let error = sender.send(pages_of(SIZE)).unwrap_err();
    assert_eq!((error.kind(), error.moved()), (ErrorKind::PeerClosed, 0));
    assert_eq!(sender.in_flight_bytes(), 0);
}

/// The same with nobody but the library to look after it, and completions that are waited for all the
/// same.
#[test]
fn a_reset_after_the_sender_has_gone_gives_everything_back() {
    in_child(
        "memory_gone::a_reset_after_the_sender_has_gone_gives_everything_back",
        |_| {},
        || {
            let (sender, peer, pages, completions) = with_leases();
            drop(sender);
            until("the thread that looks after it", reaper_runs);
            assert!(in_flight_bytes() > 0);
            reset(peer);
            assert_all_settle(&completions);
            assert_nothing_is_lent_and_nobody_waits(pages);
        },
    );
}

#[test]
fn what_a_dropped_sender_has_lent_arrives_and_comes_back() {
    in_child(
        "memory_gone::what_a_dropped_sender_has_lent_arrives_and_comes_back",
        |_| {},
        || {
            // Twice: the thread ends, and starts anew.
            for _ in 0..2 {
                let (sender, mut peer, pages, completions) = with_leases();
                drop(completions);
                drop(sender);
                until("the thread that looks after it", reaper_runs);
                let pages = pages.try_into_buffer().expect_err("still lent");
                // Late: nothing is given back meanwhile.
                std::thread::sleep(Duration::from_millis(100));
                assert!(in_flight_bytes() > 0);
                expect_all(&mut peer);
                expect_end(&mut peer);
                assert_nothing_is_lent_and_nobody_waits(pages);
            }
        },
    );
}

/// Many senders that go at once, to peers that read in another order.
#[test]
fn many_dropped_senders_are_looked_after_together() {
    in_child(
        "memory_gone::many_dropped_senders_are_looked_after_together",
        |_| {},
        || {
            let mut peers = Vec::new();
            for _ in 0..8 {
                let (sender, peer, _, completions) = with_leases();
                peers.push((peer, completions));
                drop(sender);
            }
            while !peers.is_empty() {
                let (mut peer, completions) = peers.swap_remove(peers.len() / 2);
                match peers.len() % 3 {
                    0 => reset(peer),
                    _ => {
                        expect_all(&mut peer);
                        expect_end(&mut peer);
                    }
                }
                assert_all_settle(&completions);
            }
            assert_nothing_is_lent_and_nobody_waits(pages_of(1));
        },
    );
}

/// A sender by any mechanism that is dropped right after its sends has sent everything.
#[test]
fn dropping_a_sender_loses_nothing() {
    for family in FAMILIES {
        for &mechanism in for_memory(family) {
            let (mut sender, mut peer) = sender(family, &[mechanism], SendOptions::default());
            let sent = std::thread::spawn(move || sender.send(pages_of(SIZE)).unwrap().bytes());
            // What a Unix socket does not take by itself has to be read.
            expect_bytes(&mut peer, &content(SIZE));
            assert_eq!(sent.join().unwrap(), SIZE as u64);
            expect_end(&mut peer);
        }
    }
}

#[test]
fn a_socket_that_is_taken_back_goes_on() {
    let (sender, mut peer, pages, completions) = with_leases();
    let socket = TcpStream::from(sender.into_inner());
    let writer = std::thread::spawn(move || {
        (&socket).write_all(b"and something else").unwrap();
        socket
    });
    expect_all(&mut peer);
    expect_bytes(&mut peer, b"and something else");
    let socket = writer.join().unwrap();
    assert_all_settle(&completions);
    pages.try_into_buffer().expect("nobody has them any more");
    // The socket has not been shut down with the sender, nor does anybody find an error on it.
    assert!(socket.take_error().unwrap().is_none());
    (&peer).write_all(b"answer").unwrap();
    expect_bytes(&mut &socket, b"answer");
    (&socket).write_all(b"end").unwrap();
    expect_bytes(&mut peer, b"end");
    drop(socket);
    expect_end(&mut peer);
}

/// Another sender on the same socket cannot count the kernel's numbers from where they are: it copies,
/// and says why.
#[test]
fn a_second_sender_on_a_socket_copies() {
    let (sender, mut peer, _, completions) = with_leases();
    let plan = [Mechanism::MsgZerocopy, Mechanism::Copy];
    let options = SendOptions::default().force_mechanisms(&plan);
    let mut second = Sender::with(sender.into_inner(), options);
    let sent = std::thread::spawn(move || second.send(pages_of(SIZE)).unwrap());
    expect_all(&mut peer);
    expect_bytes(&mut peer, &content(SIZE));
    let sent = sent.join().unwrap();
    assert_eq!(sent.report().by(Mechanism::Copy), SIZE as u64);
    let [step] = sent.report().fallbacks() else {
        panic!("{}", sent.report());
    };
    assert_eq!(step.errno, uncopied::Errno::BUSY);
    assert_all_settle(&completions);
}

#[test]
fn completions_that_are_dropped_keep_nothing() {
    let (sender, mut peer, pages, completions) = with_leases();
    drop(completions);
    expect_all(&mut peer);
    until("everything back", || {
        sender.reap();
        sender.in_flight_bytes() == 0
    });
    pages.try_into_buffer().expect("nobody has them any more");
}

/// A thread that panics with memory lent: it unwinds, and what it has sent arrives.
#[test]
fn a_panic_with_memory_lent() {
    in_child(
        "memory_gone::a_panic_with_memory_lent",
        |_| {},
        || {
            let (sender, mut peer, pages, completions) = with_leases();
            let thread = std::thread::spawn(move || {
                let _held = (sender, pages.clone(), completions);
                panic!("on purpose");
            });
            assert!(thread.join().is_err());
            assert!(in_flight_bytes() > 0);
            expect_all(&mut peer);
            expect_end(&mut peer);

            let (mut sender, mut peer, pages, completions) = with_leases();
            let caught = catch_unwind(AssertUnwindSafe(|| {
                let _sent = sender.send(pages_of(10)).unwrap();
                panic!("on purpose");
            }));
            assert!(caught.is_err());
            expect_all(&mut peer);
            expect_bytes(&mut peer, &content(10));
            assert_all_settle(&completions);
            assert_eq!(sender.send(pages_of(20)).unwrap().bytes(), 20);
            expect_bytes(&mut peer, &content(20));
            drop(sender);
            assert_nothing_is_lent_and_nobody_waits(pages);
        },
    );
}

/// Somebody waits for a completion in another thread while the sender goes.
#[test]
fn a_completion_outlives_its_sender() {
    let (sender, mut peer, pages, completions) = with_leases();
    let waiting = std::thread::spawn(move || assert_all_settle(&completions));
    drop(sender);
    expect_all(&mut peer);
    waiting.join().unwrap();
    expect_end(&mut peer);
    until("the pages", {
        let mut pages = Some(pages);
        move || match pages.take().unwrap().try_into_buffer() {
            Ok(_) => true,
            Err(still) => {
                pages = Some(still);
                false
            }
        }
    });
}

/// What a send that failed had sent until then is kept like everything else.
#[test]
fn a_send_that_fails_in_the_middle_gives_its_pages_back() {
    let plan = [Mechanism::MsgZerocopy];
    let (mut sender, mut peer) = narrow_sender(Family::Tcp, &plan, SendOptions::default());
    let pages = pages_of(16 << 20);
    let handle = pages.clone();
    let sending = std::thread::spawn(move || {
        let error = sender.send(handle).unwrap_err();
        (sender, error)
    });
    expect_bytes(&mut peer, &content(100_000));
    reset(peer);
    let (sender, error) = sending.join().unwrap();
    assert_eq!(error.kind(), ErrorKind::PeerClosed, "{error}");
    assert!(error.moved() > 0);
    until("everything back", || {
        sender.reap();
        sender.in_flight_bytes() == 0
    });
    assert!(sender.get_ref().as_fd().try_clone_to_owned().is_ok());
    pages.try_into_buffer().expect("nobody has them any more");
}
