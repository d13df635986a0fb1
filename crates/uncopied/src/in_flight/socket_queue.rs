//! Counts the bytes that were sent with `vmsplice` and may still be in the queue of their socket.
//!
//! The kernel does not report when it is done with such bytes, and the library does not wait for
//! that: the pages are gifted, and their send is complete at once. But the pages stay allocated as
//! long as the queue refers to them, so they count against the limits until they have left the
//! queue.
//!
//! To find that out, the length of the queue is compared with the number of bytes that were sent
//! after them. That takes a system call. So the queue is only read when a limit would be exceeded,
//! after every [`RECOUNT_INTERVAL_BYTES`], and when someone asks for the number of bytes in flight.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::io::Result;
use rustix::net::Shutdown;

use super::limits::BytesInFlight;
use super::reaper::Orphan;
use super::registry::NotificationSource;
use crate::sys::fork::OwnerProcess;
use crate::sys::{Kernel, Linux, has_other_descriptor};

/// The queue of a socket, and the gifted bytes that may be in it.
///
/// Owns a duplicate of the socket's descriptor, so that other senders that have reached the limit
/// of the process can read the length of the queue.
#[derive(Debug)]
pub(crate) struct SocketQueue {
    owner_process: OwnerProcess,
    socket: OwnedFd,
    /// The number of the descriptor that was duplicated.
    descriptor: RawFd,
    is_tcp: bool,
    /// The number of bytes that the sender has sent since this value was created. The socket may
    /// have been given more bytes, for example through a clone.
    sent_bytes: AtomicU64,
    /// The value of `sent_bytes` when the queue was last read.
    recounted_at: AtomicU64,
    gifted: Mutex<VecDeque<GiftedBytes>>,
}

/// Gifted bytes that may be in the queue.
#[derive(Debug)]
struct GiftedBytes {
    /// The value of [`SocketQueue::sent_bytes`] after the last of the bytes.
    end: u64,
    /// The bytes have left the queue once the peer has acknowledged this number of bytes, counted
    /// from the start of the connection. [`u64::MAX`] before the queue has been read, and always
    /// for a Unix socket.
    acknowledged_at: u64,
    /// Counts against the limits for as long as it exists.
    _count: BytesInFlight,
}

/// The number of bytes that a sender sends before it reads its queue again, even if no limit is
/// reached. Keeps bytes that have long left the queue from using up the limit of the process.
const RECOUNT_INTERVAL_BYTES: u64 = 1 << 20;

impl SocketQueue {
    /// Fails if the socket does not report the length of its queue.
    pub(crate) fn of(kernel: &impl Kernel, socket: BorrowedFd<'_>, is_tcp: bool) -> Result<Self> {
        kernel.queued_bytes(socket)?;
        Ok(Self {
            owner_process: OwnerProcess::current(),
            socket: rustix::io::fcntl_dupfd_cloexec(socket, 3)?,
            descriptor: socket.as_raw_fd(),
            is_tcp,
            sent_bytes: AtomicU64::new(0),
            recounted_at: AtomicU64::new(0),
            gifted: Mutex::default(),
        })
    }

    /// Whether this is the queue of `socket`, and was created by this process. A descriptor with
    /// the same number as the one that was duplicated is taken for the same socket.
    pub(crate) fn is_of(&self, kernel: &impl Kernel, socket: BorrowedFd<'_>) -> bool {
        let is_same_socket = || {
            let own = kernel.socket_cookie(self.socket.as_fd());
            own.is_ok() && own == kernel.socket_cookie(socket)
        };
        !self.belongs_to_parent() && (self.descriptor == socket.as_raw_fd() || is_same_socket())
    }

    /// Counts bytes that the socket has accepted from this sender, sent with any mechanism. Returns
    /// the number of bytes that the sender has sent so far.
    ///
    /// Must be called after the socket has accepted the bytes, not before: bytes that are counted
    /// too early would make earlier bytes seem to have left the queue.
    pub(crate) fn count_sent(&self, bytes: u64) -> u64 {
        self.sent_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes
    }

    /// Keeps `count` until the bytes have left the queue. `end` is the result of
    /// [`count_sent`](Self::count_sent) for the last of these bytes.
    pub(crate) fn push(&self, end: u64, count: BytesInFlight) {
        if self.belongs_to_parent() {
            return;
        }
        self.lock().push_back(GiftedBytes {
            end,
            acknowledged_at: u64::MAX,
            _count: count,
        });
    }

