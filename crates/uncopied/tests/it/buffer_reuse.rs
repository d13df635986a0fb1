//! Buffers that are overwritten as soon as their completions allow it.
//!
//! Each send has a number, and its bytes follow a pattern that depends on that number. As soon as a
//! send's completion allows it, the test overwrites the buffer, and later fills it again for
//! another send. The receiver is on the same machine and is slower than the sender. It checks every
//! byte, so it detects a buffer that was overwritten too early.
//!
//! The test fails if the `vmsplice` mechanism does not call `gift`, or if a send with
//! `MSG_ZEROCOPY` is completed before the kernel's notification.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};
use uncopied::arena::{PageBuffer, Pages};
use uncopied::{Completion, LimitAction, SendOptions, Sender};

use crate::harness::{
    Family, HANG_TIMEOUT, fill_pattern, memory_mechanisms, soak_time, socket_pair,
};

const DEFAULT_SOAK_TIME: Duration = Duration::from_secs(5);

/// The settings of one connection of the test.
#[derive(Clone, Copy)]
struct Traffic {
    family: Family,
    /// `SO_SNDBUF` and `SO_RCVBUF`, in bytes; `None` leaves both to the kernel.
    socket_buffer_bytes: Option<usize>,
    /// The upper limit on the size of a send, in bytes.
    max_send_bytes: usize,
    /// The average number of sends that the receiver reads between two pauses.
    sends_per_sleep: u64,
    seed: u64,
}

const TRAFFIC: [Traffic; 5] = [
    Traffic {
        family: Family::Tcp,
        socket_buffer_bytes: None,
        max_send_bytes: 300_000,
        sends_per_sleep: 10,
        seed: 1,
    },
    Traffic {
        family: Family::Tcp,
        socket_buffer_bytes: Some(4 << 10),
        max_send_bytes: 20_000,
        sends_per_sleep: 40,
        seed: 2,
    },
    Traffic {
        family: Family::Tcp,
        socket_buffer_bytes: Some(2 << 20),
        max_send_bytes: 1_500_000,
        sends_per_sleep: 3,
        seed: 3,
    },
    Traffic {
        family: Family::Tcp,
        socket_buffer_bytes: None,
        max_send_bytes: 3_000,
        sends_per_sleep: 200,
        seed: 4,
    },
    Traffic {
        family: Family::Unix,
        socket_buffer_bytes: None,
        max_send_bytes: 100_000,
        sends_per_sleep: 20,
        seed: 5,
    },
];

/// The maximum number of buffers per connection. It is so small that the sockets can hold more
/// bytes than all the buffers together. So the sender has to reuse buffers whose earlier bytes may
/// still be queued in a socket, which is the case that this test must cover.
const MAX_BUFFERS: usize = 6;

#[test]
fn no_byte_is_overwritten_before_its_completion_allows_it() {
    let end = Instant::now() + soak_time(DEFAULT_SOAK_TIME);
    let (mut sends, mut bytes) = (0, 0);
    std::thread::scope(|scope| {
        let running: Vec<_> = TRAFFIC
            .iter()
            .map(|&traffic| {
                let (socket, peer) = socket_pair(traffic.family);
                if let Some(size) = traffic.socket_buffer_bytes {
                    set_socket_send_buffer_size(&socket, size).unwrap();
                    set_socket_recv_buffer_size(&peer, size).unwrap();
                }
                let sending = scope.spawn(move || traffic.send(socket, end));
                (sending, scope.spawn(move || traffic.receive(peer)))
            })
            .collect();
        for (sending, receiving) in running {
            let received = receiving.join().expect("every byte is correct");
            assert_eq!(sending.join().unwrap(), received);
            sends += received.sends;
            bytes += received.bytes;
        }
    });
    println!("{sends} sends of {bytes} bytes in total, overwritten once completed");
    assert!(sends > 100, "{sends} sends are too few");
}

#[derive(Debug, Default, PartialEq, Eq)]
struct TrafficCount {
    sends: u64,
    bytes: u64,
}

impl Traffic {
    /// Returns the size of send `number`, in bytes: often small, sometimes large.
    fn send_bytes(&self, number: u64) -> usize {
        let bits = mix(self.seed << 32 | number);
        let max = self.max_send_bytes >> (bits % 8);
        1 + (bits >> 8) as usize % max
    }

    /// Returns the key of the pattern for send `number`.
    fn key(&self, number: u64) -> u64 {
        mix(self.seed << 48 | number)
    }

