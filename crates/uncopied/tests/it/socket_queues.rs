//! Limits on the bytes that were sent with `vmsplice` and are still in the queues of their sockets.
//! The sends themselves are complete at once, because their pages are gifted.

use std::fs::File;
use std::os::fd::OwnedFd;

use uncopied::arena::Pages;
use uncopied::{
    FreeReason, LimitAction, Mechanism, SendOptions, Sender, in_flight_bytes,
    set_process_in_flight_limit,
};

use crate::harness::{
    self, FAMILIES, Family, expect_bytes, expect_eof, in_child, in_forked_child, pattern,
    pattern_pages, sender, set_nonblocking, small_buffer_sender, unacknowledged_bytes,
    unless_full_or_at_limit, wait_until,
};

/// The size of a send: a whole number of pages, so that as many bytes are counted as are sent.
const SEND_BYTES: usize = 16 << 10;

/// The limit on bytes in flight: less than the socket buffers hold.
const LIMIT_BYTES: u64 = 4 * SEND_BYTES as u64;

const ACTIONS: [LimitAction; 2] = [LimitAction::Copy, LimitAction::Wait];

/// Returns a sender that uses `vmsplice`, and copies only at a limit.
fn splicing_sender(family: Family, at_limit: LimitAction, limit: u64) -> (Sender<OwnedFd>, File) {
    let options = SendOptions::default()
        .in_flight_limit(limit)
        .at_limit(at_limit);
    let (sender, peer) = sender(family, &[Mechanism::Vmsplice], options);
    set_nonblocking(sender.get_ref());
    (sender, peer)
}

/// Calls [`harness::send_until_full`], and checks that exactly the sends that used `vmsplice`
/// report that their pages are gifted.
fn send_until_full(sender: &mut Sender<OwnedFd>, mut check: impl FnMut(&Sender<OwnedFd>)) -> usize {
    harness::send_until_full(sender, SEND_BYTES, |sender, sent| {
        check(sender);
        let Some(sent) = sent else { return };
        let outcome = sent.completion().outcome().expect("complete at once");
        let is_gifted = sent.report().by(Mechanism::Vmsplice) > 0;
        assert_eq!(outcome.reason == FreeReason::Gifted, is_gifted);
    })
}

/// Reads the bytes that [`send_until_full`] has sent. Then sends the rest of the last send, which
/// may be in a pipe, and reads it too.
fn receive_all(sender: &mut Sender<OwnedFd>, peer: &mut File, total: usize) {
    let whole = pattern(SEND_BYTES);
    for _ in 0..total / SEND_BYTES {
        expect_bytes(peer, &whole);
    }
    let at = total % SEND_BYTES;
    expect_bytes(peer, &whole[..at]);
    wait_until("room for the rest", || {
        let sent = unless_full_or_at_limit(sender.try_send(pattern_pages(SEND_BYTES)));
        sent.is_some_and(|sent| sent.bytes() == SEND_BYTES as u64)
    });
    expect_bytes(peer, &whole);
}

/// A peer that does not read must not keep more memory allocated than the sender's limit allows.
/// The test does not rely on the library's count alone: no byte can have left the queue that the
/// peer has not acknowledged (TCP) or read (Unix).
#[test]
fn a_peer_that_does_not_read_pins_no_more_than_the_limit() {
    for family in FAMILIES {
        for at_limit in ACTIONS {
            let (mut sender, mut peer) = splicing_sender(family, at_limit, LIMIT_BYTES);
            let (mut peak, mut sent) = (0, 0);
            let total = send_until_full(&mut sender, |sender| {
                let acknowledged = match family {
                    Family::Tcp => sent - unacknowledged_bytes(sender.get_ref()).min(sent),
                    Family::Unix => 0,
                };
                let report = sender.report();
                let spliced = report.by(Mechanism::Vmsplice);
                assert!(
                    spliced <= acknowledged + LIMIT_BYTES + SEND_BYTES as u64,
                    "{family:?}, {at_limit:?}: {report}, {acknowledged} acknowledged"
                );
                sent = report.bytes();
                peak = peak.max(sender.in_flight_bytes());
            });
            let case = format!("{family:?}, {at_limit:?}");
            assert!(0 < peak && peak <= LIMIT_BYTES, "{case}: {peak}");
            let report = sender.report();
            let copies = report.by(Mechanism::Copy) > 0;
            assert_eq!(copies, at_limit == LimitAction::Copy, "{case}: {report}");
            assert!(report.fallbacks().is_empty(), "{case}: {report}");
            receive_all(&mut sender, &mut peer, total);
            wait_until("an empty queue", || sender.in_flight_bytes() == 0);
            let sent = sender.try_send(pattern_pages(SEND_BYTES)).unwrap();
            assert_eq!(sent.report().by(Mechanism::Vmsplice), SEND_BYTES as u64);
        }
    }
}

