//! Limits on the bytes in flight, per sender and per process, when the peer does not read.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use uncopied::{
    ErrorKind, LimitAction, Mechanism, SendOptions, Sender, in_flight_bytes,
    set_process_in_flight_limit,
};

use crate::harness::{
    Family, HANG_TIMEOUT, assert_all_sent_by, expect_bytes, expect_eof, in_child, pattern,
    pattern_pages, send_until_full, sender, unless_blocked, wait_until,
};

/// The size of a send: a whole number of pages, because every page that a send touches counts in
/// full against the limit. If a send ended within a page, more bytes would be counted than were
/// sent.
const SEND_BYTES: usize = 32 << 10;

/// The limit on bytes in flight: much less than the socket buffers hold, so that a sender reaches
/// the limit before the socket is full.
const LIMIT_BYTES: u64 = 4 * SEND_BYTES as u64;

fn limited_sender(at_limit: LimitAction, in_flight_limit: u64) -> (Sender<OwnedFd>, File) {
    let options = SendOptions::default()
        .in_flight_limit(in_flight_limit)
        .at_limit(at_limit);
    sender(Family::Tcp, &[Mechanism::MsgZerocopy], options)
}

/// Asserts that the next `bytes` bytes of the stream repeat the pattern of one send.
fn expect_repeated_pattern(peer: &mut File, mut bytes: usize) {
    let pattern = pattern(SEND_BYTES);
    while bytes > 0 {
        let len = bytes.min(SEND_BYTES);
        expect_bytes(peer, &pattern[..len]);
        bytes -= len;
    }
}

/// A peer that stops reading must not pin more memory than the sender's limit allows. Bytes beyond
/// the limit are copied instead. Other senders are not affected.
#[test]
fn bytes_beyond_the_limit_are_copied() {
    let (mut stuck, mut peer) = limited_sender(LimitAction::Copy, LIMIT_BYTES);
    let mut peak = 0;
    let total = send_until_full(&mut stuck, SEND_BYTES, |sender, _| {
        peak = peak.max(sender.in_flight_bytes())
    });
    assert!(0 < peak && peak <= LIMIT_BYTES, "{peak} bytes in flight");
    let report = stuck.report();
    assert_eq!(report.bytes(), total as u64);
    assert!(report.by(Mechanism::Copy) > 0, "{report}");
    assert!(report.fallbacks().is_empty(), "{report}");

    let (mut other, mut reader) = limited_sender(LimitAction::Copy, LIMIT_BYTES);
    for _ in 0..20 {
        let sent = other.send(pattern_pages(SEND_BYTES)).unwrap();
        expect_bytes(&mut reader, &pattern(SEND_BYTES));
        sent.completion().wait(Some(HANG_TIMEOUT)).unwrap();
        assert_all_sent_by(
            sent.report(),
            Mechanism::MsgZerocopy,
            SEND_BYTES as u64,
            "other",
        );
    }

    expect_repeated_pattern(&mut peer, total);
    wait_until("all notifications", || {
        stuck.reap();
        stuck.in_flight_bytes() == 0
    });
}

/// A sender that waits at the limit must time out if the peer does not read. The error must report
/// the number of bytes sent, and a later send must be able to continue after those bytes.
#[test]
fn waiting_at_the_limit_times_out_with_the_count_of_bytes() {
    let (mut sender, mut peer) = limited_sender(LimitAction::Wait, LIMIT_BYTES);
    let timeout = Some(Duration::from_millis(200));
    set_socket_timeout(sender.get_ref(), Timeout::Send, timeout).unwrap();
    // Send until the sender reaches the limit. That happens because the peer acknowledges only the
    // bytes that fit into its buffer, so all further bytes stay in flight.
    let (mut total, mut peak) = (0, 0);
    let error = loop {
        match sender.send(pattern_pages(SEND_BYTES)) {
            Ok(sent) => total += sent.bytes(),
            Err(error) => break error,
        }
        peak = peak.max(sender.in_flight_bytes());
        assert!(total < 1 << 30, "the sender never waits");
    };
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    total += error.moved();
    assert!(0 < peak && peak <= LIMIT_BYTES, "{peak} bytes in flight");
    let report = sender.report();
    assert_all_by_msg_zerocopy(&sender, total);
    assert_eq!(report.bytes(), total);

    // Let the peer read from now on, and let the sender wait longer.
    set_socket_timeout(sender.get_ref(), Timeout::Send, Some(HANG_TIMEOUT)).unwrap();
    let rest = pattern_pages(SEND_BYTES).slice(total as usize % SEND_BYTES..);
    let all = total as usize + rest.len() + 50 * SEND_BYTES;
    std::thread::scope(|scope| {
        scope.spawn(|| expect_repeated_pattern(&mut peer, all));
        let first = sender.send(rest).unwrap();
        for _ in 0..50 {
            assert_eq!(
                sender.send(pattern_pages(SEND_BYTES)).unwrap().bytes(),
                SEND_BYTES as u64
            );
            assert!(sender.in_flight_bytes() <= LIMIT_BYTES);
        }
        first.completion().wait(Some(HANG_TIMEOUT)).unwrap();
    });
    assert_all_by_msg_zerocopy(&sender, all as u64);
    drop(sender);
    expect_eof(&mut peer);
}

