//! Receiving into memory: what the kernel maps and what it copies, the end of the stream, errors,
//! timeouts, and sockets from which nothing can be mapped.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;
use rustix::net::{RecvFlags, SendFlags};
use rustix::time::{ClockId, clock_gettime};
use uncopied::{
    Chunk, ErrorKind, MapObstacle, Mechanism, PagePayload, ReceiveOptions, Receiver, Report,
    SendOptions, Sender, set_zero_copy_receive, zero_copy_receive_enabled,
};

use crate::harness::{HANG_TIMEOUT, expect_bytes, in_child, pattern, pattern_pages, wait_until};
use crate::sockets::tcp_pair;

const MAPPING: [Mechanism; 2] = [Mechanism::MapReceive, Mechanism::Copy];

/// Returns two connected sockets over which payloads are whole pages.
pub(crate) fn page_pair() -> (TcpStream, TcpStream) {
    let listener = PagePayload::new(1).unwrap().bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (listener.accept().unwrap().0, peer)
}

/// Returns a sender whose bytes can be mapped by a receiver on this machine: the kernel copies them
/// to pages of its own.
pub(crate) fn zero_copy_sender(socket: TcpStream) -> Sender<TcpStream> {
    let options = SendOptions::default().force_mechanisms(&[Mechanism::MsgZerocopy]);
    Sender::with(socket, options)
}

/// Options with which the receiver maps from the first chunk on.
pub(crate) fn mapping() -> ReceiveOptions {
    ReceiveOptions::default().force_mechanisms(&MAPPING)
}

/// Receives up to the end of the stream.
fn receive_all(receiver: &mut Receiver<TcpStream>) -> Vec<u8> {
    let mut received = Vec::new();
    while let Some(chunk) = receiver.receive().unwrap() {
        assert!(!chunk.is_empty());
        assert_eq!(chunk.mapped_bytes() + chunk.copied_bytes(), chunk.len());
        received.extend(chunk.to_vec());
    }
    let report = receiver.report();
    assert_eq!(report.bytes(), received.len() as u64, "{report}");
    received
}

/// A stream that a sender sends as fast as its receiver reads, so that it does not fill the receive
/// window. (The last packet that fits into the window is often shorter, and does not fill pages.)
struct PacedStream {
    received: AtomicUsize,
}

impl PacedStream {
    const BYTES: usize = 64 << 20;
    const MAX_AHEAD: usize = 128 << 10;
    const SEND_BYTES: usize = 64 << 10;

    fn new() -> Arc<Self> {
        Arc::new(Self {
            received: AtomicUsize::new(0),
        })
    }

    /// Starts to send the stream with `MSG_ZEROCOPY`.
    fn send(self: &Arc<Self>, peer: TcpStream) -> JoinHandle<()> {
        let stream = Arc::clone(self);
        thread::spawn(move || {
            let mut sender = zero_copy_sender(peer);
            let pages = pattern_pages(Self::SEND_BYTES);
            for sent in (0..Self::BYTES).step_by(Self::SEND_BYTES) {
                wait_until("the receiver goes on", || {
                    sent - stream.received.load(Ordering::Relaxed) < Self::MAX_AHEAD
                });
                sender.send(&pages).unwrap();
            }
        })
    }

    /// Asserts that the chunk has the next bytes of the stream.
    fn check(&self, chunk: &Chunk) {
        let mut at = self.received.load(Ordering::Relaxed);
        let expected = pattern(Self::SEND_BYTES);
        // SAFETY: the peer is in this process, and has sent memory that never changes.
        for mut bytes in unsafe { chunk.slices() } {
            while !bytes.is_empty() {
                let start = at % expected.len();
                let len = bytes.len().min(expected.len() - start);
                assert!(bytes[..len] == expected[start..start + len], "at {at}");
                bytes = &bytes[len..];
                at += len;
            }
        }
        self.received.store(at, Ordering::Relaxed);
    }

    fn assert_complete(&self, report: &Report) {
        assert_eq!(self.received.load(Ordering::Relaxed), Self::BYTES);
        assert_eq!(report.bytes(), Self::BYTES as u64, "{report}");
        let percent = report.zero_copy_percent().unwrap();
        assert!(percent >= 99.0, "{percent} % mapped: {report}");
        println!("{report}");
    }
}

