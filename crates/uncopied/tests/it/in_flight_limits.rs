//! How much may be lent, when the peer does not read.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use uncopied::arena::Pages;
use uncopied::{
    ErrorKind, LimitAction, Mechanism, SendOptions, Sender, in_flight_bytes,
    set_process_in_flight_limit,
};

use crate::harness::{
    Family, HANG, assert_all_by, content, expect_bytes, expect_end, in_child, pages_of, sender,
    until,
};

/// What is sent at a time: whole pages, so that it counts as what it is.
const SHARE: usize = 32 << 10;

/// What may be lent, much less than a socket takes by itself.
const QUOTA: u64 = 4 * SHARE as u64;

fn lender(at_limit: LimitAction, in_flight_limit: u64) -> (Sender<OwnedFd>, File) {
    let options = SendOptions::default()
        .in_flight_limit(in_flight_limit)
        .at_limit(at_limit);
    sender(Family::Tcp, &[Mechanism::MsgZerocopy], options)
}

/// Sends until the socket takes no more: how many bytes it took. `check` looks after each.
fn fill(
    sender: &mut Sender<OwnedFd>,
    pages: &Pages,
    mut check: impl FnMut(&Sender<OwnedFd>),
) -> usize {
    let mut taken = 0;
    loop {
        // From where the last try ended, so that the stream is `pages` again and again.
        let sent = sender.try_send(pages.slice(taken % SHARE..)).unwrap();
        check(sender);
        if sent.bytes() == 0 {
            return taken;
        }
        taken += sent.bytes() as usize;
    }
}

fn expect_shares(peer: &mut File, mut bytes: usize) {
    let share = content(SHARE);
    while bytes > 0 {
        let now = bytes.min(SHARE);
        expect_bytes(peer, &share[..now]);
        bytes -= now;
    }
}

/// A peer that stops reading cannot keep more than the sender may lend: what lies beyond is copied.
/// Others are not held up.
#[test]
fn what_lies_beyond_the_quota_is_copied() {
    let (mut stuck, mut peer) = lender(LimitAction::Copy, QUOTA);
    let pages = pages_of(SHARE);
    let mut most = 0;
    let taken = fill(&mut stuck, &pages, |sender| {
        most = most.max(sender.in_flight_bytes())
    });
    assert!(0 < most && most <= QUOTA, "{most} bytes were lent");
    let report = stuck.report();
    assert_eq!(report.bytes(), taken as u64);
    assert!(report.by(Mechanism::Copy) > 0, "{report}");
    assert!(report.fallbacks().is_empty(), "{report}");

    let (mut other, mut reader) = lender(LimitAction::Copy, QUOTA);
    for _ in 0..20 {
        let sent = other.send(pages.clone()).unwrap();
        expect_bytes(&mut reader, &content(SHARE));
        sent.completion().wait(Some(HANG)).unwrap();
        assert_all_by(sent.report(), Mechanism::MsgZerocopy, SHARE as u64, "other");
    }

    expect_shares(&mut peer, taken);
    until("everything back", || {
        stuck.reap();
        stuck.in_flight_bytes() == 0
    });
    pages.try_into_buffer().expect("nobody has them any more");
}

/// Where it is to wait instead, a peer that does not read meets the send time-out, the error counts, and
/// the sender goes on from there.
#[test]
fn what_waits_for_the_quota_times_out_with_the_count() {
    let (mut sender, mut peer) = lender(LimitAction::Wait, QUOTA);
    let patience = Some(Duration::from_millis(200));
    set_socket_timeout(sender.get_ref(), Timeout::Send, patience).unwrap();
    // The peer acknowledges what fits into its buffer, and the rest is lent for good.
    let (mut taken, mut most) = (0, 0);
    let error = loop {
        match sender.send(pages_of(SHARE)) {
            Ok(sent) => taken += sent.bytes(),
            Err(error) => break error,
        }
        most = most.max(sender.in_flight_bytes());
        assert!(taken < 1 << 30, "it never waits");
    };
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    taken += error.moved();
    assert!(0 < most && most <= QUOTA, "{most} bytes were lent");
    let report = sender.report();
    assert_all_by_lending(&sender, taken);
    assert_eq!(report.bytes(), taken);

    // One that may wait for longer, as the peer reads.
    set_socket_timeout(sender.get_ref(), Timeout::Send, Some(HANG)).unwrap();
    let more = pages_of(SHARE).slice(taken as usize % SHARE..);
    let all = taken as usize + more.len() + 50 * SHARE;
    std::thread::scope(|scope| {
        scope.spawn(|| expect_shares(&mut peer, all));
        let first = sender.send(more).unwrap();
        for _ in 0..50 {
            assert_eq!(sender.send(pages_of(SHARE)).unwrap().bytes(), SHARE as u64);
            assert!(sender.in_flight_bytes() <= QUOTA);
        }
        first.completion().wait(Some(HANG)).unwrap();
    });
    assert_all_by_lending(&sender, all as u64);
    drop(sender);
    expect_end(&mut peer);
}

