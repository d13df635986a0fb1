//! Tracks memory that was sent with `vmsplice` to a peer on another machine. The memory can be
//! reused once the peer has acknowledged the bytes.
//!
//! This does not work for a peer on the same machine: its receive queue keeps referring to the same
//! pages long after the acknowledgement.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::io::Result;

use super::completion::{FreeReason, SendPart};
use super::ended_send::{EndedSend, complete_all};
use super::lease::Lease;
use super::limits::BytesInFlight;
use super::registry::NotificationSource;
use crate::sys::fork::{self, OwnerProcess};
use crate::sys::{Acknowledged, Kernel, Linux};

/// The `vmsplice` sends of a socket that the peer has not acknowledged yet.
///
/// Owns a duplicate of the socket's descriptor, because a [`Completion`](super::Completion) that
/// refers to this value may briefly outlive the sender's socket.
#[derive(Debug)]
pub(crate) struct Acknowledgements {
    owner_process: OwnerProcess,
    socket: OwnedFd,
    unacknowledged: Mutex<VecDeque<UnacknowledgedSend>>,
}

#[derive(Debug)]
struct UnacknowledgedSend {
    /// The memory can be reused once the peer has acknowledged this number of bytes, counted from
    /// the start of the connection.
    acknowledged_at: u64,
    lease: Lease,
    part: SendPart,
}

/// The interval at which acknowledgements are polled, because the kernel does not report them.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

impl Acknowledgements {
    pub(crate) fn of(socket: BorrowedFd<'_>) -> Result<Self> {
        Ok(Self {
            owner_process: OwnerProcess::current(),
            socket: rustix::io::fcntl_dupfd_cloexec(socket, 3)?,
            unacknowledged: Mutex::default(),
        })
    }

    /// Keeps the lease of a send that the socket has just accepted, until the peer has acknowledged
    /// the bytes. If the number of acknowledged bytes cannot be read or the connection is closed,
    /// the memory is gifted instead: left to the kernel, and never written to again. Its bytes are
    /// then returned, because they still count as in flight.
    pub(crate) fn push(
        &self,
        kernel: &impl Kernel,
        lease: Lease,
        part: SendPart,
    ) -> Option<BytesInFlight> {
        match kernel.acknowledged(self.socket.as_fd()) {
            // Two system calls read `outstanding` and then `bytes`. Bytes that are acknowledged in
            // between are included in both, so the sum may be too large. The memory is then kept
            // longer than necessary, but never reused too early.
            Ok(now) if !now.is_closed => {
                self.lock().push_back(UnacknowledgedSend {
                    acknowledged_at: now.bytes + now.outstanding,
                    lease,
                    part,
                });
                None
            }
            _ => {
                let (ended, bytes) = gifted(lease, part);
                complete_all([ended]);
                Some(bytes)
            }
        }
    }

    /// Drops the leases of the sends that the peer has acknowledged, and completes these sends. If
    /// the connection is closed, nothing more will be acknowledged, so all remaining memory is
    /// gifted. It no longer counts as in flight, because the kernel has discarded the socket's
    /// queue.
    fn complete_acknowledged(&self, kernel: &impl Kernel) {
        if self.belongs_to_parent() {
            return;
        }
        let mut unacknowledged = self.lock();
        if unacknowledged.is_empty() {
            return;
        }
        let Ok(now) = kernel.acknowledged(self.socket.as_fd()) else {
            return;
        };
        let acknowledged = match now.is_closed {
            true => Vec::new(),
            false => take_acknowledged(&mut unacknowledged, now),
        };
        // The lock is released first, because completing a send runs wakers, which may call this
        // function again.
        drop(unacknowledged);
        complete_all(acknowledged.into_iter().map(UnacknowledgedSend::ended));
        if now.is_closed {
            drop(self.gift_all());
        }
    }

    /// Gifts the memory of all sends that have not been acknowledged: it is never written to again.
    /// Called when no further acknowledgement will arrive, or when the sender is dropped, after
    /// which nothing reads acknowledgements. Returns the bytes of these sends, which count as in
    /// flight until the result is dropped.
    pub(crate) fn gift_all(&self) -> Vec<BytesInFlight> {
        if self.belongs_to_parent() {
            return Vec::new();
        }
        let unacknowledged = std::mem::take(&mut *self.lock());
        let gifted = |send: UnacknowledgedSend| gifted(send.lease, send.part);
        let (ended, bytes): (Vec<_>, _) = unacknowledged.into_iter().map(gifted).unzip();
        complete_all(ended);
        bytes
    }