/// Sends `sends` times `bytes` with `MSG_ZEROCOPY`.
fn send_repeatedly(peer: TcpStream, bytes: usize, sends: usize) {
    let mut sender = zero_copy_sender(peer);
    let pages = pattern_pages(bytes);
    for _ in 0..sends {
        sender.send(&pages).unwrap();
    }
}

const SEND_BYTES: usize = 256 << 10;

#[test]
fn nearly_all_bytes_of_a_zero_copy_sender_are_mapped() {
    let (socket, peer) = page_pair();
    let stream = PacedStream::new();
    let sending = stream.send(peer);
    let mut receiver = Receiver::with(socket, ReceiveOptions::default().low_water_mark(32 << 10));
    while let Some(chunk) = receiver.receive().unwrap() {
        stream.check(&chunk);
    }
    sending.join().unwrap();
    stream.assert_complete(receiver.report());
    assert_eq!(receiver.map_obstacle(), None);
}

#[cfg(feature = "tokio")]
#[test]
fn nearly_all_bytes_are_mapped_on_tokio() {
    let (socket, peer) = page_pair();
    let stream = PacedStream::new();
    let sending = stream.send(peer);
    crate::harness::runtime().block_on(async {
        socket.set_nonblocking(true).unwrap();
        let socket = tokio::net::TcpStream::from_std(socket).unwrap();
        let (reading, _writing) = socket.into_split();
        let options = ReceiveOptions::default().low_water_mark(32 << 10);
        let mut receiver = uncopied::tokio::Receiver::with(reading, options);
        loop {
            // Many calls are dropped before they are ready, and must lose nothing.
            let limit = Duration::from_micros(100);
            match tokio::time::timeout(limit, receiver.receive()).await {
                Err(_) => {}
                Ok(Ok(Some(chunk))) => stream.check(&chunk),
                Ok(Ok(None)) => break,
                Ok(Err(error)) => panic!("{error}"),
            }
        }
        stream.assert_complete(receiver.report());
    });
    sending.join().unwrap();
}

/// The plan tries to map, finds that nothing can be mapped, and then copies.
#[test]
fn the_plan_copies_what_cannot_be_mapped() {
    const SENDS: usize = 128;
    for (pair, obstacle) in [
        (
            page_pair as fn() -> (TcpStream, TcpStream),
            MapObstacle::SameMachine,
        ),
        (tcp_pair, MapObstacle::PartialPages { payload: 65_483 }),
    ] {
        let (socket, mut peer) = pair();
        let sending = thread::spawn(move || {
            for _ in 0..SENDS {
                peer.write_all(&pattern(SEND_BYTES)).unwrap();
            }
        });
        let options = ReceiveOptions::default().low_water_mark(32 << 10);
        let mut receiver = Receiver::with(socket, options);
        let received = receive_all(&mut receiver);
        sending.join().unwrap();
        assert!(received == pattern(SEND_BYTES).repeat(SENDS));
        assert_eq!(receiver.report().zero_copy_bytes(), 0);
        assert_eq!(receiver.map_obstacle(), Some(obstacle), "{receiver:?}");
        assert!(!obstacle.to_string().is_empty());
    }
}

#[test]
fn short_chunks_are_copied() {
    let (socket, mut peer) = page_pair();
    let mut receiver = Receiver::new(socket);
    for _ in 0..100 {
        peer.write_all(b"a few bytes").unwrap();
        let chunk = receiver.receive().unwrap().unwrap();
        assert_eq!(chunk.to_vec(), b"a few bytes");
    }
    assert_eq!(receiver.report().by(Mechanism::Copy), 1100);
    assert_eq!(receiver.map_obstacle(), Some(MapObstacle::ShortChunks));

    let forced = ReceiveOptions::default().force_mechanisms(&[Mechanism::Copy]);
    let mut receiver = Receiver::with(receiver.into_inner(), forced);
    peer.write_all(b"a few bytes").unwrap();
    receiver.receive().unwrap().unwrap();
    assert_eq!(receiver.map_obstacle(), Some(MapObstacle::NotForced));
}

