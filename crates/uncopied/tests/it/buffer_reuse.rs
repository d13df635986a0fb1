//! Buffers that are overwritten as soon as their completions allow it.
//!
//! Every send has bytes of its own, which its number tells. A buffer is overwritten at the first moment
//! at which the library gives it back, and filled anew for another send. The receiver, on the same
//! machine and behind, checks every byte: one that was overwritten too early is another one's. What
//! must be found: taking `gift` out of `mechanism/vmsplice.rs`, or settling a send by
//! `MSG_ZEROCOPY` before its notice.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};
use uncopied::arena::{PageBuffer, Pages};
use uncopied::{Completion, LimitAction, SendOptions, Sender};

use crate::harness::{Family, HANG, for_memory, pair};

const USUAL_TIME: Duration = Duration::from_secs(5);

/// For how long a test goes on: `just soak` says more, in seconds.
pub(crate) fn soak_time(usual: Duration) -> Duration {
    let seconds = std::env::var("UNCOPIED_SOAK_SECONDS");
    seconds.map_or(usual, |seconds| {
        Duration::from_secs(seconds.parse().expect("a number"))
    })
}

/// A connection, and how it is used.
#[derive(Clone, Copy)]
struct Traffic {
    family: Family,
    /// `SO_SNDBUF` and `SO_RCVBUF`, in bytes, or what the kernel thinks best.
    buffers: Option<usize>,
    /// The most that one send has, in bytes.
    longest: usize,
    /// How often the receiver falls asleep: once in so many reads.
    sleeps_once_in: u64,
    seed: u64,
}

const TRAFFIC: [Traffic; 5] = [
    Traffic {
        family: Family::Tcp,
        buffers: None,
        longest: 300_000,
        sleeps_once_in: 10,
        seed: 1,
    },
    Traffic {
        family: Family::Tcp,
        buffers: Some(4 << 10),
        longest: 20_000,
        sleeps_once_in: 40,
        seed: 2,
    },
    Traffic {
        family: Family::Tcp,
        buffers: Some(2 << 20),
        longest: 1_500_000,
        sleeps_once_in: 3,
        seed: 3,
    },
    Traffic {
        family: Family::Tcp,
        buffers: None,
        longest: 3_000,
        sleeps_once_in: 200,
        seed: 4,
    },
    Traffic {
        family: Family::Unix,
        buffers: None,
        longest: 100_000,
        sleeps_once_in: 20,
        seed: 5,
    },
];

/// Buffers of a connection: fewer than a socket has room for.
const SLOTS: usize = 6;

#[test]
fn no_byte_is_overwritten_before_its_completion_allows_it() {
    let end = Instant::now() + soak_time(USUAL_TIME);
    let (mut sends, mut bytes) = (0, 0);
    std::thread::scope(|scope| {
        let running: Vec<_> = TRAFFIC
            .iter()
            .map(|&traffic| {
                let (socket, peer) = pair(traffic.family);
                if let Some(size) = traffic.buffers {
                    set_socket_send_buffer_size(&socket, size).unwrap();
                    set_socket_recv_buffer_size(&peer, size).unwrap();
                }
                let sending = scope.spawn(move || traffic.send(socket, end));
                (sending, scope.spawn(move || traffic.receive(peer)))
            })
            .collect();
        for (sending, receiving) in running {
            let received = receiving.join().expect("every byte was right");
            assert_eq!(sending.join().unwrap(), received);
            sends += received.sends;
            bytes += received.bytes;
        }
    });
    println!("{sends} sends of {bytes} bytes in all, overwritten as soon as that was allowed");
    assert!(sends > 100, "{sends} sends prove nothing");
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    sends: u64,
    bytes: u64,
}

impl Traffic {
    /// Of how many bytes the send of this number is: often few, now and then many.
    fn len(&self, number: u64) -> usize {
        let bits = mixed(self.seed << 32 | number);
        let most = self.longest >> (bits % 8);
        1 + (bits >> 8) as usize % most
    }

    /// What the words of this send are derived from.
    fn key(&self, number: u64) -> u64 {
        mixed(self.seed << 48 | number)
    }