    /// Whether the caller is a forked child of the process that created this value. A child must
    /// not take the lock: if a thread of the parent held the lock during the fork, the child's copy
    /// of the lock is never released.
    fn belongs_to_parent(&self) -> bool {
        !self.owner_process.is_current()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<UnacknowledgedSend>> {
        // A panic while the lock was held cannot have left the list inconsistent.
        self.unacknowledged
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl UnacknowledgedSend {
    /// Ends the send, because the peer has acknowledged its bytes.
    fn ended(self) -> EndedSend {
        let bytes = self.lease.memory().len() as u64;
        EndedSend::sent(
            self.lease,
            Some(self.part),
            bytes,
            0,
            FreeReason::Acknowledged,
        )
    }
}

/// Removes the sends of which the peer has acknowledged every byte from `sends`, and returns them.
fn take_acknowledged(
    sends: &mut VecDeque<UnacknowledgedSend>,
    now: Acknowledged,
) -> Vec<UnacknowledgedSend> {
    let is_acknowledged =
        |send: &&UnacknowledgedSend| now.outstanding == 0 || now.bytes >= send.acknowledged_at;
    let count = sends.iter().take_while(is_acknowledged).count();
    sends.drain(..count).collect()
}

/// Gifts the memory to the kernel, and ends its send. Also returns the bytes in flight.
fn gifted(lease: Lease, part: SendPart) -> (EndedSend, BytesInFlight) {
    let bytes = lease.memory().len() as u64;
    let copied_on_write = lease.memory().copied_on_write();
    lease.memory().gift();
    let ended = EndedSend::gifted(part, bytes, copied_on_write);
    (ended, lease.into_bytes())
}

impl NotificationSource for Acknowledgements {
    fn reap(&self) {
        self.complete_acknowledged(&Linux);
    }

    fn wait(&self, limit: Duration) -> io::Result<()> {
        if self.belongs_to_parent() {
            return Err(fork::owned_by_parent());
        }
        self.reap();
        thread::sleep(limit.min(POLL_INTERVAL));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;
    use std::time::Instant;

    use super::*;
    use crate::arena::{Memory, PageBuffer};
    use crate::in_flight::{Completion, NotificationStats, Quota, SendTracker};
    use crate::sys::fork::tests::in_child;

    /// Returns the numbers that the kernel reports when the peer has acknowledged `bytes` bytes and
    /// many more are outstanding.
    fn acknowledged(bytes: u64) -> Acknowledged {
        Acknowledged {
            outstanding: 1 << 30,
            bytes,
            is_closed: false,
        }
    }

    /// The memory of a send can be reused once the peer has acknowledged the send's last byte, and
    /// not one byte earlier.
    #[test]
    fn a_send_ends_with_the_acknowledgement_of_its_last_byte() {
        let quota = Quota::new(u64::MAX);
        let ends = [4096, 8192, 8192 + 65_536, 8192 + 65_537];
        let mut sends: VecDeque<_> = ends
            .iter()
            .map(|&acknowledged_at| {
                let pages = PageBuffer::zeroed(1).expect("allocated").freeze();
                let lease = Lease::take(Memory::Pages(pages), &quota).expect("within the limit");
                let stats = Arc::new(NotificationStats::default());
                UnacknowledgedSend {
                    acknowledged_at,
                    lease,
                    part: SendTracker::new().part(&stats, None),
                }
            })
            .collect();
        let mut left = ends.len();
        for end in ends {
            let early = take_acknowledged(&mut sends, acknowledged(end - 1));
            assert!(early.is_empty(), "before {end}");
            let ended = take_acknowledged(&mut sends, acknowledged(end));
            assert_eq!((ended.len(), ended[0].acknowledged_at), (1, end));
            complete_all(ended.into_iter().map(UnacknowledgedSend::ended));
            left -= 1;
            assert_eq!(quota.in_flight_bytes(), left as u64 * 4096);
        }
    }

    /// If nothing is outstanding, the peer has acknowledged every send. That includes a send whose
    /// `acknowledged_at` is never reached, because [`Acknowledgements::push`] may compute a sum
    /// that is too large.
    #[test]
    fn every_send_ends_when_nothing_is_outstanding() {
        let quota = Quota::new(u64::MAX);
        let pages = PageBuffer::zeroed(1).expect("allocated").freeze();
        let mut sends = VecDeque::from([UnacknowledgedSend {
            acknowledged_at: 5000,
            lease: Lease::take(Memory::Pages(pages), &quota).expect("within the limit"),
            part: SendTracker::new().part(&Arc::new(NotificationStats::default()), None),
        }]);
        let now = Acknowledged {
            outstanding: 0,
            ..acknowledged(4096)
        };
        assert_eq!(take_acknowledged(&mut sends, now).len(), 1);
    }

    /// Returns a connected socket and its peer. The peer has acknowledged 100 bytes.
    fn acknowledged_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("an address");
        let mut socket = TcpStream::connect(address).expect("connected");
        let (peer, _) = listener.accept().expect("accepted");
        socket.write_all(&[1; 100]).expect("written");
        while Linux
            .acknowledged(socket.as_fd())
            .expect("read")
            .outstanding
            > 0
        {
            thread::sleep(POLL_INTERVAL);
        }
        (socket, peer)
    }

    /// Returns memory, a lease on it, and a part of a send with the completion of this send.
    fn sent() -> (Memory, Lease, SendPart, Completion) {
        let memory = Memory::Pages(PageBuffer::zeroed(1).expect("allocated").freeze());
        let lease = Lease::take(memory.clone(), &Quota::new(u64::MAX)).expect("within the limit");
        let tracker = SendTracker::new();
        let part = tracker.part(&Arc::default(), None);
        (memory, lease, part, tracker.completion())
    }

    #[test]
    fn a_send_is_kept_until_everything_written_so_far_is_acknowledged() {
        let (socket, _peer) = acknowledged_pair();
        let acknowledgements = Acknowledgements::of(socket.as_fd()).expect("duplicated");
        let (_, lease, part, _) = sent();
        assert!(acknowledgements.push(&Linux, lease, part).is_none());
        let now = Linux.acknowledged(socket.as_fd()).expect("read");
        assert_eq!(acknowledgements.lock()[0].acknowledged_at, now.bytes);
        assert!(now.bytes >= 100);
    }

    /// Nothing will be acknowledged on a closed connection, so waiting for it would never end.
    #[test]
    fn memory_sent_on_a_closed_connection_is_gifted() {
        let (socket, peer) = acknowledged_pair();
        // The peer has unread bytes, so closing its socket resets the connection.
        drop(peer);
        while !Linux.acknowledged(socket.as_fd()).expect("read").is_closed {
            thread::sleep(POLL_INTERVAL);
        }
        let acknowledgements = Acknowledgements::of(socket.as_fd()).expect("duplicated");
        let (memory, lease, part, completion) = sent();
        assert!(acknowledgements.push(&Linux, lease, part).is_some());
        let outcome = completion.outcome().expect("complete");
        assert_eq!((outcome.bytes, outcome.reason), (1, FreeReason::Gifted));
        assert!(memory.is_permanent());
    }

    /// Nothing reports an acknowledgement, so a thread that waits for one must sleep between polls.
    #[test]
    fn a_thread_sleeps_between_polls() {
        let (socket, _peer) = acknowledged_pair();
        let acknowledgements = Acknowledgements::of(socket.as_fd()).expect("duplicated");
        let began = Instant::now();
        acknowledgements.wait(Duration::MAX).expect("no failure");
        assert!(began.elapsed() >= POLL_INTERVAL);
    }

    /// The parent holds the lock during the fork, so the child's copy of the lock is never
    /// released.
    #[test]
    fn a_child_takes_no_lock_of_its_parent() {
        let (socket, _peer) = acknowledged_pair();
        let acknowledgements = Acknowledgements::of(socket.as_fd()).expect("duplicated");
        let unacknowledged = acknowledgements.lock();
        let is_refused = in_child(|| {
            acknowledgements.reap();
            let error = acknowledgements.wait(Duration::ZERO).expect_err("refused");
            let is_refused = error.kind() == io::ErrorKind::Unsupported;
            u8::from(is_refused && acknowledgements.gift_all().is_empty())
        });
        drop(unacknowledged);
        assert_eq!(is_refused, 1);
    }
}
