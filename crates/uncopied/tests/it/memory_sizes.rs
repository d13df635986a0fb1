//! Memory by every mechanism at the sizes around every boundary, and what completions tell.

use std::io::Read;

use uncopied::arena::PageBuffer;
use uncopied::{Errno, ErrorKind, FreeReason, LimitAction, Mechanism, SendOptions, Sent};

use crate::harness::{
    FAMILIES, Family, HANG, assert_all_by, content, expect_bytes, expect_end, for_memory,
    narrow_sender, pages_of, sender, set_nonblocking,
};

fn sizes() -> Vec<usize> {
    let around = |size: usize| [size - 1, size, size + 1];
    let boundaries = [rustix::param::page_size(), 64 << 10, 2 << 20].map(around);
    [0, 1]
        .into_iter()
        .chain(boundaries.into_iter().flatten())
        .chain([16 << 20])
        .collect()
}

/// Waits for the completion of a send of `len` bytes by `mechanism` on this machine, and compares what
/// it tells.
fn assert_settles(sent: &Sent, mechanism: Mechanism, len: u64, what: &str) {
    let settled = sent.completion().wait(Some(HANG)).expect(what);
    let rule = match mechanism {
        Mechanism::MsgZerocopy | Mechanism::SendZc if len > 0 => FreeReason::Notification,
        Mechanism::Vmsplice if len > 0 => FreeReason::Gifted,
        _ => FreeReason::Copied,
    };
    // On loopback the kernel copies whatever it is lent and gives back.
    let copied = if rule == FreeReason::Gifted { 0 } else { len };
    assert_eq!(
        (settled.bytes, settled.copied, settled.reason),
        (len, copied, rule),
        "{what}"
    );
    assert_eq!(sent.completion().outcome(), Some(settled), "{what}");
}

/// Whether a kernel that limits locked memory made sends be copied. That is allowed, if it is said.
fn met_a_limit(sent: &Sent) -> bool {
    let steps = sent.report().fallbacks();
    !steps.is_empty() && steps.iter().all(|step| step.errno == Errno::NOBUFS)
}

#[test]
fn every_size_arrives_by_every_mechanism_from_any_address() {
    for family in FAMILIES {
        for &mechanism in for_memory(family) {
            // No more at a time than a user may usually lock.
            let options = SendOptions::default()
                .in_flight_limit(1 << 20)
                .at_limit(LimitAction::Wait);
            let (mut sender, mut peer) = sender(family, &[mechanism], options);
            for size in sizes() {
                for start in [0, 1] {
                    let what = format!("{size} bytes from {start} by {mechanism} to {family:?}");
                    let mut buffer = PageBuffer::zeroed(start + size).unwrap();
                    buffer[start..].copy_from_slice(&content(size));
                    let pages = buffer.freeze();
                    let slice = pages.slice(start..);
                    let sent = std::thread::scope(|scope| {
                        scope.spawn(|| expect_bytes(&mut peer, &content(size)));
                        sender.send(slice).expect(&what)
                    });
                    assert_eq!(sent.bytes(), size as u64, "{what}");
                    if !met_a_limit(&sent) {
                        assert_all_by(sent.report(), mechanism, size as u64, &what);
                        assert_settles(&sent, mechanism, size as u64, &what);
                    }
                    sent.completion().wait(Some(HANG)).expect(&what);
                    // The buffer is whole again, unless its pages belong to the kernel now.
                    let is_gifted = mechanism == Mechanism::Vmsplice && size > 0;
                    assert_eq!(pages.is_permanent(), is_gifted, "{what}");
                    assert_eq!(pages.try_into_buffer().is_err(), is_gifted, "{what}");
                }
            }
            assert_eq!(sender.in_flight_bytes(), 0);
            drop(sender);
            expect_end(&mut peer);
        }
    }
}

