//! Counts and checks what a receiver receives, and takes the measurement.

use std::hint::black_box;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use uncopied_measure::pattern::Verifier;

use super::options::ReceivingOptions;
use super::sender;
use crate::error::{Context, Error};
use crate::measure::{machine_busy_seconds, own_process_cpu_seconds};

/// The number of bytes at the beginning of the stream that are compared with what was sent.
const VERIFIED_BYTES: u64 = 4 * sender::PAYLOAD_BYTES as u64;

/// Counts and checks what a receiver receives, and takes the measurement.
pub(super) struct Meter {
    warm_up: Duration,
    seconds: Duration,
    /// Whether to read all bytes.
    read: bool,
    /// Shut down after the measurement, so that the sender stops.
    stream: TcpStream,
    verifier: Verifier,
    phase: Phase,
    total_bytes: u64,
    reads: u64,
}

enum Phase {
    /// No bytes have arrived.
    Waiting,
    WarmUp {
        end: Instant,
    },
    Measuring {
        before: Snapshot,
    },
    Done(Window),
}

/// Figures from the beginning to the end of a measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Window {
    /// Bytes received.
    pub(super) bytes: u64,
    /// How many times bytes were received.
    pub(super) reads: u64,
    /// The duration.
    pub(super) seconds: f64,
    /// CPU time of the receiver's process.
    pub(super) cpu_seconds: f64,
    /// Busy time of all CPUs together, for all processes and the kernel.
    pub(super) machine_busy_seconds: f64,
}

struct Snapshot {
    at: Instant,
    bytes: u64,
    reads: u64,
    cpu_seconds: f64,
    machine_busy_seconds: f64,
}

impl Meter {
    /// Creates the meter for the receiver of `stream`.
    pub(super) fn new(stream: &TcpStream, options: &ReceivingOptions) -> io::Result<Self> {
        Ok(Self {
            warm_up: options.warm_up,
            seconds: options.seconds,
            read: options.read,
            stream: stream.try_clone()?,
            verifier: Verifier::new(sender::payload(), VERIFIED_BYTES),
            phase: Phase::Waiting,
            total_bytes: 0,
            reads: 0,
        })
    }

    /// Counts the bytes of one read. Begins or ends the measurement when it is time. Does not look
    /// at the bytes, except for the first ones of the stream, or if all of them are to be read.
    ///
    /// # Errors
    ///
    /// [`Error::WrongResult`] if the bytes are not those that are sent.
    pub(super) fn add<'a>(&mut self, parts: impl Iterator<Item = &'a [u8]>) -> Result<(), Error> {
        for part in parts {
            let verified = self.verifier.check(part);
            verified.map_err(|mismatch| Error::WrongResult(mismatch.to_string()))?;
            if self.read {
                black_box(sum(part));
            }
            self.total_bytes += part.len() as u64;
        }
        self.reads += 1;
        let now = Instant::now();
        match &self.phase {
            Phase::Waiting => {
                let end = now + self.warm_up;
                self.phase = Phase::WarmUp { end };
            }
            Phase::WarmUp { end } if now >= *end => {
                let before = self.snapshot()?;
                self.phase = Phase::Measuring { before };
            }
            Phase::Measuring { before } if now >= before.at + self.seconds => {
                self.phase = Phase::Done(self.snapshot()?.since(before));
                self.stream
                    .shutdown(Shutdown::Write)
                    .context(|| "cannot tell the sender to stop".into())?;
            }
            Phase::WarmUp { .. } | Phase::Measuring { .. } | Phase::Done(_) => {}
        }
        Ok(())
    }

    /// Returns the measurement, and the total number of bytes received.
    ///
    /// # Errors
    ///
    /// [`Error::WrongResult`] if the stream has ended before the measurement.
    pub(super) fn finish(self) -> Result<(Window, u64), Error> {
        match self.phase {
            Phase::Done(window) => Ok((window, self.total_bytes)),
            Phase::Waiting | Phase::WarmUp { .. } | Phase::Measuring { .. } => Err(
                Error::WrongResult("the sender closed the connection too early".into()),
            ),
        }
    }

    fn snapshot(&self) -> Result<Snapshot, Error> {
        Ok(Snapshot {
            machine_busy_seconds: machine_busy_seconds()?,
            cpu_seconds: own_process_cpu_seconds(),
            at: Instant::now(),
            bytes: self.total_bytes,
            reads: self.reads,
        })
    }
}

impl Snapshot {
    /// Returns what was used between the snapshot `before` and this one.
    fn since(&self, before: &Self) -> Window {
        Window {
            bytes: self.bytes - before.bytes,
            reads: self.reads - before.reads,
            seconds: (self.at - before.at).as_secs_f64(),
            cpu_seconds: self.cpu_seconds - before.cpu_seconds,
            machine_busy_seconds: self.machine_busy_seconds - before.machine_busy_seconds,
        }
    }
}

/// Returns the sum of the bytes as 64-bit numbers.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let words = words.iter().map(|&word| u64::from_le_bytes(word));
    let rest = rest.iter().map(|&byte| u64::from(byte));
    words.chain(rest).fold(0, u64::wrapping_add)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use super::*;

    /// Returns a meter for a measurement of `seconds`, and the peer of its connection.
    fn meter(seconds: f64) -> (Meter, TcpStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let peer = listener.accept().unwrap().0;
        let options = ReceivingOptions {
            seconds: Duration::from_secs_f64(seconds),
            warm_up: Duration::ZERO,
            low_water_mark: 1,
            read: true,
        };
        (Meter::new(&stream, &options).unwrap(), peer)
    }

    #[test]
    fn the_measurement_excludes_the_first_and_the_last_bytes() {
        let sent = sender::payload();
        let (mut meter, mut peer) = meter(0.0);
        for parts in [&sent[..5000], &sent[5000..5001], &sent[5001..9000]] {
            meter.add(parts.chunks(3000)).unwrap();
        }
        meter.add(std::iter::once(&sent[9000..])).unwrap();
        let (window, total_bytes) = meter.finish().unwrap();
        assert_eq!((window.bytes, window.reads), (3999, 1));
        assert_eq!(total_bytes, sent.len() as u64);
        assert_eq!(
            peer.read(&mut [0]).unwrap(),
            0,
            "the sender is told to stop"
        );
    }

    #[test]
    fn the_first_bytes_are_compared() {
        let sent = sender::payload();
        let twice = [&sent[..], &sent[..]].concat();
        let (mut good, _peer) = meter(3600.0);
        good.add(twice.chunks(100_000)).unwrap();
        assert!(good.finish().is_err(), "the stream has ended too early");

        let (mut meter, _peer) = meter(3600.0);
        meter.add(std::iter::once(&sent[..])).unwrap();
        let shifted = meter.add(std::iter::once(&sent[1..]));
        assert!(matches!(shifted, Err(Error::WrongResult(_))), "{shifted:?}");
    }

    #[test]
    fn the_sum_includes_the_bytes_after_the_last_word() {
        assert_eq!(sum(&[1, 0, 0, 0, 0, 0, 0, 0, 2, 3]), 6);
    }
}