fn assert_all_by_lending(sender: &Sender<OwnedFd>, bytes: u64) {
    let report = sender.report();
    assert_eq!(report.by(Mechanism::MsgZerocopy), bytes, "{report}");
    assert!(report.fallbacks().is_empty(), "{report}");
}

/// A try does not wait: it takes nothing.
#[test]
fn a_try_beyond_the_quota_takes_nothing() {
    let (mut sender, mut peer) = lender(LimitAction::Wait, QUOTA);
    let pages = pages_of(SHARE);
    let taken = fill(&mut sender, &pages, |sender| {
        assert!(sender.in_flight_bytes() <= QUOTA)
    });
    // The socket would take more.
    let mut copying = Sender::with(
        sender.get_ref().try_clone().unwrap(),
        SendOptions::default().force_mechanisms(&[Mechanism::Copy]),
    );
    let rest = pages.slice(taken % SHARE..);
    assert!(copying.try_send(&rest).unwrap().bytes() > 0);
    expect_shares(&mut peer, taken);
    until("the quota", || sender.try_send(&pages).unwrap().bytes() > 0);
}

/// What all senders together may lend. It is the process's: in one of its own.
#[test]
fn all_senders_together_lend_no_more_than_the_process_may() {
    in_child(
        "memory_quota::all_senders_together_lend_no_more_than_the_process_may",
        |_| {},
        || {
            set_process_in_flight_limit(QUOTA);
            let pages = pages_of(SHARE);
            let mut senders: Vec<_> = (0..4)
                .map(|_| lender(LimitAction::Copy, 64 << 20))
                .collect();
            let mut taken = Vec::new();
            for (sender, _) in &mut senders {
                taken.push(fill(sender, &pages, |_| {
                    assert!(in_flight_bytes() <= QUOTA)
                }));
            }
            assert!(in_flight_bytes() > 0);
            let sum: u64 = senders
                .iter()
                .map(|(sender, _)| sender.in_flight_bytes())
                .sum();
            assert_eq!(sum, in_flight_bytes());
            for ((sender, peer), taken) in senders.iter_mut().zip(taken) {
                let report = sender.report();
                assert_eq!(report.bytes(), taken as u64);
                expect_shares(peer, taken);
            }
            until("everything back", || {
                for (sender, _) in &senders {
                    sender.reap();
                }
                in_flight_bytes() == 0
            });
        },
    );
}

/// What idle senders have had back is lent again, also if they do not look.
#[test]
fn an_idle_sender_does_not_keep_what_came_back() {
    in_child(
        "memory_quota::an_idle_sender_does_not_keep_what_came_back",
        |_| {},
        || {
            set_process_in_flight_limit(QUOTA);
            let (mut idle, mut reader) = lender(LimitAction::Wait, 64 << 20);
            let taken = fill(&mut idle, &pages_of(SHARE), |_| {});
            let (mut waiting, mut peer) = lender(LimitAction::Wait, 64 << 20);
            let nothing = waiting.try_send(pages_of(SHARE)).unwrap();
            assert_eq!(nothing.bytes(), 0, "the other has lent it all");

            expect_shares(&mut reader, taken);
            set_socket_timeout(waiting.get_ref(), Timeout::Send, Some(HANG / 4)).unwrap();
            let sent = waiting.send(pages_of(SHARE)).unwrap();
            assert_all_by(sent.report(), Mechanism::MsgZerocopy, SHARE as u64, "lent");
            expect_bytes(&mut peer, &content(SHARE));
        },
    );
}
