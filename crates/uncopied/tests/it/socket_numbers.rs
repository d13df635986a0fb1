//! The kernel numbers the `MSG_ZEROCOPY` sends of a socket, and its notifications refer to these
//! numbers. So if a sender counts the sends differently from the kernel, a notification completes
//! the wrong send, and a buffer is reused too early.
//!
//! Each test makes a send that must be copied: with `MSG_ZEROCOPY`, it would take a number, and so
//! shift the numbers of later sends. To detect that, the tests overwrite each buffer as soon as its
//! completion allows it, and the peer checks every byte.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_recv_buffer_size;
use uncopied::arena::{PageBuffer, Pages};
use uncopied::policy::Driver;
use uncopied::{Channel, Completion, Errno, ErrorKind, Mechanism, SendOptions, Sender, Sent};

use crate::harness::{
    Family, expect_bytes, fill_pattern, in_child, in_forked_child, pattern, pattern_pages,
    set_nonblocking, socket_pair,
};

/// The length of the sends that the peer reads late, in bytes.
const LONG_BYTES: usize = 50_001;

/// A number of bytes that fills the receive buffer of the peer. Bytes that are sent after them stay
/// in the sender's socket, and so in flight, until the peer reads.
const STALL_BYTES: usize = 150_000;

/// The length of the sends that the peer reads at once, in bytes.
const SHORT_BYTES: usize = 5000;

const SEND_COUNT: usize = 3;

/// How long to wait for a notification that must not arrive, because the peer has not read.
const EARLY_NOTIFICATION_TIMEOUT: Duration = Duration::from_millis(100);

fn options() -> SendOptions {
    SendOptions::default().force_mechanisms(&[Mechanism::MsgZerocopy, Mechanism::Copy])
}

/// Returns two connected sockets. The second has a small receive buffer, so that it can be
/// [stalled](stall).
fn stalling_pair() -> (OwnedFd, File) {
    let (socket, peer) = socket_pair(Family::Tcp);
    set_socket_recv_buffer_size(&peer, 32 << 10).unwrap();
    (socket, peer)
}

/// Makes the peer acknowledge all bytes that it has received, by sending a byte from the peer to
/// `socket`: the packet with that byte also carries the acknowledgement.
fn acknowledge(mut peer: &File, socket: impl AsFd) {
    peer.write_all(b"!").unwrap();
    assert_eq!(rustix::io::read(socket, &mut [0; 1]).unwrap(), 1);
}

/// Fills the peer's receive buffer with an ordinary `write`, which copies the bytes and takes no
/// number.
fn stall(socket: impl AsFd) {
    assert_eq!(
        rustix::io::write(socket, &pattern(STALL_BYTES)),
        Ok(STALL_BYTES)
    );
}

/// Long sends to a peer that is [stalled](stall), each with a pattern of its own.
#[derive(Default)]
struct LongSends {
    in_flight: Vec<(Pages, Completion)>,
    count: u64,
}

impl LongSends {
    fn send(&mut self, send: impl FnOnce(Pages) -> Sent) -> Sent {
        self.count += 1;
        let mut buffer = PageBuffer::zeroed(LONG_BYTES).unwrap();
        fill_pattern(&mut buffer, self.count);
        let pages = buffer.freeze();
        let sent = send(pages.clone());
        assert_eq!(sent.bytes(), LONG_BYTES as u64);
        self.in_flight.push((pages, sent.completion().clone()));
        sent
    }

    /// Overwrites every buffer that is no longer in flight.
    fn overwrite_completed(&mut self) {
        for (pages, completion) in std::mem::take(&mut self.in_flight) {
            if completion.outcome().is_none() {
                self.in_flight.push((pages, completion));
                continue;
            }
            let mut buffer = pages.try_into_buffer().expect("completed");
            buffer.set_len(LONG_BYTES);
            buffer.fill(0);
        }
    }

