//! A client and a server that do what is hard for a relay between them, at random: messages and
//! bulk data, delays, half-closed streams, and resets.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;

/// The most bytes that one side sends.
const MAX_STREAM_BYTES: u64 = 6 << 20;

/// A generator of random numbers (`SplitMix64`), which a seed reproduces.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// Returns a number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    /// Returns a number of bytes up to 2^`bits`, most often a small one.
    fn size(&mut self, bits: u64) -> usize {
        let limit = 1 << self.below(bits + 1);
        1 + self.below(limit) as usize
    }

    /// Sleeps for a short time, once in `times`.
    fn sometimes_sleep(&mut self, times: u64) {
        if self.below(times) == 0 {
            thread::sleep(Duration::from_micros(self.below(3_000)));
        }
    }
}

/// Sends and receives on both ends of a relay, and checks every byte. Returns whether one of the
/// two has reset the connection. Something else may reset it too, after it has set `is_cut`.
///
/// # Panics
///
/// If another byte arrives than was sent, or if a stream ends early without a reset.
pub(crate) fn exchange(
    client: &TcpStream,
    server: &TcpStream,
    mut random: Random,
    is_cut: &AtomicBool,
) -> bool {
    let seed = random.0;
    let resets = random.below(4) == 0;
    let streams = [random.below(u64::MAX), random.below(u64::MAX)].map(Random);
    let [forth, back] = streams.clone().map(|mut random| {
        let len = match random.below(4) {
            0 => random.below(100),
            _ => random.below(MAX_STREAM_BYTES),
        };
        let words = (0..len.div_ceil(8)).flat_map(|_| random.below(u64::MAX).to_ne_bytes());
        words.take(len as usize).collect::<Vec<_>>()
    });
    // One side may reset the connection after a part of its bytes.
    let mut cut = [None, None];
    if resets {
        let side = random.below(2) as usize;
        let len = [&forth, &back][side].len() as u64;
        cut[side] = Some(random.below(len + 1) as usize);
    }
    is_cut.fetch_or(resets, Relaxed);
    let readers = [random.clone(), Random(!random.0)];
    thread::scope(|scope| {
        let (forth, back) = (&forth, &back);
        let [to_server, to_client] = streams;
        let [at_client, at_server] = readers;
        let sides = [
            scope.spawn(move || send(client, forth, cut[0], is_cut, to_server)),
            scope.spawn(move || send(server, back, cut[1], is_cut, to_client)),
            scope.spawn(move || receive(server, forth, is_cut, at_server)),
            scope.spawn(move || receive(client, back, is_cut, at_client)),
        ];
        for side in sides {
            if let Err(panic) = side.join() {
                eprintln!("the seed was {seed}");
                std::panic::resume_unwind(panic);
            }
        }
    });
    resets
}

/// Sends messages and bulk data in turn, and then ends the stream. With `cut`, resets the
/// connection after this many bytes.
fn send(
    mut socket: &TcpStream,
    bytes: &[u8],
    cut: Option<usize>,
    is_cut: &AtomicBool,
    mut random: Random,
) {
    let mut left = &bytes[..cut.unwrap_or(bytes.len())];
    while !left.is_empty() {
        let is_bulk = random.below(2) == 0;
        for _ in 0..random.below(40) {
            let size = match is_bulk {
                true => random.size(18),
                false => random.size(9),
            };
            let (piece, rest) = left.split_at(size.min(left.len()));
            if let Err(error) = socket.write_all(piece) {
                assert!(is_cut.load(Relaxed) && is_reset(&error), "{error}");
                return;
            }
            left = rest;
            random.sometimes_sleep(if is_bulk { 20 } else { 3 });
        }
    }
    let ended = match cut {
        None => socket.shutdown(Shutdown::Write),
        Some(_) => abort(socket),
    };
    if let Err(error) = ended {
        assert!(is_cut.load(Relaxed) && is_reset(&error), "{error}");
    }
}

/// Resets the connection. Other threads that use the socket find out.
pub(crate) fn abort(socket: &TcpStream) -> io::Result<()> {
    set_socket_linger(socket.as_fd(), Some(Duration::ZERO))?;
    // Dissolving the association of a TCP socket resets the connection (`connect(2)`).
    let result = rustix::net::connect_unspec(socket);
    result.map_err(io::Error::from)
}

/// Receives to the end of the stream, and compares every byte.
fn receive(mut socket: &TcpStream, expected: &[u8], is_cut: &AtomicBool, mut random: Random) {
    let mut buffer = vec![0; 1 << 18];
    let mut received = 0;
    loop {
        let room = random.size(18);
        match socket.read(&mut buffer[..room]) {
            Ok(0) => break,
            Ok(bytes) => {
                let next = expected.get(received..received + bytes);
                assert!(next == Some(&buffer[..bytes]), "other bytes at {received}");
                received += bytes;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                assert!(
                    is_cut.load(Relaxed) && is_reset(&error),
                    "after {received} bytes: {error}"
                );
                return;
            }
        }
        random.sometimes_sleep(20);
    }
    assert!(
        is_cut.load(Relaxed) || received == expected.len(),
        "the stream ended after {received} of {} bytes",
        expected.len()
    );
}

fn is_reset(error: &io::Error) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected};
    matches!(
        error.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected
    )
}