/// Many sends before anything is read, each by a handle of the same pages.
#[test]
fn the_same_pages_can_be_sent_again_while_they_are_lent() {
    const SIZE: usize = 10_000;
    let pages = pages_of(SIZE);
    for family in FAMILIES {
        for &mechanism in for_memory(family) {
            let (mut sender, mut peer) = sender(family, &[mechanism], SendOptions::default());
            let sends: Vec<_> = (0..8)
                .map(|at| sender.send(pages.slice(at * 1000..)).unwrap())
                .collect();
            for at in 0..8 {
                expect_bytes(&mut peer, &content(SIZE)[at * 1000..]);
            }
            for (at, sent) in sends.iter().enumerate() {
                let len = (SIZE - at * 1000) as u64;
                assert_settles(sent, mechanism, len, "one of many");
            }
        }
    }
}

/// One try takes what fits, and says how much; the rest goes on from there. The socket is one that does
/// not block: splice(2) knows no other way to ask for that.
#[test]
fn a_try_takes_what_fits() {
    const SIZE: usize = 8 << 20;
    for family in FAMILIES {
        for &mechanism in for_memory(family) {
            let (mut sender, mut peer) =
                narrow_sender(family, &[mechanism], SendOptions::default());
            set_nonblocking(sender.get_ref());
            let pages = pages_of(SIZE);
            let (mut at, mut tries) = (0, Vec::new());
            loop {
                let sent = sender.try_send(pages.slice(at..)).unwrap();
                assert!(sent.bytes() <= 2 << 20, "more than a step");
                if sent.bytes() == 0 {
                    break;
                }
                at += sent.bytes() as usize;
                tries.push(sent);
            }
            assert!(0 < at && at < SIZE, "{mechanism} {family:?}: {at}");
            let rest = pages.slice(at..);
            std::thread::scope(|scope| {
                scope.spawn(|| expect_bytes(&mut peer, &content(SIZE)));
                assert_eq!(sender.send(rest).unwrap().bytes(), (SIZE - at) as u64);
            });
            for sent in tries {
                let settled = sent.completion().wait(Some(HANG)).unwrap();
                assert_eq!(settled.bytes, sent.bytes());
            }
        }
    }
}

/// Where the only mechanism is one that the socket does not have, the send fails and says which.
#[test]
fn what_a_unix_socket_does_not_have_is_an_error_if_it_is_forced() {
    let forced = [Mechanism::MsgZerocopy];
    let (mut only, mut peer) = sender(Family::Unix, &forced, SendOptions::default());
    let error = only.send(pages_of(5000)).unwrap_err();
    assert_eq!((error.kind(), error.moved()), (ErrorKind::Unsupported, 0));

    let forced = [Mechanism::MsgZerocopy, Mechanism::Copy];
    let mut both = uncopied::Sender::with(
        only.into_inner(),
        SendOptions::default().force_mechanisms(&forced),
    );
    let sent = both.send(pages_of(5000)).unwrap();
    assert_eq!(sent.report().by(Mechanism::Copy), 5000);
    let [step] = sent.report().fallbacks() else {
        panic!("{}", sent.report());
    };
    assert_eq!((step.errno, step.at), (Errno::OPNOTSUPP, 0));
    drop(both);
    let mut received = Vec::new();
    peer.read_to_end(&mut received).unwrap();
    assert_eq!(received, content(5000));
}

/// Nobody forces anything: to a peer on this machine pages that cycle are copied, and pages that are
/// frozen for good are not.
#[test]
fn the_plan_lends_no_pages_to_a_peer_on_this_machine_that_it_wants_back() {
    for family in FAMILIES {
        let (mut sender, mut peer) = sender(family, &[], SendOptions::default());
        let size = 100_000;
        let sent = sender.send(pages_of(size)).unwrap();
        assert_all_by(sent.report(), Mechanism::Copy, size as u64, "to be reused");
        expect_bytes(&mut peer, &content(size));

        let buffer = PageBuffer::copy_from_slice(&content(size)).unwrap();
        let sent = sender.send(buffer.freeze_permanently()).unwrap();
        assert_all_by(sent.report(), Mechanism::Vmsplice, size as u64, "for good");
        expect_bytes(&mut peer, &content(size));
    }
}