#[test]
fn a_unix_socket_is_received_from_with_copy() {
    let (socket, mut peer) = UnixStream::pair().unwrap();
    let mut receiver = Receiver::with(&socket, ReceiveOptions::default().low_water_mark(1));
    peer.write_all(b"hello").unwrap();
    assert_eq!(receiver.receive().unwrap().unwrap().to_vec(), b"hello");
    assert_eq!(receiver.report().by(Mechanism::Copy), 5);
    assert_eq!(receiver.map_obstacle(), Some(MapObstacle::NotTcp));

    // The kernel refuses to map.
    peer.write_all(b"hello").unwrap();
    let mut receiver = Receiver::with(&socket, mapping());
    assert_eq!(receiver.receive().unwrap().unwrap().to_vec(), b"hello");
    let fallbacks = receiver.report().fallbacks();
    assert_eq!((fallbacks.len(), fallbacks[0].at), (1, 0), "{fallbacks:?}");

    let forced = ReceiveOptions::default().force_mechanisms(&[Mechanism::MapReceive]);
    let mut receiver = Receiver::with(&socket, forced);
    let error = receiver.receive().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}

#[test]
fn descriptors_that_are_no_stream_sockets_are_refused() {
    let file: OwnedFd = File::open("Cargo.toml").unwrap().into();
    let datagrams: OwnedFd = UdpSocket::bind("127.0.0.1:0").unwrap().into();
    for descriptor in [file, datagrams] {
        let mut receiver = Receiver::with(descriptor, mapping());
        let error = receiver.receive().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotAStreamSocket, "{error}");
    }
    let listener: OwnedFd = TcpListener::bind("127.0.0.1:0").unwrap().into();
    for options in [ReceiveOptions::default(), mapping()] {
        let mut receiver = Receiver::with(&listener, options);
        let error = receiver.receive().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotConnected, "{error}");
    }
}

/// The bytes that arrived before a reset are returned, and then the error.
#[test]
fn a_reset_is_an_error_after_the_last_byte() {
    for options in [ReceiveOptions::default(), mapping()] {
        let (socket, mut peer) = page_pair();
        let mut receiver = Receiver::with(socket, options);
        peer.write_all(&pattern(10_000)).unwrap();
        let mut received = Vec::new();
        while received.len() < 10_000 {
            received.extend(receiver.receive().unwrap().unwrap().to_vec());
        }
        set_socket_linger(&peer, Some(Duration::ZERO)).unwrap();
        drop(peer);
        let error = receiver.receive().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PeerClosed, "{error}");
        assert!(received == pattern(10_000));
        // As with `read(2)`, the error is reported once, and then the end.
        assert!(receiver.receive().unwrap().is_none());
    }
}

#[test]
fn the_end_of_the_stream_is_reported_again_and_again() {
    for options in [ReceiveOptions::default(), mapping()] {
        let (socket, mut peer) = page_pair();
        peer.write_all(&pattern(5000)).unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        let mut receiver = Receiver::with(socket, options);
        assert!(receive_all(&mut receiver) == pattern(5000));
        for _ in 0..3 {
            assert!(receiver.receive().unwrap().is_none());
            assert!(receiver.try_receive().unwrap().is_none());
        }
    }
}

/// The kernel maps bytes up to urgent data, and then reports that nothing is there, although more
/// bytes follow. As with `read(2)`, the urgent byte itself is left out.
#[test]
fn urgent_data_does_not_stop_a_receiver() {
    for options in [ReceiveOptions::default(), mapping()] {
        let (socket, mut peer) = page_pair();
        let mut receiver = Receiver::with(socket, options);
        peer.write_all(&pattern(9000)).unwrap();
        rustix::net::send(&peer, b"!", SendFlags::OOB).unwrap();
        peer.write_all(&pattern(9000)).unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        assert!(receive_all(&mut receiver) == pattern(9000).repeat(2));
    }
}

#[test]
fn a_receive_timeout_ends_the_wait() {
    const TIMEOUT: Duration = Duration::from_millis(50);
    for options in [ReceiveOptions::default(), mapping()] {
        for nonblocking in [false, true] {
            let (socket, mut peer) = page_pair();
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
            socket.set_nonblocking(nonblocking).unwrap();
            let mut receiver = Receiver::with(socket, options.clone());
            let began = Instant::now();
            let error = receiver.receive().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
            assert!(error.to_string().contains("receive timeout"), "{error}");
            assert!(began.elapsed() >= TIMEOUT.mul_f32(0.9));
            assert!(began.elapsed() < TIMEOUT * 20);

            peer.write_all(b"later").unwrap();
            assert_eq!(receiver.receive().unwrap().unwrap().to_vec(), b"later");
        }
    }
}