fn assert_all_by_msg_zerocopy(sender: &Sender<OwnedFd>, bytes: u64) {
    let report = sender.report();
    assert_eq!(report.by(Mechanism::MsgZerocopy), bytes, "{report}");
    assert!(report.fallbacks().is_empty(), "{report}");
}

/// `try_send` must not wait at the limit. It must fail at once, without sending anything.
#[test]
fn try_send_at_the_limit_sends_nothing() {
    let (mut sender, mut peer) = limited_sender(LimitAction::Wait, LIMIT_BYTES);
    let total = send_until_full(&mut sender, SEND_BYTES, |sender, _| {
        assert!(sender.in_flight_bytes() <= LIMIT_BYTES)
    });
    // Check that the socket is not full, so that only the limit can have stopped the sender: a
    // second sender, which copies, must still be able to send.
    let mut copying = Sender::with(
        sender.get_ref().try_clone().unwrap(),
        SendOptions::default().force_mechanisms(&[Mechanism::Copy]),
    );
    let pages = pattern_pages(SEND_BYTES);
    let rest = pages.slice(total % SEND_BYTES..);
    assert!(copying.try_send(&rest).unwrap().bytes() > 0);
    expect_repeated_pattern(&mut peer, total);
    wait_until("bytes in flight below the limit", || {
        unless_blocked(sender.try_send(&pages), ErrorKind::InFlightLimit).is_some()
    });
}

/// The process-wide limit applies to all senders together. The test sets it in a child process, so
/// that it does not affect other tests.
#[test]
fn all_senders_together_stay_below_the_limit_of_the_process() {
    in_child(
        "in_flight_limits::all_senders_together_stay_below_the_limit_of_the_process",
        |_| {},
        || {
            set_process_in_flight_limit(LIMIT_BYTES);
            let mut senders: Vec<_> = (0..4)
                .map(|_| limited_sender(LimitAction::Copy, 64 << 20))
                .collect();
            let mut totals = Vec::new();
            for (sender, _) in &mut senders {
                totals.push(send_until_full(sender, SEND_BYTES, |_, _| {
                    assert!(in_flight_bytes() <= LIMIT_BYTES)
                }));
            }
            assert!(in_flight_bytes() > 0);
            let sum: u64 = senders
                .iter()
                .map(|(sender, _)| sender.in_flight_bytes())
                .sum();
            assert_eq!(sum, in_flight_bytes());
            for ((sender, peer), total) in senders.iter_mut().zip(totals) {
                let report = sender.report();
                assert_eq!(report.bytes(), total as u64);
                expect_repeated_pattern(peer, total);
            }
            wait_until("all notifications", || {
                for (sender, _) in &senders {
                    sender.reap();
                }
                in_flight_bytes() == 0
            });
        },
    );
}

/// A sender that waits at the process-wide limit must process the notifications of all senders.
/// Otherwise, an idle sender, which does not process its own notifications, would block the others.
#[test]
fn an_idle_sender_does_not_block_others_at_the_limit_of_the_process() {
    in_child(
        "in_flight_limits::an_idle_sender_does_not_block_others_at_the_limit_of_the_process",
        |_| {},
        || {
            set_process_in_flight_limit(LIMIT_BYTES);
            let (mut idle, mut reader) = limited_sender(LimitAction::Wait, 64 << 20);
            let (mut waiting, mut peer) = limited_sender(LimitAction::Wait, 64 << 20);
            // Until the buffer of its peer is full, bytes of `idle` may be acknowledged late. Then
            // `waiting` can send, and `idle` can send again.
            let mut totals = Vec::new();
            let error = loop {
                totals.push(send_until_full(&mut idle, SEND_BYTES, |_, _| {}));
                match waiting.try_send(pattern_pages(SEND_BYTES)) {
                    Ok(sent) => expect_bytes(&mut peer, &pattern(sent.bytes() as usize)),
                    Err(error) => break error,
                }
                assert!(totals.len() < 1_000, "the limit is never reached");
            };
            assert_eq!(error.kind(), ErrorKind::InFlightLimit, "{error}");
            // tokio would wait for the socket, which is writable, if this were `WouldBlock`.
            let kind = std::io::Error::from(error).kind();
            assert_eq!(kind, std::io::ErrorKind::ResourceBusy);

            for total in totals {
                expect_repeated_pattern(&mut reader, total);
            }
            set_socket_timeout(waiting.get_ref(), Timeout::Send, Some(HANG_TIMEOUT / 4)).unwrap();
            let sent = waiting.send(pattern_pages(SEND_BYTES)).unwrap();
            let by = Mechanism::MsgZerocopy;
            assert_all_sent_by(sent.report(), by, SEND_BYTES as u64, "zero-copy");
            expect_bytes(&mut peer, &pattern(SEND_BYTES));
        },
    );
}
