//! Memory sizes around each boundary (a page, 64 KiB, 2 MiB), with every mechanism, and the outcome
//! of each send.

use std::io::Read;

use uncopied::arena::PageBuffer;
use uncopied::{Errno, ErrorKind, FreeReason, LimitAction, Mechanism, SendOptions, Sent};

use crate::harness::{
    FAMILIES, Family, HANG_TIMEOUT, assert_all_sent_by, expect_bytes, expect_eof,
    memory_mechanisms, pattern, pattern_pages, sender, set_nonblocking, small_buffer_sender,
    unless_blocked,
};

fn sizes_around_every_boundary() -> Vec<usize> {
    let around = |size: usize| [size - 1, size, size + 1];
    let boundaries = [rustix::param::page_size(), 64 << 10, 2 << 20].map(around);
    [0, 1]
        .into_iter()
        .chain(boundaries.into_iter().flatten())
        .chain([16 << 20])
        .collect()
}

/// Waits until a send to a peer on this machine is complete, and checks its outcome: `mechanism`
/// must have sent `len` bytes.
fn assert_completes(sent: &Sent, mechanism: Mechanism, len: u64, case: &str) {
    let outcome = sent.completion().wait(Some(HANG_TIMEOUT)).expect(case);
    let reason = match mechanism {
        Mechanism::MsgZerocopy | Mechanism::SendZc if len > 0 => FreeReason::Notification,
        Mechanism::Vmsplice if len > 0 => FreeReason::Gifted,
        _ => FreeReason::Copied,
    };
    // On loopback, the kernel copies the bytes whichever mechanism sends them, except for pages
    // that `vmsplice` gifts to the kernel (they are never written to again).
    let copied = if reason == FreeReason::Gifted { 0 } else { len };
    assert_eq!(
        (outcome.bytes, outcome.copied, outcome.reason),
        (len, copied, reason),
        "{case}"
    );
    assert_eq!(sent.completion().outcome(), Some(outcome), "{case}");
}

/// Whether some bytes were copied because of the limit on locked memory, according to the report.
/// The tests allow this, because the user's other processes count against the same limit.
fn reached_memory_limit(sent: &Sent) -> bool {
    let fallbacks = sent.report().fallbacks();
    !fallbacks.is_empty() && fallbacks.iter().all(|one| one.errno == Errno::NOBUFS)
}

#[test]
fn every_size_arrives_with_every_mechanism_from_any_address() {
    for family in FAMILIES {
        for &mechanism in memory_mechanisms(family) {
            // With at most 1 MiB in flight, the sender stays below the usual limit on locked memory
            // (`RLIMIT_MEMLOCK`).
            let options = SendOptions::default()
                .in_flight_limit(1 << 20)
                .at_limit(LimitAction::Wait);
            let (mut sender, mut peer) = sender(family, &[mechanism], options);
            for size in sizes_around_every_boundary() {
                for start in [0, 1] {
                    let case = format!("{size} bytes from {start} by {mechanism} to {family:?}");
                    let mut buffer = PageBuffer::zeroed(start + size).unwrap();
                    buffer[start..].copy_from_slice(&pattern(size));
                    let pages = buffer.freeze();
                    let slice = pages.slice(start..);
                    let sent = std::thread::scope(|scope| {
                        scope.spawn(|| expect_bytes(&mut peer, &pattern(size)));
                        sender.send(slice).expect(&case)
                    });
                    assert_eq!(sent.bytes(), size as u64, "{case}");
                    if !reached_memory_limit(&sent) {
                        assert_all_sent_by(sent.report(), mechanism, size as u64, &case);
                        assert_completes(&sent, mechanism, size as u64, &case);
                    }
                    sent.completion().wait(Some(HANG_TIMEOUT)).expect(&case);
                    // The pages must be able to become a buffer again, unless they were gifted to
                    // the kernel.
                    let is_gifted = mechanism == Mechanism::Vmsplice && size > 0;
                    assert_eq!(pages.is_permanent(), is_gifted, "{case}");
                    assert_eq!(pages.try_into_buffer().is_err(), is_gifted, "{case}");
                }
            }
            assert_eq!(sender.in_flight_bytes(), 0);
            drop(sender);
            expect_eof(&mut peer);
        }
    }
}