#[test]
fn try_receive_does_not_wait() {
    for options in [ReceiveOptions::default(), mapping()] {
        let (socket, mut peer) = page_pair();
        let mut receiver = Receiver::with(socket, options);
        let error = receiver.try_receive().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
        peer.write_all(b"hello").unwrap();
        assert_eq!(receiver.receive().unwrap().unwrap().to_vec(), b"hello");
        let error = receiver.try_receive().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
    }
}

/// A receiver waits until as many bytes have arrived as it was told, or until the stream ends.
#[test]
fn a_low_water_mark_gathers_bytes() {
    const MARK: usize = 32 << 10;
    for options in [ReceiveOptions::default(), mapping()] {
        for waits in [false, true] {
            let (socket, mut peer) = page_pair();
            let mut receiver = Receiver::with(socket, options.clone().low_water_mark(MARK));
            let sending = thread::spawn(move || {
                for _ in 0..20 {
                    peer.write_all(&pattern(4096)).unwrap();
                    thread::sleep(Duration::from_millis(1));
                }
            });
            let mut lengths = Vec::new();
            loop {
                match waits {
                    true => match receiver.receive().unwrap() {
                        Some(chunk) => lengths.push(chunk.len()),
                        None => break,
                    },
                    false => match receiver.try_receive() {
                        Ok(Some(chunk)) => lengths.push(chunk.len()),
                        Ok(None) => break,
                        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                    },
                }
            }
            sending.join().unwrap();
            assert_eq!(lengths.iter().sum::<usize>(), 20 * 4096);
            lengths.pop();
            assert!(
                lengths.iter().all(|&len| len >= MARK),
                "{waits} {lengths:?}"
            );
        }
    }
}

/// Receives at least `bytes`.
fn receive_bytes(receiver: &mut Receiver<TcpStream>, bytes: usize) -> Vec<u8> {
    let mut received = Vec::new();
    while received.len() < bytes {
        received.extend(receiver.receive().unwrap().unwrap().to_vec());
    }
    received
}

fn assert_closed(mut peer: &TcpStream) {
    peer.set_read_timeout(Some(HANG_TIMEOUT)).unwrap();
    assert_eq!(peer.read(&mut [0]).unwrap(), 0, "the socket is closed");
}

/// A window that stayed mapped would keep the old socket open: one that is free, one without bytes,
/// and one with a chunk that is dropped later.
#[test]
fn a_replaced_socket_is_closed() {
    for holds_chunk in [false, true] {
        for is_mapped in [false, true] {
            let (socket, mut peer) = page_pair();
            let (second, mut second_peer) = page_pair();
            let mut receiver = Receiver::with(socket, mapping());
            match is_mapped {
                true => send_repeatedly(peer.try_clone().unwrap(), SEND_BYTES, 1),
                false => peer.write_all(b"not mapped").unwrap(),
            }
            let chunk = receiver.receive().unwrap().unwrap();
            assert_eq!(chunk.mapped_bytes() > 0, is_mapped);
            let held = holds_chunk.then_some(chunk);
            drop(std::mem::replace(receiver.get_mut(), second));
            second_peer.write_all(b"new").unwrap();
            assert_eq!(receive_bytes(&mut receiver, 3), b"new");
            drop(held);
            assert_closed(&peer);
        }
    }
}

/// The options hold for the new socket, and an error of the old one does not.
#[test]
fn a_socket_that_replaces_another_is_received_from_in_the_same_way() {
    const MARK: usize = 32 << 10;
    let (socket, _peer) = UnixStream::pair().unwrap();
    let mut receiver: Receiver<OwnedFd> = Receiver::with(
        socket.into(),
        ReceiveOptions::default().low_water_mark(MARK),
    );
    let (second, peer) = page_pair();
    *receiver.get_mut() = second.into();
    let sending = thread::spawn(|| {
        let mut sender = zero_copy_sender(peer);
        for _ in 0..16 {
            sender.send(pattern_pages(4096)).unwrap();
            thread::sleep(Duration::from_millis(1));
        }
        sender.into_inner()
    });
    let chunk = receiver.receive().unwrap().unwrap();
    assert!(chunk.len() >= MARK && chunk.mapped_bytes() > 0, "{chunk:?}");
    let peer = sending.join().unwrap();
    set_socket_linger(&peer, Some(Duration::ZERO)).unwrap();
    drop(peer);
    let (third, mut peer) = page_pair();
    *receiver.get_mut() = third.into();
    peer.write_all(&pattern(MARK)).unwrap();
    assert!(receiver.receive().unwrap().unwrap().to_vec() == pattern(MARK));
}

