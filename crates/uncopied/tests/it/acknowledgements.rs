//! Memory that was sent with `vmsplice` to a peer that is declared to be on another machine is in
//! flight until the peer has acknowledged it.

use std::io::Read;
use std::thread;
use std::time::Duration;

use uncopied::{ErrorKind, Mechanism, SendOptions};

use crate::harness::{
    Family, pattern, pattern_pages, set_nonblocking, small_buffer_sender, unacknowledged_bytes,
    unless_blocked, wait_until,
};

/// The peer reads little by little. At all times, the number of bytes in flight must be at least
/// the number of bytes that the peer has not acknowledged.
#[test]
fn memory_is_in_flight_until_the_peer_has_acknowledged_its_last_byte() {
    // Use short sends, so that sends are released many times while the peer reads. Each of these
    // releases could be too early.
    const SEND_BYTES: usize = 4096;
    let options = SendOptions::default().assume_remote_peer(true);
    let (mut sender, mut peer) = small_buffer_sender(Family::Tcp, &[Mechanism::Vmsplice], options);
    set_nonblocking(sender.get_ref());
    let pages = pattern_pages(SEND_BYTES);
    let mut total = 0;
    while let Some(sent) = unless_blocked(
        sender.try_send(pages.slice(total % SEND_BYTES..)),
        ErrorKind::WouldBlock,
    ) {
        total += sent.bytes() as usize;
    }
    let mut checks = 0;
    let mut check = || {
        sender.reap();
        // Read this number after `reap`, not before. Bytes that are acknowledged between the two
        // calls then only make the number smaller, so they cannot make the assertion fail.
        let unacknowledged = unacknowledged_bytes(sender.get_ref());
        let in_flight = sender.in_flight_bytes();
        assert!(
            in_flight >= unacknowledged,
            "{in_flight} bytes in flight, {unacknowledged} not acknowledged"
        );
        checks += u32::from(unacknowledged > 0);
    };
    thread::sleep(Duration::from_millis(100));
    check();
    let mut received = Vec::new();
    let mut piece = [0; 1000];
    while received.len() < total {
        let count = peer.read(&mut piece).unwrap();
        received.extend_from_slice(&piece[..count]);
        check();
    }
    assert!(checks > 10, "{checks} checks with unacknowledged bytes");
    let expected = pattern(SEND_BYTES);
    assert!(
        received
            .chunks(SEND_BYTES)
            .all(|it| *it == expected[..it.len()])
    );
    // The bytes that the full socket refused are in a pipe. Send them, so that the pipe is empty.
    let rest = sender.try_send(pages.slice(total % SEND_BYTES..)).unwrap();
    peer.read_exact(&mut piece[..rest.bytes() as usize % 1000])
        .unwrap();
    wait_until("nothing in flight", || {
        sender.reap();
        sender.in_flight_bytes() == 0
    });
}
