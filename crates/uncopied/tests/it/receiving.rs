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

use rustix::net::SendFlags;
use rustix::net::sockopt::set_socket_linger;
use uncopied::{
    Chunk, ErrorKind, MapObstacle, Mechanism, PagePayload, ReceiveOptions, Receiver, Report,
    SendOptions, Sender, set_zero_copy_receive, zero_copy_receive_enabled,
};

use crate::harness::{in_child, pattern, pattern_pages, wait_until};

const MAPPING: [Mechanism; 2] = [Mechanism::MapReceive, Mechanism::Copy];

/// Returns two connected sockets over which payloads are whole pages.
pub(crate) fn page_pair() -> (TcpStream, TcpStream) {
    let listener = PagePayload::new(1).unwrap().bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (listener.accept().unwrap().0, peer)
}

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
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
fn mapping() -> ReceiveOptions {
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

/// A window that stayed mapped would keep the old socket open.
#[test]
fn a_receiver_detects_that_its_socket_was_replaced() {
    let (socket, peer) = page_pair();
    let (second, second_peer) = page_pair();
    let mut receiver = Receiver::with(socket, mapping());
    send_repeatedly(peer.try_clone().unwrap(), SEND_BYTES, 1);
    let mut received = 0;
    while received < SEND_BYTES {
        received += receiver.receive().unwrap().unwrap().len();
    }
    let first = std::mem::replace(receiver.get_mut(), second);
    drop(first);
    send_repeatedly(second_peer, SEND_BYTES, 1);
    let mut received = Vec::new();
    while let Some(chunk) = receiver.receive().unwrap() {
        received.extend(chunk.to_vec());
    }
    assert!(received == pattern(SEND_BYTES));
    assert_eq!(
        (&peer).read(&mut [0]).unwrap(),
        0,
        "the old socket is closed"
    );
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