/// Ten peers that do not read must not keep more memory allocated than the limit of the process
/// allows, and this memory must not count any longer once the peers have read everything.
#[test]
fn ten_peers_pin_no_more_than_the_limit_of_the_process() {
    in_child(
        "socket_queues::ten_peers_pin_no_more_than_the_limit_of_the_process",
        |_| {},
        || {
            set_process_in_flight_limit(LIMIT_BYTES);
            for (family, at_limit) in [
                (Family::Unix, LimitAction::Copy),
                (Family::Unix, LimitAction::Wait),
                (Family::Tcp, LimitAction::Copy),
            ] {
                let mut connections: Vec<_> = (0..10)
                    .map(|_| splicing_sender(family, at_limit, 64 << 20))
                    .collect();
                let mut peak = 0;
                let mut check = |_: &Sender<OwnedFd>| peak = peak.max(in_flight_bytes());
                let totals: Vec<_> = connections
                    .iter_mut()
                    .map(|(sender, _)| send_until_full(sender, &mut check))
                    .collect();
                let case = format!("{family:?}, {at_limit:?}");
                assert!(0 < peak && peak <= LIMIT_BYTES, "{case}: {peak}");
                let spliced =
                    |(sender, _): &(Sender<OwnedFd>, File)| sender.report().by(Mechanism::Vmsplice);
                let spliced: u64 = connections.iter().map(spliced).sum();
                assert!(spliced <= LIMIT_BYTES || family == Family::Tcp, "{case}");
                // The senders with room in their pipe or at the limit get it as the peers read.
                for ((sender, peer), total) in connections.iter_mut().zip(totals) {
                    receive_all(sender, peer, total);
                }
                // Nothing but this function reads the queues.
                wait_until("empty queues", || in_flight_bytes() == 0);
            }
        },
    );
}

/// Sends the same page to 500 peers, none of which reads.
fn send_to_500_peers(pages: &Pages, at_limit: LimitAction) -> Vec<(Sender<OwnedFd>, File, u64)> {
    let connections = (0..500).map(|_| {
        let (mut sender, peer) = splicing_sender(Family::Unix, at_limit, LIMIT_BYTES);
        let sent = unless_full_or_at_limit(sender.try_send(pages));
        let spliced = sent.map_or(0, |sent| sent.report().by(Mechanism::Vmsplice));
        (sender, peer, spliced)
    });
    connections.collect()
}

/// A page that is sent to many peers is in memory once, so it must count once for the process. It
/// counts for each of the senders.
#[test]
fn a_page_that_500_peers_do_not_read_counts_once_for_the_process() {
    in_child(
        "socket_queues::a_page_that_500_peers_do_not_read_counts_once_for_the_process",
        |_| {},
        || {
            const PAGE_BYTES: u64 = 4096;
            set_process_in_flight_limit(2 * PAGE_BYTES);
            for at_limit in ACTIONS {
                let pages = pattern_pages(PAGE_BYTES as usize);
                let connections = send_to_500_peers(&pages, at_limit);
                for (sender, _, spliced) in &connections {
                    assert_eq!(
                        (sender.in_flight_bytes(), *spliced),
                        (PAGE_BYTES, PAGE_BYTES)
                    );
                }
                assert_eq!(in_flight_bytes(), PAGE_BYTES, "{at_limit:?}");

                // There is room for one other page.
                let others = [(); 2].map(|()| {
                    let (mut sender, peer) = splicing_sender(Family::Unix, at_limit, LIMIT_BYTES);
                    let page = pattern_pages(PAGE_BYTES as usize);
                    let sent = unless_full_or_at_limit(sender.try_send(page));
                    let spliced = sent.map_or(0, |sent| sent.report().by(Mechanism::Vmsplice));
                    (sender, peer, spliced)
                });
                assert_eq!([others[0].2, others[1].2], [PAGE_BYTES, 0], "{at_limit:?}");
                assert_eq!(in_flight_bytes(), 2 * PAGE_BYTES);

                let [mut first, second] = others;
                drop(second);
                expect_bytes(&mut first.1, &pattern(PAGE_BYTES as usize));
                let mut left = connections.into_iter();
                let (_sender, mut peer, _) = left.next().unwrap();
                drop(left);
                wait_until("the end of all queues but one", || {
                    in_flight_bytes() == PAGE_BYTES
                });
                expect_bytes(&mut peer, &pattern(PAGE_BYTES as usize));
                wait_until("empty queues", || in_flight_bytes() == 0);
            }
        },
    );
}