    fn send(&self, socket: OwnedFd, end: Instant) -> Count {
        // One for each mechanism, for the same socket, one after another.
        let mut senders: Vec<Sender<OwnedFd>> = for_memory(self.family)
            .iter()
            .map(|&mechanism| {
                let options = SendOptions::default()
                    .force_mechanisms(&[mechanism])
                    .in_flight_limit(1 << 20)
                    .at_limit(LimitAction::Wait);
                Sender::with(socket.try_clone().unwrap(), options)
            })
            .collect();
        let mut slots = Slots::default();
        let mut count = Count::default();
        while Instant::now() < end {
            let bits = mixed(self.key(count.sends));
            let len = self.len(count.sends);
            // At any address: half of them do not begin on a page.
            let start = if bits & 1 == 0 {
                0
            } else {
                (bits >> 8) as usize % 5000
            };
            let mut buffer = slots.take();
            if buffer.capacity() < start + len {
                buffer = PageBuffer::with_capacity(start + len).unwrap();
            }
            buffer.set_len(start + len);
            fill(&mut buffer[start..], self.key(count.sends));
            let pages = buffer.freeze();
            let by = (bits >> 32) as usize % senders.len();
            let sent = senders[by].send(pages.slice(start..)).unwrap();
            assert_eq!(sent.bytes(), len as u64);
            slots.lent.push((pages, sent.into_completion()));
            count.sends += 1;
            count.bytes += len as u64;
        }
        count
    }

    /// Reads to the end, checks every byte, and counts the sends.
    fn receive(&self, mut peer: File) -> Count {
        let mut count = Count::default();
        let mut received = vec![0; self.longest];
        let mut expected = vec![0; self.longest];
        loop {
            let len = self.len(count.sends);
            if count.sends > 0 && mixed(count.bytes).is_multiple_of(self.sleeps_once_in) {
                std::thread::sleep(Duration::from_micros(mixed(count.sends) % 5_000));
            }
            let mut at = 0;
            while at < len {
                match peer.read(&mut received[at..len]).unwrap() {
                    0 if at == 0 => return count,
                    0 => panic!("the stream ends within send {}", count.sends),
                    more => at += more,
                }
            }
            fill(&mut expected[..len], self.key(count.sends));
            if received[..len] != expected[..len] {
                self.accuse(&received[..len], &expected[..len], count.sends);
            }
            count.sends += 1;
            count.bytes += len as u64;
        }
    }

    fn accuse(&self, received: &[u8], expected: &[u8], number: u64) -> ! {
        let wrong = |(received, expected): &(&u8, &u8)| received != expected;
        let pairs = || received.iter().zip(expected);
        let first = pairs().position(|pair| wrong(&pair));
        let count = pairs().filter(wrong).count();
        panic!(
            "send {number} of traffic {}: {count} of {} bytes are wrong, from {first:?} on",
            self.seed,
            received.len()
        );
    }
}

/// The buffers of a connection: those that are free, and those that may not be.
#[derive(Default)]
struct Slots {
    free: Vec<PageBuffer>,
    lent: Vec<(Pages, Completion)>,
}

impl Slots {
    /// A buffer to fill. Everything that came back is overwritten at once.
    fn take(&mut self) -> PageBuffer {
        self.look();
        while self.free.is_empty() && self.lent.len() >= SLOTS {
            // The peer is slow: the oldest comes back first.
            self.lent[0].1.wait(Some(HANG)).unwrap();
            self.look();
        }
        let any = || PageBuffer::with_capacity(1).unwrap();
        self.free.pop().unwrap_or_else(any)
    }

    fn look(&mut self) {
        for (pages, completion) in std::mem::take(&mut self.lent) {
            if completion.outcome().is_none() {
                self.lent.push((pages, completion));
                continue;
            }
            let len = pages.len();
            let mut buffer = pages.try_into_buffer().unwrap_or_else(|pages| {
                // Given away: the next buffer of the size is likely to have the same addresses.
                drop(pages);
                PageBuffer::with_capacity(len).unwrap()
            });
            buffer.set_len(len);
            fill(&mut buffer, u64::MAX);
            self.free.push(buffer);
        }
    }
}

/// Fills with words that the key and their places tell.
fn fill(bytes: &mut [u8], key: u64) {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut word = key;
    let mut words = bytes.chunks_exact_mut(8);
    for eight in &mut words {
        eight.copy_from_slice(&word.to_ne_bytes());
        word = word.wrapping_add(STEP);
    }
    let rest = words.into_remainder();
    rest.copy_from_slice(&word.to_ne_bytes()[..rest.len()]);
}

/// A number that looks like any other: the last step of splitmix64.
fn mixed(number: u64) -> u64 {
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}