    fn send(&self, socket: OwnedFd, end: Instant) -> TrafficCount {
        // Create one sender per mechanism, all on the same socket. Each send uses one of them,
        // chosen at random.
        let mut senders: Vec<Sender<OwnedFd>> = memory_mechanisms(self.family)
            .iter()
            .map(|&mechanism| {
                let options = SendOptions::default()
                    .force_mechanisms(&[mechanism])
                    .in_flight_limit(1 << 20)
                    .at_limit(LimitAction::Wait);
                Sender::with(socket.try_clone().unwrap(), options)
            })
            .collect();
        let mut buffers = Buffers::default();
        let mut count = TrafficCount::default();
        while Instant::now() < end {
            let bits = mix(self.key(count.sends));
            let len = self.send_bytes(count.sends);
            // About half of the sends start in the middle of a page.
            let start = if bits & 1 == 0 {
                0
            } else {
                (bits >> 8) as usize % 5000
            };
            let mut buffer = buffers.take();
            if buffer.capacity() < start + len {
                buffer = PageBuffer::with_capacity(start + len).unwrap();
            }
            buffer.set_len(start + len);
            fill_pattern(&mut buffer[start..], self.key(count.sends));
            let pages = buffer.freeze();
            let by = (bits >> 32) as usize % senders.len();
            let sent = senders[by].send(pages.slice(start..)).unwrap();
            assert_eq!(sent.bytes(), len as u64);
            buffers.in_flight.push((pages, sent.into_completion()));
            count.sends += 1;
            count.bytes += len as u64;
        }
        count
    }

    /// Reads until the end of the stream, checks every byte, and counts the sends.
    fn receive(&self, mut peer: File) -> TrafficCount {
        let mut count = TrafficCount::default();
        let mut received = vec![0; self.max_send_bytes];
        let mut expected = vec![0; self.max_send_bytes];
        loop {
            let len = self.send_bytes(count.sends);
            if count.sends > 0 && mix(count.bytes).is_multiple_of(self.sends_per_sleep) {
                std::thread::sleep(Duration::from_micros(mix(count.sends) % 5_000));
            }
            let mut at = 0;
            while at < len {
                match peer.read(&mut received[at..len]).unwrap() {
                    0 if at == 0 => return count,
                    0 => panic!("the stream ends within send {}", count.sends),
                    more => at += more,
                }
            }
            fill_pattern(&mut expected[..len], self.key(count.sends));
            if received[..len] != expected[..len] {
                self.fail(&received[..len], &expected[..len], count.sends);
            }
            count.sends += 1;
            count.bytes += len as u64;
        }
    }

    /// Panics with a message that says how many bytes are wrong, and where the first of them is.
    fn fail(&self, received: &[u8], expected: &[u8], number: u64) -> ! {
        let wrong = |(received, expected): &(&u8, &u8)| received != expected;
        let pairs = || received.iter().zip(expected);
        let first = pairs().position(|pair| wrong(&pair));
        let count = pairs().filter(wrong).count();
        panic!(
            "send {number} of traffic {}: {count} of {} bytes are wrong, the first at {first:?}",
            self.seed,
            received.len()
        );
    }
}

/// The buffers of one connection.
#[derive(Default)]
struct Buffers {
    /// Buffers that have been overwritten after their send completed.
    free: Vec<PageBuffer>,
    in_flight: Vec<(Pages, Completion)>,
}

impl Buffers {
    /// Overwrites every buffer that is no longer in flight, and returns a buffer that can be
    /// filled. If [`MAX_BUFFERS`] buffers are in flight, waits until one of them can be reused.
    fn take(&mut self) -> PageBuffer {
        self.overwrite_completed();
        while self.free.is_empty() && self.in_flight.len() >= MAX_BUFFERS {
            // All buffers are in flight because the peer is slow. Wait for the oldest send, which
            // is likely to complete first.
            self.in_flight[0].1.wait(Some(HANG_TIMEOUT)).unwrap();
            self.overwrite_completed();
        }
        let new_buffer = || PageBuffer::with_capacity(1).unwrap();
        self.free.pop().unwrap_or_else(new_buffer)
    }

    fn overwrite_completed(&mut self) {
        for (pages, completion) in std::mem::take(&mut self.in_flight) {
            if completion.outcome().is_none() {
                self.in_flight.push((pages, completion));
                continue;
            }
            let len = pages.len();
            let mut buffer = pages.try_into_buffer().unwrap_or_else(|pages| {
                // The pages were gifted to the kernel, so they must not be written to again.
                // Overwrite a new buffer instead. It is likely to have the same addresses. If it
                // also had the same page frames, overwriting it would change bytes in flight, and
                // the receiver would detect that.
                drop(pages);
                PageBuffer::with_capacity(len).unwrap()
            });
            buffer.set_len(len);
            fill_pattern(&mut buffer, u64::MAX);
            self.free.push(buffer);
        }
    }
}

/// Returns a pseudo-random number that depends only on `number` (the final mixing step of the
/// splitmix64 generator).
fn mix(number: u64) -> u64 {
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}