/// Sends the same pages several times before the peer reads anything. Each send has its own handle
/// to the pages.
#[test]
fn the_same_pages_can_be_sent_again_while_in_flight() {
    const PAGES_BYTES: usize = 10_000;
    let pages = pattern_pages(PAGES_BYTES);
    for family in FAMILIES {
        for &mechanism in memory_mechanisms(family) {
            let (mut sender, mut peer) = sender(family, &[mechanism], SendOptions::default());
            let sends: Vec<_> = (0..8)
                .map(|at| sender.send(pages.slice(at * 1000..)).unwrap())
                .collect();
            for at in 0..8 {
                expect_bytes(&mut peer, &pattern(PAGES_BYTES)[at * 1000..]);
            }
            for (at, sent) in sends.iter().enumerate() {
                let len = (PAGES_BYTES - at * 1000) as u64;
                assert_completes(sent, mechanism, len, "one of several sends");
            }
        }
    }
}

/// `try_send` must send as many bytes as fit into the socket, and must return their number, so that
/// the next send can continue after them. If none fit, it must fail with `WouldBlock`. The test
/// makes the socket non-blocking, because `splice(2)` has no flag that keeps a single call from
/// blocking on the socket (`SPLICE_F_NONBLOCK` affects only the pipe).
#[test]
fn try_send_sends_what_fits() {
    const PAGES_BYTES: usize = 8 << 20;
    for family in FAMILIES {
        for &mechanism in memory_mechanisms(family) {
            let (mut sender, mut peer) =
                small_buffer_sender(family, &[mechanism], SendOptions::default());
            set_nonblocking(sender.get_ref());
            let pages = pattern_pages(PAGES_BYTES);
            let (mut at, mut sends) = (0, Vec::new());
            while let Some(sent) =
                unless_blocked(sender.try_send(pages.slice(at..)), ErrorKind::WouldBlock)
            {
                assert!(sent.bytes() <= 2 << 20, "more than one step");
                at += sent.bytes() as usize;
                sends.push(sent);
            }
            assert!(0 < at && at < PAGES_BYTES, "{mechanism} {family:?}: {at}");
            let rest = pages.slice(at..);
            std::thread::scope(|scope| {
                scope.spawn(|| expect_bytes(&mut peer, &pattern(PAGES_BYTES)));
                assert_eq!(
                    sender.send(rest).unwrap().bytes(),
                    (PAGES_BYTES - at) as u64
                );
            });
            for sent in sends {
                let outcome = sent.completion().wait(Some(HANG_TIMEOUT)).unwrap();
                assert_eq!(outcome.bytes, sent.bytes());
            }
        }
    }
}

/// If the socket does not support the only forced mechanism, the send must fail. If `copy` is
/// forced as well, the send must fall back to `copy`.
#[test]
fn forcing_msg_zerocopy_on_a_unix_socket_is_an_error() {
    let forced = [Mechanism::MsgZerocopy];
    let (mut zero_copy, mut peer) = sender(Family::Unix, &forced, SendOptions::default());
    let error = zero_copy.send(pattern_pages(5000)).unwrap_err();
    assert_eq!((error.kind(), error.moved()), (ErrorKind::Unsupported, 0));

    let forced = [Mechanism::MsgZerocopy, Mechanism::Copy];
    let mut with_copy = uncopied::Sender::with(
        zero_copy.into_inner(),
        SendOptions::default().force_mechanisms(&forced),
    );
    let sent = with_copy.send(pattern_pages(5000)).unwrap();
    assert_eq!(sent.report().by(Mechanism::Copy), 5000);
    let [fallback] = sent.report().fallbacks() else {
        panic!("{}", sent.report());
    };
    assert_eq!((fallback.errno, fallback.at), (Errno::OPNOTSUPP, 0));
    drop(with_copy);
    let mut received = Vec::new();
    peer.read_to_end(&mut received).unwrap();
    assert_eq!(received, pattern(5000));
}

/// If no mechanism is forced and the peer is on this machine, pages that may be reused must be
/// copied, and pages that are frozen permanently must be sent without copying.
#[test]
fn the_plan_copies_reusable_pages_for_a_peer_on_this_machine() {
    for family in FAMILIES {
        let (mut sender, mut peer) = sender(family, &[], SendOptions::default());
        let size = 100_000;
        let sent = sender.send(pattern_pages(size)).unwrap();
        assert_all_sent_by(sent.report(), Mechanism::Copy, size as u64, "reusable");
        expect_bytes(&mut peer, &pattern(size));

        let buffer = PageBuffer::copy_from_slice(&pattern(size)).unwrap();
        let sent = sender.send(buffer.freeze_permanently()).unwrap();
        assert_all_sent_by(sent.report(), Mechanism::Vmsplice, size as u64, "permanent");
        expect_bytes(&mut peer, &pattern(size));
    }
}