/// The sends of two parts of a buffer count as much memory as both parts, and no more than the
/// buffer.
#[test]
fn parts_of_a_buffer_count_at_most_its_length() {
    in_child(
        "socket_queues::parts_of_a_buffer_count_at_most_its_length",
        |_| {},
        || {
            let pages = pattern_pages(SEND_BYTES);
            let mut connections = Vec::new();
            for (part, expected) in [
                (0..4096, 4096),
                (8192..12_288, 8192),
                (4095..4097, 2 * 8192),
                (0..SEND_BYTES, SEND_BYTES as u64),
            ] {
                let (mut sender, peer) =
                    splicing_sender(Family::Unix, LimitAction::Wait, LIMIT_BYTES);
                sender.try_send(pages.slice(part)).unwrap();
                connections.push((sender, peer));
                assert_eq!(in_flight_bytes(), expected.min(SEND_BYTES as u64));
            }
            drop(connections);
            wait_until("empty queues", || in_flight_bytes() == 0);
        },
    );
}

/// The memory of a peer that closes its socket without reading must not count any longer.
#[test]
fn a_closed_peer_pins_nothing() {
    for family in FAMILIES {
        let (mut sender, peer) = splicing_sender(family, LimitAction::Wait, LIMIT_BYTES);
        send_until_full(&mut sender, |_| {});
        assert!(sender.in_flight_bytes() > 0);
        drop(peer);
        // What the socket has not accepted is in a pipe, which is dropped with the sender.
        wait_until("an empty queue", || {
            sender.in_flight_bytes() <= SEND_BYTES as u64
        });
    }
}

/// A sender is dropped while its bytes are in the queue. They must count until the peer has read
/// them, which the library's reaper finds out. The peer must then see the end of the stream.
#[test]
fn bytes_of_a_dropped_sender_count_until_they_are_read() {
    in_child(
        "socket_queues::bytes_of_a_dropped_sender_count_until_they_are_read",
        |_| {},
        || {
            for family in FAMILIES {
                let (mut sender, mut peer) =
                    splicing_sender(family, LimitAction::Wait, LIMIT_BYTES);
                let total = send_until_full(&mut sender, |_| {});
                drop(sender);
                assert!(in_flight_bytes() > 0, "{family:?}: forgotten too early");
                for _ in 0..total / SEND_BYTES {
                    expect_bytes(&mut peer, &pattern(SEND_BYTES));
                }
                expect_bytes(&mut peer, &pattern(total % SEND_BYTES));
                expect_eof(&mut peer);
                wait_until("an empty queue", || in_flight_bytes() == 0);
            }
        },
    );
}

/// A sender whose peer is declared to be on another machine is dropped before the peer has
/// acknowledged its bytes. Their pages are then gifted, and must count until they have left the
/// queue.
#[test]
fn unacknowledged_bytes_of_a_dropped_sender_count_until_they_are_acknowledged() {
    in_child(
        "socket_queues::unacknowledged_bytes_of_a_dropped_sender_count_until_they_are_acknowledged",
        |_| {},
        || {
            let options = SendOptions::default().assume_remote_peer(true);
            let plan = [Mechanism::Vmsplice];
            let (mut sender, mut peer) = small_buffer_sender(Family::Tcp, &plan, options);
            set_nonblocking(sender.get_ref());
            let mut total = 0;
            let mut send = || sender.try_send(pattern_pages(SEND_BYTES));
            while let Some(sent) = unless_full_or_at_limit(send()) {
                total += sent.bytes() as usize;
            }
            drop(sender);
            assert!(in_flight_bytes() > 0, "forgotten too early");
            std::io::Read::read_exact(&mut peer, &mut vec![0; total]).unwrap();
            expect_eof(&mut peer);
            wait_until("an empty queue", || in_flight_bytes() == 0);
        },
    );
}

/// Nothing notifies a sender that waits at the limit when bytes leave its queue. It must find that
/// out, and go on.
#[test]
fn a_sender_that_waits_at_the_limit_goes_on_when_the_peer_reads() {
    const SENDS: usize = 40;
    for family in FAMILIES {
        let (mut sender, mut peer) = splicing_sender(family, LimitAction::Wait, LIMIT_BYTES);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..SENDS {
                    expect_bytes(&mut peer, &pattern(SEND_BYTES));
                }
            });
            for _ in 0..SENDS {
                let sent = sender.send(pattern_pages(SEND_BYTES)).unwrap();
                assert_eq!(sent.report().by(Mechanism::Vmsplice), SEND_BYTES as u64);
            }
        });
    }
}