/// A receiver maps again once bytes can be mapped, and copies again while chunks are short.
#[test]
fn the_plan_follows_the_stream() {
    const PIECE: usize = 64 << 10;
    let (socket, peer) = page_pair();
    let mut sender = zero_copy_sender(peer);
    let mut receiver = Receiver::new(socket);
    let mapped = |receiver: &Receiver<TcpStream>| receiver.report().by(Mechanism::MapReceive);
    for _ in 0..64 {
        sender.get_ref().write_all(&pattern(PIECE)).unwrap();
        receive_bytes(&mut receiver, PIECE);
    }
    assert_eq!(mapped(&receiver), 0);
    for _ in 0..64 {
        sender.send(pattern_pages(PIECE)).unwrap();
        receive_bytes(&mut receiver, PIECE);
    }
    let before = mapped(&receiver);
    assert!(before > 0, "{}", receiver.report());
    sender.get_ref().write_all(b"x").unwrap();
    receive_bytes(&mut receiver, 1);
    sender.send(pattern_pages(8192)).unwrap();
    receive_bytes(&mut receiver, 8192);
    assert_eq!(mapped(&receiver), before);
}

/// If a sender on the same socket does not read its notifications, `poll` returns at once.
#[test]
fn unread_notifications_neither_lower_the_mark_nor_use_cpu_time() {
    const MARK: usize = 32 << 10;
    let (socket, mut peer) = page_pair();
    let mut sender = zero_copy_sender(socket.try_clone().unwrap());
    let sent = sender.send(pattern(8192)).unwrap();
    let mut receiver = Receiver::with(socket, mapping().low_water_mark(MARK));
    expect_bytes(&mut peer, &pattern(8192));
    let error = receiver.try_receive().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
    let sending = thread::spawn(move || {
        peer.write_all(&pattern(1000)).unwrap();
        thread::sleep(Duration::from_millis(300));
        peer.write_all(&pattern(MARK)).unwrap();
        peer
    });
    let began = clock_gettime(ClockId::ThreadCPUTime);
    assert!(receiver.receive().unwrap().unwrap().len() >= MARK);
    let used = clock_gettime(ClockId::ThreadCPUTime) - began;
    assert!(
        Duration::try_from(used).unwrap() < Duration::from_millis(100),
        "{used:?}"
    );
    drop((sending.join().unwrap(), sent));
}

/// A receiver with a low-water mark that is larger than its chunks, or than what is queued when its
/// timeout expires, gets every byte.
#[test]
fn a_low_water_mark_keeps_no_byte_back() {
    const MARK: usize = 256 << 10;
    for options in [ReceiveOptions::default(), mapping()] {
        let (socket, peer) = page_pair();
        socket
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        let options = options.chunk_bytes(64 << 10).low_water_mark(MARK);
        let mut receiver = Receiver::with(socket, options);
        send_repeatedly(peer.try_clone().unwrap(), MARK, 1);
        assert!(receive_bytes(&mut receiver, MARK) == pattern(MARK));
        (&peer).write_all(&pattern(5000)).unwrap();
        assert!(receive_bytes(&mut receiver, 5000) == pattern(5000));
        let error = receiver.receive().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        assert_eq!(error.moved(), MARK as u64 + 5000);
    }
}

