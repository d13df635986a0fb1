//! Sends of memory that must not be copied.

use std::net::TcpStream;

use uncopied::{FreeReason, LimitAction, Mechanism, Memory, Report, SendOptions, Sender};

use crate::harness::{HANG_TIMEOUT, expect_bytes, expect_eof, pattern, pattern_pages};
use crate::sides::two_sides;

const SEND_BYTES: usize = 256 << 10;
const SENDS: usize = 64;

/// The most bytes, as a part of all, for which `send_zc` may report a copy that was none. If a send
/// continues the packet of the previous one, which happens to the rest of a send that did not fit
/// into the socket, the kernel links the two notifications (since Linux 6.10), and the second one
/// says "copied" because no packet belongs to it.
const LINKED_PART: u64 = 20;

/// Sends the same memory many times, and asserts that the kernel does not copy it. If `forced` is
/// `None`, the library chooses the mechanism, and must choose `expected`.
fn assert_not_copied(
    socket: TcpStream,
    memory: impl Into<Memory>,
    forced: Option<Mechanism>,
    expected: Mechanism,
) {
    let options = SendOptions::default()
        .force_mechanisms(forced.as_slice())
        .at_limit(LimitAction::Wait);
    let mut sender = Sender::with(socket, options);
    let memory = memory.into();
    let completions: Vec<_> = (0..SENDS)
        .map(|_| sender.send(memory.clone()).unwrap().into_completion())
        .collect();
    for completion in completions {
        let outcome = completion.wait(Some(HANG_TIMEOUT)).unwrap();
        let expected = (SEND_BYTES as u64, FreeReason::Notification);
        assert_eq!((outcome.bytes, outcome.reason), expected);
    }
    assert_report(&sender.report(), expected);
}

fn assert_report(report: &Report, mechanism: Mechanism) {
    let sent = (SENDS * SEND_BYTES) as u64;
    assert_eq!(report.by(mechanism), sent, "{report}");
    assert!(report.fallbacks().is_empty(), "{report}");
    let copied_at_most = match mechanism {
        Mechanism::SendZc => sent / LINKED_PART,
        _ => 0,
    };
    assert!(report.copied_bytes() <= copied_at_most, "{report}");
    assert_eq!(report.zero_copy_bytes() + report.copied_bytes(), sent);
    println!("{report}");
}

fn expect_all(mut socket: TcpStream) {
    for _ in 0..SENDS {
        expect_bytes(&mut socket, &pattern(SEND_BYTES));
    }
    expect_eof(&mut socket);
}

#[test]
fn msg_zerocopy_does_not_copy_pages() {
    let (forced, pages) = (Mechanism::MsgZerocopy, || pattern_pages(SEND_BYTES));
    two_sides(
        |socket| assert_not_copied(socket, pages(), Some(forced), forced),
        expect_all,
    );
}

#[test]
fn msg_zerocopy_does_not_copy_other_bytes() {
    let (forced, bytes) = (Mechanism::MsgZerocopy, || pattern(SEND_BYTES));
    two_sides(
        |socket| assert_not_copied(socket, bytes(), Some(forced), forced),
        expect_all,
    );
}

#[test]
fn send_zc_does_not_copy_pages() {
    let (forced, pages) = (Mechanism::SendZc, || pattern_pages(SEND_BYTES));
    two_sides(
        |socket| assert_not_copied(socket, pages(), Some(forced), forced),
        expect_all,
    );
}

#[test]
fn send_zc_does_not_copy_other_bytes() {
    let (forced, bytes) = (Mechanism::SendZc, || pattern(SEND_BYTES));
    two_sides(
        |socket| assert_not_copied(socket, bytes(), Some(forced), forced),
        expect_all,
    );
}

/// For a peer on another machine, the library itself chooses a mechanism that does not copy.
#[test]
fn the_plan_for_a_remote_peer_does_not_copy() {
    two_sides(
        |socket| {
            let pages = pattern_pages(SEND_BYTES);
            assert_not_copied(socket, pages, None, Mechanism::MsgZerocopy);
        },
        expect_all,
    );
}

#[test]
fn the_plan_for_a_remote_peer_on_tokio_does_not_copy() {
    let send = async |socket: TcpStream| {
        socket.set_nonblocking(true).unwrap();
        let socket = tokio::net::TcpStream::from_std(socket).unwrap();
        let options = SendOptions::default().at_limit(LimitAction::Wait);
        let mut sender = uncopied::tokio::Sender::with(socket, options);
        let pages = pattern_pages(SEND_BYTES);
        let mut completions = Vec::new();
        for _ in 0..SENDS {
            completions.push(sender.send(&pages).await.unwrap().into_completion());
        }
        for completion in completions {
            assert_eq!(completion.await.bytes, SEND_BYTES as u64);
        }
        assert_report(&sender.report(), Mechanism::SendZc);
    };
    two_sides(
        |socket| crate::harness::runtime().block_on(send(socket)),
        expect_all,
    );
}