/// The same on tokio, where a task waits for a notification if one will arrive. None arrives for
/// bytes in the queue.
#[cfg(feature = "tokio")]
#[test]
fn a_task_that_waits_at_the_limit_goes_on_when_the_peer_reads() {
    use crate::harness::{HANG_TIMEOUT, socket_pair};

    const SENDS: usize = 40;
    let (socket, mut peer) = socket_pair(Family::Unix);
    let reading = std::thread::spawn(move || {
        for _ in 0..SENDS {
            expect_bytes(&mut peer, &pattern(SEND_BYTES));
        }
        expect_eof(&mut peer);
    });
    crate::harness::runtime().block_on(async {
        set_nonblocking(&socket);
        let socket = tokio::net::UnixStream::from_std(socket.into()).unwrap();
        let options = SendOptions::default()
            .in_flight_limit(LIMIT_BYTES)
            .at_limit(LimitAction::Wait)
            .force_mechanisms(&[Mechanism::Vmsplice]);
        let mut sender = uncopied::tokio::Sender::with(socket, options);
        let sending = async {
            for _ in 0..SENDS {
                let sent = sender.send(pattern_pages(SEND_BYTES)).await.unwrap();
                assert_eq!(sent.report().by(Mechanism::Vmsplice), SEND_BYTES as u64);
            }
        };
        tokio::time::timeout(HANG_TIMEOUT, sending).await.unwrap();
    });
    reading.join().unwrap();
}

/// The socket is also written to without the sender, so the queue is never short: the bytes must
/// nevertheless stop counting once the peer has acknowledged them.
#[test]
fn bytes_in_front_of_those_of_others_stop_counting() {
    let (mut sender, mut peer) = splicing_sender(Family::Tcp, LimitAction::Wait, LIMIT_BYTES);
    sender.try_send(pattern_pages(SEND_BYTES)).unwrap();
    let mut others = Sender::with(
        sender.get_ref().try_clone().unwrap(),
        SendOptions::default().force_mechanisms(&[Mechanism::Copy]),
    );
    let mut fill = || {
        let mut send = || others.try_send(pattern_pages(1 << 20));
        while unless_full_or_at_limit(send()).is_some() {}
    };
    fill();
    // The first look at the queue finds out where the bytes are.
    assert_eq!(sender.in_flight_bytes(), SEND_BYTES as u64);
    expect_bytes(&mut peer, &pattern(SEND_BYTES));
    wait_until("the acknowledgement of the first bytes", || {
        let is_over = sender.in_flight_bytes() == 0;
        let mut some = [0; 64 << 10];
        std::io::Read::read_exact(&mut peer, &mut some).unwrap();
        fill();
        assert!(unacknowledged_bytes(sender.get_ref()) > 0);
        is_over
    });
}

/// At the limit, the sender copies, so the queue is never empty. The bytes that the sender copies
/// must nevertheless show that the bytes in front of them have been read.
#[test]
fn copied_bytes_show_that_those_in_front_of_them_have_left() {
    for family in FAMILIES {
        let limit = SEND_BYTES as u64;
        let (mut sender, mut peer) = splicing_sender(family, LimitAction::Copy, limit);
        let mut sent = send_until_full(&mut sender, |_| {});
        let first_spliced = sender.report().by(Mechanism::Vmsplice);
        let mut received = 0;
        wait_until("another send without a copy", || {
            let bytes = SEND_BYTES.min(sent - received);
            std::io::Read::read_exact(&mut peer, &mut vec![0; bytes]).unwrap();
            received += bytes;
            sent += send_until_full(&mut sender, |_| {});
            assert!(unacknowledged_bytes(sender.get_ref()) > 0);
            sender.report().by(Mechanism::Vmsplice) > first_spliced
        });
    }
}

/// The bytes in the queue when a process forks count only for the parent, and a child that uses its
/// copy of the sender counts only its own.
#[test]
fn a_child_counts_only_what_it_sends() {
    in_child(
        "socket_queues::a_child_counts_only_what_it_sends",
        |_| {},
        || {
            let (mut sender, mut peer) =
                splicing_sender(Family::Unix, LimitAction::Wait, LIMIT_BYTES);
            let pages = pattern_pages(SEND_BYTES);
            sender.try_send(&pages).unwrap();
            let mut sender = Some(sender);
            in_forked_child(|| {
                let mut sender = sender.take().unwrap();
                assert_eq!((sender.in_flight_bytes(), in_flight_bytes()), (0, 0));
                sender.try_send(&pages).unwrap();
                let own = SEND_BYTES as u64;
                assert_eq!((sender.in_flight_bytes(), in_flight_bytes()), (own, own));
            });
            let sender = sender.unwrap();
            let own = SEND_BYTES as u64;
            assert_eq!((sender.in_flight_bytes(), in_flight_bytes()), (own, own));
            expect_bytes(&mut peer, &pattern(SEND_BYTES));
            expect_bytes(&mut peer, &pattern(SEND_BYTES));
            wait_until("an empty queue", || in_flight_bytes() == 0);
            drop(sender);
            expect_eof(&mut peer);
        },
    );
}