/// Bytes that arrived before a reset come first, however they are received.
#[test]
fn a_reset_does_not_overtake_bytes() {
    let marked = mapping().low_water_mark(16 << 10);
    for options in [ReceiveOptions::default(), mapping(), marked] {
        for is_zero_copy in [false, true] {
            let (socket, peer) = page_pair();
            let mut sender = zero_copy_sender(peer);
            match is_zero_copy {
                true => drop(sender.send(pattern_pages(100_000)).unwrap()),
                false => sender.get_ref().write_all(&pattern(100_000)).unwrap(),
            }
            let arrived = RecvFlags::PEEK | RecvFlags::WAITALL;
            rustix::net::recv(&socket, &mut vec![0; 100_000], arrived).unwrap();
            let peer = sender.into_inner();
            set_socket_linger(&peer, Some(Duration::ZERO)).unwrap();
            drop(peer);
            let mut receiver = Receiver::with(socket, options.clone());
            assert!(receive_bytes(&mut receiver, 100_000) == pattern(100_000));
            let error = receiver.receive().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PeerClosed, "{error}");
            assert!(receiver.receive().unwrap().is_none());
        }
    }
}

/// tokio may stop a task between two steps of a receive. Nothing must have been received then.
#[cfg(feature = "tokio")]
#[test]
fn a_receive_that_is_dropped_has_taken_no_byte() {
    use std::future::{Future, poll_fn};
    use std::task::Poll;

    for budget_left in [0, 1, 2] {
        let (socket, peer) = page_pair();
        let mut sender = zero_copy_sender(peer);
        for _ in 0..4 {
            sender.send(pattern_pages(8192)).unwrap();
            sender.get_ref().write_all(b"unmappable").unwrap();
        }
        let len = 4 * (8192 + 10);
        let arrived = RecvFlags::PEEK | RecvFlags::WAITALL;
        rustix::net::recv(&socket, &mut vec![0; len], arrived).unwrap();
        socket.set_nonblocking(true).unwrap();
        crate::harness::runtime().block_on(async {
            let socket = tokio::net::TcpStream::from_std(socket).unwrap();
            socket.readable().await.unwrap();
            let mut receiver = uncopied::tokio::Receiver::with(socket, mapping());
            tokio::task::yield_now().await;
            // A task has a budget of 128 operations.
            for _ in 0..128 - budget_left {
                tokio::task::consume_budget().await;
            }
            let is_ready = {
                let mut receiving = std::pin::pin!(receiver.receive());
                poll_fn(|cx| Poll::Ready(receiving.as_mut().poll(cx).is_ready())).await
            };
            let received = receiver.report().bytes();
            assert_eq!(received > 0, is_ready, "{budget_left}");
            assert_eq!(budget_left > 0, is_ready, "{budget_left}");
        });
    }
}

// The switch affects the whole process, so each test that uses it runs in a child process.

/// Receives from a zero-copy sender, with the usual plan and with forced mechanisms.
fn report_of_receiving() -> Report {
    let mut report = None;
    for options in [
        ReceiveOptions::default().low_water_mark(32 << 10),
        mapping(),
    ] {
        let (socket, peer) = page_pair();
        let sending = thread::spawn(|| send_repeatedly(peer, SEND_BYTES, 8));
        let mut receiver = Receiver::with(socket, options);
        assert!(receive_all(&mut receiver) == pattern(SEND_BYTES).repeat(8));
        sending.join().unwrap();
        let mapped = receiver.report().by(Mechanism::MapReceive);
        assert_eq!(mapped > 0, zero_copy_receive_enabled());
        if mapped == 0 {
            let obstacle = receiver.map_obstacle();
            assert_eq!(obstacle, Some(MapObstacle::SwitchedOff));
        }
        report = Some(receiver.report().clone());
    }
    report.unwrap()
}

#[test]
fn the_environment_switches_zero_copy_receiving_off() {
    in_child(
        "receiving::the_environment_switches_zero_copy_receiving_off",
        |child| {
            child.env("UNCOPIED_RECEIVE", "off");
        },
        || {
            assert!(!zero_copy_receive_enabled());
            let report = report_of_receiving();
            assert!(report.switched_off());
            let text = report.to_string();
            assert!(text.contains("receiving is switched off"), "{text}");

            set_zero_copy_receive(true);
            assert!(!report_of_receiving().switched_off());
            set_zero_copy_receive(false);
            assert!(report_of_receiving().switched_off());
        },
    );
}

#[test]
fn sending_and_receiving_are_switched_separately() {
    in_child(
        "receiving::sending_and_receiving_are_switched_separately",
        |child| {
            child.env("UNCOPIED_SEND", "off");
        },
        || assert!(zero_copy_receive_enabled() && !uncopied::zero_copy_send_enabled()),
    );
}