    /// Keeps `counts` until all bytes that the sender has sent so far have left the queue.
    pub(crate) fn push_all(&self, counts: impl IntoIterator<Item = BytesInFlight>) {
        let end = self.sent_bytes.load(Ordering::Relaxed);
        counts.into_iter().for_each(|count| self.push(end, count));
    }

    /// Whether no gifted bytes are in the queue, as far as it is known without a system call.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Does the same as [`recount_with`](Self::recount_with), if at least
    /// [`RECOUNT_INTERVAL_BYTES`] were sent since the queue was last read.
    pub(crate) fn recount_at_interval(&self, kernel: &impl Kernel) {
        let sent = self.sent_bytes.load(Ordering::Relaxed);
        let recounted_at = self.recounted_at.load(Ordering::Relaxed);
        if sent.wrapping_sub(recounted_at) >= RECOUNT_INTERVAL_BYTES {
            self.recount_with(kernel);
        }
    }

    /// Reads the length of the queue, and stops counting the bytes that have left it. Returns how
    /// many sends these bytes belong to, or 0 in a forked child.
    pub(crate) fn recount_with(&self, kernel: &impl Kernel) -> usize {
        if self.belongs_to_parent() {
            return 0;
        }
        // Must be read before the length of the queue. Bytes that are sent in between would
        // otherwise be missing in the length, and earlier bytes would seem to have left the queue.
        let sent = self.sent_bytes.load(Ordering::Relaxed);
        self.recounted_at.store(sent, Ordering::Relaxed);
        let mut gifted = self.lock();
        if gifted.is_empty() {
            return 0;
        }
        let count = gifted.len();
        if let Ok(queued) = kernel.queued_bytes(self.socket.as_fd()) {
            // The queue contains the last `queued` bytes that were written to the socket. Bytes
            // after which at least as many were written are no longer among them.
            let has_left = |bytes: &GiftedBytes| queued <= sent.saturating_sub(bytes.end);
            pop_front_while(&mut gifted, has_left);
        }
        if self.is_tcp && gifted.len() == count {
            self.compare_acknowledged(kernel, sent, &mut gifted);
        }
        count - gifted.len()
    }

    /// Stops counting the bytes that the peer has acknowledged, according to `TCP_INFO`. This is
    /// needed if the connection is closed, and if the socket is also written to without this
    /// sender: the queue may then never be short enough for the comparison that
    /// [`recount_with`](Self::recount_with) makes.
    fn compare_acknowledged(
        &self,
        kernel: &impl Kernel,
        sent: u64,
        gifted: &mut VecDeque<GiftedBytes>,
    ) {
        let Ok(now) = kernel.acknowledged(self.socket.as_fd()) else {
            return;
        };
        if now.is_closed {
            // The kernel has discarded the queue.
            gifted.clear();
            return;
        }
        pop_front_while(gifted, |bytes| now.bytes >= bytes.acknowledged_at);
        let written = now.bytes + now.outstanding;
        for bytes in gifted {
            // At least `sent - end` bytes were written after these bytes, and more if others write
            // to the socket. So this position is never before the last of them.
            let end = written.saturating_sub(sent.saturating_sub(bytes.end));
            bytes.acknowledged_at = bytes.acknowledged_at.min(end);
        }
    }