    fn overwrite_completed_for(&mut self, time: Duration) {
        let began = Instant::now();
        while began.elapsed() < time {
            self.overwrite_completed();
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Asserts that the peer gets the bytes that [`stall`] wrote, and then those of all long sends.
    fn expect_all(&self, peer: &mut impl Read) {
        expect_bytes(peer, &pattern(STALL_BYTES));
        for key in 1..=self.count {
            let mut expected = vec![0; LONG_BYTES];
            fill_pattern(&mut expected, key);
            expect_bytes(peer, &expected);
        }
    }
}

#[test]
fn a_forked_child_that_sends_by_an_inherited_sender_copies() {
    in_child(
        "socket_numbers::a_forked_child_that_sends_by_an_inherited_sender_copies",
        |_| {},
        || {
            // Test both a sender that the parent has used before the fork and one that it has not.
            for parent_sends_first in [true, false] {
                let (socket, mut peer) = stalling_pair();
                let mut sender = Sender::with(socket, options());
                let short = pattern_pages(SHORT_BYTES);
                if parent_sends_first {
                    let sent = sender.send(&short).unwrap();
                    assert_eq!(sent.report().by(Mechanism::Copy), 0, "{}", sent.report());
                    expect_bytes(&mut peer, &pattern(SHORT_BYTES));
                }
                in_forked_child(|| {
                    for _ in 0..SEND_COUNT {
                        sender.send(&short).unwrap();
                    }
                });
                for _ in 0..SEND_COUNT {
                    expect_bytes(&mut peer, &pattern(SHORT_BYTES));
                }
                acknowledge(&peer, sender.get_ref());
                stall(sender.get_ref());
                let mut long = LongSends::default();
                for _ in 0..SEND_COUNT {
                    let sent = long.send(|pages| sender.send(pages).unwrap());
                    assert_eq!(sent.report().by(Mechanism::Copy), 0, "{}", sent.report());
                }
                long.overwrite_completed_for(EARLY_NOTIFICATION_TIMEOUT);
                long.expect_all(&mut peer);

                in_forked_child(|| {
                    let sent = sender.send(&short).unwrap();
                    assert_eq!(sent.report().by(Mechanism::Copy), SHORT_BYTES as u64);
                    assert_eq!(sent.report().fallbacks()[0].errno, Errno::BUSY);
                    assert!(sent.completion().outcome().is_some());
                });
                expect_bytes(&mut peer, &pattern(SHORT_BYTES));
            }
        },
    );
}

#[test]
fn a_forked_child_that_may_only_use_msg_zerocopy_gets_an_error() {
    in_child(
        "socket_numbers::a_forked_child_that_may_only_use_msg_zerocopy_gets_an_error",
        |_| {},
        || {
            let (socket, mut peer) = stalling_pair();
            let only = SendOptions::default().force_mechanisms(&[Mechanism::MsgZerocopy]);
            let mut sender = Sender::with(socket, only);
            let short = pattern_pages(SHORT_BYTES);
            in_forked_child(|| {
                let error = sender.send(&short).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
                assert_eq!(error.moved(), 0);
            });
            // The parent is not affected.
            sender.send(&short).unwrap();
            expect_bytes(&mut peer, &pattern(SHORT_BYTES));
        },
    );
}

/// Two threads, each with its own sender on the same socket, send for the first time at the same
/// moment. Exactly one of the senders must use `MSG_ZEROCOPY`, and the other must copy.
#[test]
fn only_one_of_two_senders_over_clones_uses_msg_zerocopy() {
    const ROUNDS: usize = 300;
    for round in 0..ROUNDS {
        let (socket, mut peer) = stalling_pair();
        let clone = socket.try_clone().unwrap();
        let mut senders = [clone, socket].map(|socket| Sender::with(socket, options()));
        let ready = AtomicUsize::new(0);
        let short = pattern_pages(1);
        let zero_copy: u64 = std::thread::scope(|scope| {
            let threads = senders.each_mut().map(|sender| {
                scope.spawn(|| {
                    ready.fetch_add(1, Ordering::SeqCst);
                    while ready.load(Ordering::SeqCst) < 2 {
                        std::hint::spin_loop();
                    }
                    let sent = sender.send(&short).unwrap();
                    sent.report().by(Mechanism::MsgZerocopy)
                })
            });
            threads.into_iter().map(|it| it.join().unwrap()).sum()
        });
        expect_bytes(&mut peer, &[pattern(1)[0]; 2]);
        acknowledge(&peer, senders[0].get_ref());
        stall(senders[0].get_ref());
        let mut long = LongSends::default();
        for sender in &mut senders {
            long.send(|pages| sender.send(pages).unwrap());
        }
        long.overwrite_completed();
        long.expect_all(&mut peer);
        assert_eq!(zero_copy, 1, "round {round}: not exactly one sender");
    }
}

/// Returns a channel that has already sent with `MSG_ZEROCOPY`, its non-blocking socket, and the
/// peer.
fn channel_in_use() -> (Channel, OwnedFd, File) {
    let (socket, mut peer) = stalling_pair();
    set_nonblocking(&socket);
    let mut channel = Channel::new(&socket, Driver::Caller, options());
    send_short_by_msg_zerocopy(&mut channel, &socket);
    expect_bytes(&mut peer, &pattern(SHORT_BYTES));
    (channel, socket, peer)
}

fn send_short_by_msg_zerocopy(channel: &mut Channel, socket: &OwnedFd) {
    let report = channel.try_send(pattern_pages(SHORT_BYTES), socket);
    let by = report.unwrap().report().by(Mechanism::MsgZerocopy);
    assert_eq!(by, SHORT_BYTES as u64);
}

/// A channel that has sent on one socket is then also given the socket of another channel. It must
/// copy to this second socket, so that the numbers of neither socket are shifted.
#[test]
fn a_channel_copies_to_a_second_socket() {
    let (mut channel, first, mut first_peer) = channel_in_use();
    let (mut other_channel, second, mut second_peer) = channel_in_use();
    stall(&second);
    let mut long = LongSends::default();
    let mut reports = Vec::new();
    for _ in 0..SEND_COUNT {
        let sent = long.send(|pages| channel.try_send(pages, &second).unwrap());
        reports.push(sent.report().clone());
        let _ = long.send(|pages| other_channel.try_send(pages, &second).unwrap());
        // Make the kernel send a notification for the first socket. If the channel had used
        // `MSG_ZEROCOPY` on the second socket, it would mistake this notification for that of its
        // long send, and would complete the long send too early.
        send_short_by_msg_zerocopy(&mut channel, &first);
        expect_bytes(&mut first_peer, &pattern(SHORT_BYTES));
    }
    long.overwrite_completed_for(EARLY_NOTIFICATION_TIMEOUT);
    long.expect_all(&mut second_peer);
    for report in reports {
        assert_eq!(report.by(Mechanism::Copy), LONG_BYTES as u64, "{report}");
        assert_eq!(report.fallbacks()[0].errno, Errno::BADFD, "{report}");
    }
}

/// Once a descriptor is closed, another socket can get the same descriptor number. So a channel
/// must not conclude from an equal number that the socket is still the same.
#[test]
fn a_channel_recognises_a_new_socket_with_the_number_of_an_old_one() {
    let (mut channel, first, _first_peer) = channel_in_use();
    let (_other_channel, second, mut second_peer) = channel_in_use();
    let clone = first.try_clone().unwrap();
    let mut renumbered = first;
    rustix::io::dup2(&second, &mut renumbered).unwrap();
    stall(&second);
    let mut long = LongSends::default();
    let sent = long.send(|pages| channel.try_send(pages, &renumbered).unwrap());
    send_short_by_msg_zerocopy(&mut channel, &clone);
    long.overwrite_completed_for(EARLY_NOTIFICATION_TIMEOUT);
    long.expect_all(&mut second_peer);
    assert_eq!(sent.report().by(Mechanism::Copy), LONG_BYTES as u64);
}

/// The socket of a sender is replaced by another one, whose descriptor may get the number of the
/// first one. The sender must detect that, although it does not look at the socket again otherwise.
#[test]
fn a_sender_copies_to_a_socket_that_replaces_its_own() {
    for is_same_number in [false, true] {
        let (first, mut first_peer) = stalling_pair();
        let (_other_channel, second, mut second_peer) = channel_in_use();
        stall(&second);
        let clone = first.try_clone().unwrap();
        let mut sender = Sender::with(first, options());
        sender.send(pattern_pages(SHORT_BYTES)).unwrap();
        expect_bytes(&mut first_peer, &pattern(SHORT_BYTES));
        if is_same_number {
            rustix::io::dup2(&second, sender.get_mut()).unwrap();
        } else {
            *sender.get_mut() = second.try_clone().unwrap();
        }
        let mut long = LongSends::default();
        let sent = long.send(|pages| sender.send(pages).unwrap());
        // The first socket, to which the numbers belong, can be used again.
        *sender.get_mut() = clone;
        let short = sender.send(pattern_pages(SHORT_BYTES)).unwrap();
        let by_msg_zerocopy = short.report().by(Mechanism::MsgZerocopy);
        assert_eq!(by_msg_zerocopy, SHORT_BYTES as u64);
        expect_bytes(&mut first_peer, &pattern(SHORT_BYTES));
        long.overwrite_completed_for(EARLY_NOTIFICATION_TIMEOUT);
        long.expect_all(&mut second_peer);
        assert_eq!(sent.report().by(Mechanism::Copy), LONG_BYTES as u64);
    }
}

/// Safe code can replace the sockets behind the descriptors of the standard streams, even while a
/// sender borrows them.
#[test]
fn a_sender_detects_that_standard_input_was_replaced() {
    in_child(
        "socket_numbers::a_sender_detects_that_standard_input_was_replaced",
        |_| {},
        || {
            let (first, mut first_peer) = stalling_pair();
            let (_other_channel, second, mut second_peer) = channel_in_use();
            rustix::stdio::dup2_stdin(&first).unwrap();
            let mut sender = Sender::with(rustix::stdio::stdin(), options());
            sender.send(pattern_pages(SHORT_BYTES)).unwrap();
            expect_bytes(&mut first_peer, &pattern(SHORT_BYTES));
            rustix::stdio::dup2_stdin(&second).unwrap();
            stall(&second);
            let mut long = LongSends::default();
            let sent = long.send(|pages| sender.send(pages).unwrap());
            assert_eq!(sent.report().by(Mechanism::Copy), LONG_BYTES as u64);
            long.overwrite_completed_for(EARLY_NOTIFICATION_TIMEOUT);
            long.expect_all(&mut second_peer);
        },
    );
}
