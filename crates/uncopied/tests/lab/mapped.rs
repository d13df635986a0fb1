//! Receiving by mapping pages that a network card has received.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io::Write;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::thread;

use uncopied::{
    Chunk, LimitAction, MapObstacle, Mechanism, ReceiveOptions, Receiver, SendOptions, Sender,
};

use crate::harness::{expect_bytes, expect_eof, pattern};
use crate::sides::{two_sides, two_sides_with_control};

const PIECE_BYTES: usize = 1 << 20;
const PIECES: usize = 24;

/// The least part of the bytes, in percent, that is mapped from a virtual network card whose driver
/// does not merge receive buffers (`mrg_rxbuf=off`). The rest shares pages with headers.
const MIN_MAPPED_PERCENT: f64 = 80.0;

fn options() -> ReceiveOptions {
    ReceiveOptions::default().low_water_mark(128 << 10)
}

/// Sends with ordinary writes.
fn write_pieces(mut socket: TcpStream) {
    for _ in 0..PIECES {
        socket.write_all(&pattern(PIECE_BYTES)).unwrap();
    }
}

/// The bytes of the stream that a chunk must have.
struct Expected {
    piece: Vec<u8>,
    at: usize,
}

impl Expected {
    fn new() -> Self {
        Self {
            piece: pattern(PIECE_BYTES).repeat(2),
            at: 0,
        }
    }

    /// Asserts that the chunk has the next bytes of the stream. Returns these.
    fn check(&mut self, chunk: &Chunk) -> Vec<u8> {
        let start = self.at % PIECE_BYTES;
        let expected = &self.piece[start..start + chunk.len()];
        assert!(chunk.to_vec() == expected, "wrong bytes at {}", self.at);
        self.at += chunk.len();
        expected.to_vec()
    }
}

fn assert_mostly_mapped(receiver: &Receiver<TcpStream>) {
    let report = receiver.report();
    let percent = report.zero_copy_percent().unwrap();
    println!("{percent:.1} % mapped: {report}");
    assert!(percent >= MIN_MAPPED_PERCENT, "{percent} %: {report}");
}

#[test]
fn most_bytes_are_mapped() {
    two_sides(write_pieces, |socket| {
        let mut receiver = Receiver::with(socket, options());
        let mut expected = Expected::new();
        while let Some(chunk) = receiver.receive().unwrap() {
            expected.check(&chunk);
        }
        assert_eq!(expected.at, PIECES * PIECE_BYTES);
        assert_mostly_mapped(&receiver);
        let obstacle = receiver.map_obstacle();
        println!("{obstacle:?}");
        assert!(!matches!(
            obstacle,
            Some(MapObstacle::SameMachine | MapObstacle::ShortChunks)
        ));
    });
}

/// The driver may use pages again only once nothing refers to them, however long that takes.
#[test]
fn held_chunks_keep_their_bytes() {
    two_sides(write_pieces, |socket| {
        let options = options().max_held_chunks(16).chunk_bytes(64 << 10);
        let mut receiver = Receiver::with(socket, options);
        let mut expected = Expected::new();
        let mut held = VecDeque::new();
        for step in 0_usize.. {
            let Some(chunk) = receiver.receive().unwrap() else {
                break;
            };
            let bytes = expected.check(&chunk);
            held.push_back((chunk, bytes));
            // Drop chunks from both ends and from the middle.
            match step % 7 {
                0 | 1 => drop(held.pop_back()),
                2 | 3 if held.len() > 12 => drop(held.pop_front()),
                4 => drop(held.remove(held.len() / 2)),
                _ if held.len() > 20 => held.truncate(8),
                _ => {}
            }
            if step % 16 == 0 {
                assert!(held.iter().all(|(chunk, bytes)| chunk.to_vec() == *bytes));
            }
        }
        assert_eq!(expected.at, PIECES * PIECE_BYTES);
        drop(receiver);
        assert!(held.iter().all(|(chunk, bytes)| chunk.to_vec() == *bytes));
    });
}

/// Guest 2 sends what it receives back to guest 1, over a second connection. No byte of a mapped
/// page is copied in guest 2.
#[test]
fn received_chunks_are_sent_on_without_a_copy() {
    two_sides_with_control(
        |socket, mut control| {
            let writing = thread::spawn(|| write_pieces(socket));
            for _ in 0..PIECES {
                expect_bytes(&mut control, &pattern(PIECE_BYTES));
            }
            expect_eof(&mut control);
            writing.join().unwrap();
        },
        |socket, control| {
            let mut receiver = Receiver::with(socket, options());
            let send_options = SendOptions::default()
                .force_mechanisms(&[Mechanism::MsgZerocopy, Mechanism::Copy])
                .at_limit(LimitAction::Wait);
            let mut sender = Sender::with(control, send_options);
            while let Some(chunk) = receiver.receive().unwrap() {
                sender.send_parts(chunk).unwrap();
            }
            assert_mostly_mapped(&receiver);
            let report = sender.report();
            println!("sent on: {report}");
            let all = (PIECES * PIECE_BYTES) as u64;
            assert_eq!(report.by(Mechanism::MsgZerocopy), all, "{report}");
        },
    );
}

/// `TCP_ZEROCOPY_RECEIVE` knows nothing of kernel TLS: it would return encrypted bytes.
#[test]
fn a_socket_with_kernel_tls_is_not_mapped() {
    two_sides(write_pieces, |socket| {
        let name = c"tls";
        // SAFETY: the call reads the bytes of a C string.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_ULP,
                name.as_ptr().cast(),
                name.count_bytes() as u32,
            )
        };
        assert_eq!(set, 0);
        let forced = [Mechanism::MapReceive, Mechanism::Copy];
        let mut receiver = Receiver::with(socket, options().force_mechanisms(&forced));
        let mut expected = Expected::new();
        while let Some(chunk) = receiver.receive().unwrap() {
            expected.check(&chunk);
        }
        assert_eq!(expected.at, PIECES * PIECE_BYTES);
        let report = receiver.report();
        assert_eq!(report.by(Mechanism::Copy), report.bytes(), "{report}");
        let obstacle = receiver.map_obstacle();
        assert!(
            matches!(obstacle, Some(MapObstacle::Unsupported(_))),
            "{obstacle:?}"
        );
    });
}