    /// Whether the caller is a forked child of the process that created this value. A child must
    /// not take the lock: if a thread of the parent held the lock during the fork, the child's copy
    /// of the lock is never released.
    pub(crate) fn belongs_to_parent(&self) -> bool {
        !self.owner_process.is_current()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<GiftedBytes>> {
        // A panic while the lock was held cannot have left the list inconsistent.
        self.gifted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pop_front_while(gifted: &mut VecDeque<GiftedBytes>, has_left: impl Fn(&GiftedBytes) -> bool) {
    while gifted.front().is_some_and(&has_left) {
        gifted.pop_front();
    }
}

impl NotificationSource for SocketQueue {
    fn reap(&self) {
        self.recount();
    }

    fn recount(&self) {
        self.recount_with(&Linux);
    }

    fn wait(&self, limit: Duration) -> io::Result<()> {
        self.recount();
        thread::sleep(limit);
        Ok(())
    }
}

/// The events for which the reaper waits before it reads the length of a queue. Nothing reports
/// that the last byte has left the queue. But the socket becomes writable before that, so the
/// reaper sleeps until then, and polls from then on.
pub(super) const READY_FOR_RECOUNT: PollFlags = PollFlags::OUT;

/// The queue of a socket whose sender was dropped while gifted bytes were in the queue.
pub(crate) struct OrphanedSocketQueue(pub(crate) Arc<SocketQueue>);

impl Orphan for OrphanedSocketQueue {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.socket.as_fd()
    }

    fn ready_for(&self) -> PollFlags {
        READY_FOR_RECOUNT
    }

    fn reap(&self) -> usize {
        self.0.recount_with(&Linux)
    }

    fn is_done(&self) -> bool {
        self.0.is_empty()
    }

    fn is_abandoned(&self) -> bool {
        !has_other_descriptor(self.0.socket.as_fd(), 1)
    }

    /// Resets a TCP connection, so that the kernel discards the queue. The queue of a Unix socket
    /// cannot be discarded: it ends when the peer reads it or closes its socket. So the peer is
    /// only told that no more bytes follow.
    fn give_up(&self) {
        let socket = &self.0.socket;
        let _ = match self.0.is_tcp {
            true => rustix::net::connect_unspec(socket),
            false => rustix::net::shutdown(socket, Shutdown::Write),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};

    use super::*;
    use crate::arena::{Memory, PageBuffer};
    use crate::in_flight::Quota;
    use crate::sys::fork::tests::in_child;

    const PAGE_BYTES: u64 = 4096;

    fn count(quota: &Arc<Quota>) -> BytesInFlight {
        let memory = Memory::Pages(PageBuffer::zeroed(1).expect("allocated").freeze());
        quota.reserve(&memory).expect("within the limit")
    }

    /// Returns a socket that is full, its peer, and how many bytes were written to the socket.
    fn full_tcp_pair() -> (TcpStream, TcpStream, u64) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("an address");
        let mut socket = TcpStream::connect(address).expect("connected");
        let (peer, _) = listener.accept().expect("accepted");
        set_socket_send_buffer_size(&socket, 64 << 10).expect("set");
        set_socket_recv_buffer_size(&peer, 64 << 10).expect("set");
        socket.set_nonblocking(true).expect("set");
        let mut written = 0;
        // A socket that is full for some time stays full.
        let mut full_in_a_row = 0;
        while full_in_a_row < 20 {
            match socket.write(&[1; 10_000]) {
                Ok(count) => {
                    written += count as u64;
                    full_in_a_row = 0;
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    full_in_a_row += 1;
                    thread::sleep(Duration::from_millis(1));
                }
            }
        }
        (socket, peer, written)
    }

    #[test]
    fn a_queue_recognises_its_socket() {
        let (socket, other) = UnixStream::pair().expect("created");
        let clone = socket.try_clone().expect("duplicated");
        let queue = SocketQueue::of(&Linux, socket.as_fd(), false).expect("duplicated");
        assert!(queue.is_of(&Linux, socket.as_fd()));
        assert!(queue.is_of(&Linux, clone.as_fd()));
        assert!(!queue.is_of(&Linux, other.as_fd()));
    }

    #[test]
    fn bytes_count_until_the_last_of_them_has_left_the_queue() {
        let (socket, mut peer, written) = full_tcp_pair();
        let queued = Linux.queued_bytes(socket.as_fd()).expect("read");
        assert!(0 < queued && queued < written);
        let quota = Quota::new(u64::MAX);
        let queue = SocketQueue::of(&Linux, socket.as_fd(), true).expect("duplicated");
        assert_eq!(queue.count_sent(written - 1), written - 1);
        assert_eq!(queue.count_sent(1), written);
        assert!(queue.is_empty());
        queue.push(written - queued, count(&quota));
        queue.push(written - queued + 1, count(&quota));
        queue.push_all([count(&quota)]);
        assert!(!queue.is_empty());
        assert_eq!(quota.in_flight_bytes(), 3 * PAGE_BYTES);
        assert_eq!(queue.recount_with(&Linux), 1);
        assert_eq!(quota.in_flight_bytes(), 2 * PAGE_BYTES);
        assert_eq!(queue.recount_with(&Linux), 0);

        peer.read_exact(&mut vec![0; written as usize])
            .expect("every byte");
        while !queue.is_empty() {
            thread::sleep(Duration::from_millis(1));
            queue.recount();
        }
        assert_eq!(quota.in_flight_bytes(), 0);
    }

    #[test]
    fn the_queue_is_read_at_intervals() {
        let (socket, _peer) = UnixStream::pair().expect("created");
        let quota = Quota::new(u64::MAX);
        let queue = SocketQueue::of(&Linux, socket.as_fd(), false).expect("duplicated");
        // The socket's queue is empty, so reading its length ends the count at once.
        queue.push(queue.count_sent(RECOUNT_INTERVAL_BYTES - 1), count(&quota));
        queue.recount_at_interval(&Linux);
        assert_eq!(quota.in_flight_bytes(), PAGE_BYTES);
        queue.count_sent(1);
        queue.recount_at_interval(&Linux);
        assert_eq!(quota.in_flight_bytes(), 0);
        queue.push(queue.count_sent(RECOUNT_INTERVAL_BYTES / 2), count(&quota));
        queue.recount_at_interval(&Linux);
        assert_eq!(quota.in_flight_bytes(), PAGE_BYTES);
    }

    #[test]
    fn bytes_of_a_closed_connection_no_longer_count() {
        let (mut socket, peer, _) = full_tcp_pair();
        let quota = Quota::new(u64::MAX);
        let queue = SocketQueue::of(&Linux, socket.as_fd(), true).expect("duplicated");
        queue.push(u64::MAX, count(&quota));
        assert_eq!((queue.recount_with(&Linux), queue.is_empty()), (0, false));
        drop(peer);
        socket.set_nonblocking(false).expect("set");
        assert!(socket.read(&mut [0]).is_err(), "reset");
        assert_eq!((queue.recount_with(&Linux), queue.is_empty()), (1, true));
    }

    /// While the program has a descriptor of the socket, it may use the connection.
    #[test]
    fn an_orphan_is_abandoned_once_the_program_has_no_descriptor() {
        let (socket, mut peer) = UnixStream::pair().expect("created");
        let queue = SocketQueue::of(&Linux, socket.as_fd(), false).expect("duplicated");
        let orphan = OrphanedSocketQueue(Arc::new(queue));
        assert!(!orphan.is_abandoned());
        drop(socket);
        assert!(orphan.is_abandoned());
        orphan.give_up();
        assert_eq!(peer.read(&mut [0]).expect("the end"), 0);

        let (socket, mut peer, _) = full_tcp_pair();
        let queue = SocketQueue::of(&Linux, socket.as_fd(), true).expect("duplicated");
        let orphan = OrphanedSocketQueue(Arc::new(queue));
        assert!(!orphan.is_abandoned());
        drop(socket);
        assert!(orphan.is_abandoned());
        orphan.give_up();
        let error = peer.read_to_end(&mut Vec::new()).expect_err("reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }

    /// Nothing reports that bytes have left the queue, so a thread that waits for that must sleep.
    #[test]
    fn waiting_recounts_and_sleeps() {
        let (socket, _peer) = UnixStream::pair().expect("created");
        let quota = Quota::new(u64::MAX);
        let queue = SocketQueue::of(&Linux, socket.as_fd(), false).expect("duplicated");
        queue.push_all([count(&quota)]);
        let limit = Duration::from_millis(20);
        let began = Instant::now();
        queue.wait(limit).expect("no failure");
        assert!(began.elapsed() >= limit && queue.is_empty());
    }

    /// The parent holds the lock during the fork, so the child's copy of the lock is never
    /// released.
    #[test]
    fn a_child_takes_no_lock_of_its_parent() {
        let (socket, _peer) = UnixStream::pair().expect("created");
        let quota = Quota::new(u64::MAX);
        let mut count = Some(count(&quota));
        let queue = SocketQueue::of(&Linux, socket.as_fd(), false).expect("duplicated");
        let gifted = queue.lock();
        let is_left_alone = in_child(|| {
            queue.push_all(count.take());
            let recounted = queue.recount_with(&Linux);
            u8::from(recounted == 0 && !queue.is_of(&Linux, socket.as_fd()))
        });
        drop(gifted);
        assert_eq!(is_left_alone, 1);
    }
}
