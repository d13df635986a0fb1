//! Tracks the `MSG_ZEROCOPY` sends of a socket that are in flight, and completes them when their
//! notifications arrive on the socket's error queue.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, Result};

use super::completion::{FreeReason, SendPart};
use super::ended_send::{EndedSend, complete_all};
use super::lease::Lease;
use super::reaper::Orphan;
use super::registry::NotificationSource;
use super::socket_queue::{READY_FOR_RECOUNT, SocketQueue};
use crate::sys::fork::{self, OwnerProcess};
use crate::sys::{ErrorQueueEntry, Kernel, Linux, Notification, has_other_descriptor};

/// The error queue of a socket, with the sends that the notifications on this queue will complete.
///
/// Owns a duplicate of the socket's descriptor. If all descriptors of the socket were closed, its
/// notifications could no longer be read, although the kernel may still be reading the pages.
#[derive(Debug)]
pub(crate) struct ErrorQueue {
    owner_process: OwnerProcess,
    socket: OwnedFd,
    outstanding: Mutex<OutstandingSends>,
}

impl ErrorQueue {
    pub(crate) fn of(socket: BorrowedFd<'_>) -> Result<Self> {
        Ok(Self {
            owner_process: OwnerProcess::current(),
            socket: rustix::io::fcntl_dupfd_cloexec(socket, 3)?,
            outstanding: Mutex::default(),
        })
    }

    /// Runs `call`, which makes one zero-copy send. If the socket accepts any bytes, the kernel
    /// gives the send the next number of its sequence, and `sent` is kept until the notification
    /// for that number arrives. Otherwise `sent` is dropped.
    ///
    /// The lock is held while `call` runs, because the notification can arrive before `call`
    /// returns, and another thread must not read that notification before `sent` is in the list.
    pub(crate) fn send(
        &self,
        mut sent: SentLease,
        call: impl FnOnce(&Lease) -> Result<usize>,
    ) -> Result<usize> {
        let mut outstanding = self.lock();
        let result = call(&sent.lease);
        if let Ok(moved @ 1..) = result {
            sent.lease.shorten(moved);
            outstanding.sends.push_back(Some(sent));
        } else {
            drop(outstanding);
            complete_all([sent.unsent()]);
        }
        result
    }

    /// Whether the caller is a forked child of the process that created this queue. A child must
    /// not read the notifications, which are for the parent. Nor may it take the lock: if a thread
    /// of the parent held the lock during the fork, the child's copy of the lock is never released.
    pub(crate) fn belongs_to_parent(&self) -> bool {
        !self.owner_process.is_current()
    }

    /// Returns the number of outstanding sends. A send whose notification has arrived still counts
    /// while an earlier send is outstanding.
    pub(crate) fn len(&self) -> usize {
        self.lock().sends.len()
    }

    /// Whether all sends have been completed.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().sends.is_empty()
    }

    /// Processes all notifications that have arrived. Returns how many sends they completed.
    pub(crate) fn drain(&self, kernel: &impl Kernel) -> usize {
        if self.belongs_to_parent() {
            return 0;
        }
        let mut ended = Vec::new();
        let mut outstanding = self.lock();
        loop {
            match kernel.read_error_queue(self.socket.as_fd()) {
                Ok(Some(ErrorQueueEntry::Notification(notification))) => {
                    outstanding.take_notified(notification, &mut ended)
                }
                Ok(Some(ErrorQueueEntry::Other)) | Err(Errno::INTR) => {}
                // A connection error needs no handling here, because the next call on the socket
                // reports it.
                Ok(None) | Err(_) => break,
            }
        }
        // The lock is released first, because completing a send runs wakers, which may call `drain`
        // again.
        drop(outstanding);
        let count = ended.len();
        complete_all(ended);
        count
    }

    /// Resets the connection with `connect(2)` to `AF_UNSPEC`. The kernel then discards the bytes
    /// that it has queued, so that all outstanding notifications arrive.
    pub(crate) fn abort(&self) {
        let _ = rustix::net::connect_unspec(&self.socket);
    }

    fn lock(&self) -> MutexGuard<'_, OutstandingSends> {
        // A panic while the lock was held cannot have left the list inconsistent.
        self.outstanding
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for ErrorQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl NotificationSource for ErrorQueue {
    fn reap(&self) {
        self.drain(&Linux);
    }

    fn wait(&self, limit: Duration) -> io::Result<()> {
        if self.belongs_to_parent() {
            return Err(fork::owned_by_parent());
        }
        let began = Instant::now();
        let left = || limit.saturating_sub(began.elapsed());
        loop {
            // No events are requested: poll(2) always reports a non-empty error queue, as POLLERR.
            let mut ready = [PollFd::new(&self.socket, PollFlags::empty())];
            let timeout = Timespec::try_from(left()).ok();
            match poll(&mut ready, timeout.as_ref()) {
                Ok(0) => return Ok(()),
                Ok(_) if self.drain(&Linux) > 0 || self.is_empty() => return Ok(()),
                Ok(_) => std::thread::sleep(left().min(NO_NOTIFICATION_BACKOFF)),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            if left().is_zero() {
                return Ok(());
            }
        }
    }
}

/// The delay before the next poll(2) if the socket is ready but has no notification. The socket of
/// a broken connection is always ready, even while the last notifications have yet to arrive.
const NO_NOTIFICATION_BACKOFF: Duration = Duration::from_millis(2);

/// An error queue whose sender was dropped while sends were in flight.
pub(crate) struct OrphanedErrorQueue {
    pub(crate) queue: Arc<ErrorQueue>,
    /// The queue of the same socket, if gifted bytes of the sender are in it. It has its own
    /// duplicate of the descriptor, so both belong to one orphan: two orphans would each take the
    /// duplicate of the other for a descriptor of the program.
    pub(crate) socket_queue: Option<Arc<SocketQueue>>,
}

impl Orphan for OrphanedErrorQueue {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }

    fn ready_for(&self) -> PollFlags {
        match &self.socket_queue {
            Some(queue) if !queue.is_empty() => READY_FOR_RECOUNT,
            _ => PollFlags::empty(),
        }
    }

    fn reap(&self) -> usize {
        let recounted = self.socket_queue.as_ref();
        let recounted = recounted.map_or(0, |queue| queue.recount_with(&Linux));
        self.queue.drain(&Linux) + recounted
    }

    fn is_done(&self) -> bool {
        let socket_queue = self.socket_queue.as_ref();
        self.queue.is_empty() && socket_queue.is_none_or(|queue| queue.is_empty())
    }

    /// Whether the library's duplicates are the only descriptors of the socket in this process. The
    /// program may have kept its socket, or a clone of it, when it dropped the sender. It can then
    /// still use the connection, which a reset would break.
    fn is_abandoned(&self) -> bool {
        let own = 1 + usize::from(self.socket_queue.is_some());
        !has_other_descriptor(self.queue.as_fd(), own)
    }

    fn give_up(&self) {
        self.queue.abort();
    }
}

/// The memory that one `MSG_ZEROCOPY` call has sent, and the [`SendPart`] that the notification for
/// this call completes.
pub(crate) struct SentLease {
    pub(crate) lease: Lease,
    pub(crate) part: SendPart,
}

impl SentLease {
    /// Ends the send, because its notification has arrived. `copied` says whether the kernel copied
    /// the bytes.
    fn ended(self, copied: bool) -> EndedSend {
        let bytes = self.lease.memory().len() as u64;
        EndedSend::sent(
            self.lease,
            Some(self.part),
            bytes,
            if copied { bytes } else { 0 },
            FreeReason::Notification,
        )
    }

    /// Ends the send, because the socket accepted none of its bytes.
    fn unsent(self) -> EndedSend {
        EndedSend::unsent(Some(self.lease.into()), Some(self.part))
    }
}

impl fmt::Debug for SentLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lease.fmt(f)
    }
}

/// The sends whose notifications have not arrived yet. The kernel gives consecutive numbers to
/// those zero-copy calls on a socket that send at least one byte. Its notifications refer to these
/// numbers.
#[derive(Debug, Default)]
struct OutstandingSends {
    /// The kernel's number of the first entry of `sends`. Each further entry has the next number.
    first_number: u32,
    /// An entry is `None` if its notification has arrived but that of an earlier entry has not.
    sends: VecDeque<Option<SentLease>>,
}

impl OutstandingSends {
    /// Ends the sends that `notification` covers, and adds them to `ended`. Numbers of sends that
    /// are not outstanding are ignored.
    fn take_notified(&mut self, notification: Notification, ended: &mut Vec<EndedSend>) {
        // The kernel's numbers wrap around, so compare their distances from `first_number` instead
        // of the numbers themselves.
        let count = notification.last.wrapping_sub(notification.first) as usize + 1;
        let start = notification.first.wrapping_sub(self.first_number) as usize;
        let end = start.saturating_add(count).min(self.sends.len());
        for send in self.sends.range_mut(start.min(end)..end) {
            ended.extend(send.take().map(|sent| sent.ended(notification.copied)));
        }
        while let Some(None) = self.sends.front() {
            self.sends.pop_front();
            self.first_number = self.first_number.wrapping_add(1);
        }
    }
}

impl Drop for OutstandingSends {
    fn drop(&mut self) {
        // Nothing will read the notifications of the remaining sends, so it can never be known when
        // the kernel is done with their memory. Leak the memory rather than free it early. The
        // completions of these sends never report an outcome.
        self.sends.drain(..).for_each(std::mem::forget);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use proptest::prelude::*;

    use super::*;
    use crate::arena::Memory;
    use crate::arena::PageBuffer;
    use crate::in_flight::{Completion, NotificationStats, Quota, SendTracker};

    fn sent(quota: &Arc<Quota>) -> (SentLease, Completion) {
        let pages = PageBuffer::zeroed(1).expect("allocated").freeze();
        let lease = Lease::take(Memory::Pages(pages), quota).expect("within the limit");
        let tracker = SendTracker::new();
        let part = tracker.part(&Arc::new(NotificationStats::default()), None);
        (SentLease { lease, part }, tracker.completion())
    }

    fn tcp_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("an address");
        let socket = TcpStream::connect(address).expect("connected");
        (socket, listener.accept().expect("accepted").0)
    }

    /// Adds a send to the queue whose notification never arrives, because no system call has been
    /// made for it.
    fn add_unnotified(queue: &ErrorQueue) {
        let (sent, _) = sent(&Quota::new(1 << 30));
        assert_eq!(queue.send(sent, |_| Ok(1)), Ok(1));
    }

    /// The socket of a reset connection is always ready, whether or not it has a notification.
    #[test]
    fn waiting_on_a_reset_connection_lasts_while_sends_are_outstanding() {
        let (mut socket, peer) = tcp_pair();
        let queue = ErrorQueue::of(socket.as_fd()).expect("duplicated");
        // Because the peer has an unread byte, closing its socket resets the connection.
        socket.write_all(&[1]).expect("written");
        drop(peer);
        assert!(socket.read(&mut [0]).is_err(), "reset");

        let wait = |limit| {
            let began = Instant::now();
            queue.wait(limit).expect("no failure");
            began.elapsed()
        };
        let long = Duration::from_secs(10);
        assert!(wait(long) < long, "nothing is outstanding");
        add_unnotified(&queue);
        let short = Duration::from_millis(100);
        assert!(wait(short) >= short, "no notification has arrived");
    }

    #[test]
    fn waiting_ends_with_the_first_notification() {
        let (socket, _peer) = tcp_pair();
        Linux.allow_zerocopy(socket.as_fd()).expect("allowed");
        let queue = ErrorQueue::of(socket.as_fd()).expect("duplicated");
        let (sent, completion) = sent(&Quota::new(1 << 30));
        let send = |lease: &Lease| {
            let bytes = lease.memory().mapped();
            Linux.send_zerocopy(socket.as_fd(), bytes)
        };
        assert_eq!(queue.send(sent, send), Ok(1));
        add_unnotified(&queue);
        let limit = Duration::from_secs(10);
        let began = Instant::now();
        queue.wait(limit).expect("no failure");
        assert!(began.elapsed() < limit, "the first send has a notification");
        assert!(completion.outcome().is_some());
        assert_eq!(queue.len(), 1);
    }

    /// An orphan has to be kept until both of its queues are empty.
    #[test]
    fn an_orphan_is_done_once_both_queues_are_empty() {
        let (socket, _peer) = tcp_pair();
        let queue = Arc::new(ErrorQueue::of(socket.as_fd()).expect("duplicated"));
        let socket_queue = SocketQueue::of(&Linux, socket.as_fd(), true);
        let socket_queue = Arc::new(socket_queue.expect("duplicated"));
        let without = OrphanedErrorQueue {
            queue: Arc::clone(&queue),
            socket_queue: None,
        };
        let orphan = OrphanedErrorQueue {
            queue: Arc::clone(&queue),
            socket_queue: Some(Arc::clone(&socket_queue)),
        };
        let add_gifted = || {
            let memory = Memory::Pages(PageBuffer::zeroed(1).expect("allocated").freeze());
            let count = Quota::new(1 << 30).reserve(&memory);
            socket_queue.push_all(count);
        };
        assert!(without.is_done() && orphan.is_done());
        add_gifted();
        assert!(without.is_done() && !orphan.is_done());
        add_unnotified(&queue);
        assert!(!without.is_done() && !orphan.is_done());
        assert_eq!(without.ready_for(), PollFlags::empty());
        assert_eq!(orphan.ready_for(), READY_FOR_RECOUNT);
        // Nothing was written to the socket, so the gifted bytes have left its queue.
        assert_eq!((orphan.reap(), orphan.reap()), (1, 0));
        assert_eq!(orphan.ready_for(), PollFlags::empty());
        assert!(!without.is_done() && !orphan.is_done());
        assert_eq!(process(&mut queue.lock(), notification(0, 0, false)), 1);
        assert!(without.is_done() && orphan.is_done());
    }

    fn notification(first: u32, last: u32, copied: bool) -> Notification {
        Notification {
            first,
            last,
            copied,
        }
    }

    /// Completes the sends that `notification` covers, and returns their number.
    fn process(outstanding: &mut OutstandingSends, notification: Notification) -> usize {
        let mut ended = Vec::new();
        outstanding.take_notified(notification, &mut ended);
        let count = ended.len();
        complete_all(ended);
        count
    }

    #[test]
    fn notifications_of_ranges_may_arrive_out_of_order_and_wrap_around() {
        let quota = Quota::new(1 << 30);
        let mut outstanding = OutstandingSends {
            first_number: u32::MAX - 1,
            sends: VecDeque::new(),
        };
        let completions: Vec<_> = (0..5)
            .map(|_| {
                let (sent, completion) = sent(&quota);
                outstanding.sends.push_back(Some(sent));
                completion
            })
            .collect();
        let are_complete = |completions: &[Completion]| -> Vec<bool> {
            completions
                .iter()
                .map(|completion| completion.outcome().is_some())
                .collect()
        };
        // A send may complete before an earlier one, for example after a reset. Here, the second to
        // fourth send (numbers `u32::MAX`, 0 and 1) complete before the first.
        assert_eq!(
            process(&mut outstanding, notification(u32::MAX, 1, true)),
            3
        );
        assert_eq!(are_complete(&completions), [false, true, true, true, false]);
        assert_eq!(
            process(&mut outstanding, notification(u32::MAX, 1, true)),
            0
        );
        assert_eq!(
            process(
                &mut outstanding,
                notification(u32::MAX - 1, u32::MAX - 1, false)
            ),
            1
        );
        assert_eq!((outstanding.first_number, outstanding.sends.len()), (2, 1));
        // Numbers that were never used or are no longer outstanding are ignored, and so is the part
        // of a range past the last send.
        assert_eq!(process(&mut outstanding, notification(3, 900, false)), 0);
        assert_eq!(process(&mut outstanding, notification(0, 1, false)), 0);
        assert_eq!(process(&mut outstanding, notification(2, 900, false)), 1);
        assert_eq!(are_complete(&completions), [true; 5]);
        assert_eq!(quota.in_flight_bytes(), 0);
        let copied = completions
            .iter()
            .map(|completion| completion.outcome().map(|outcome| outcome.copied));
        assert_eq!(
            copied.collect::<Vec<_>>(),
            [Some(0), Some(1), Some(1), Some(1), Some(0)]
        );
    }

    proptest! {
        /// Each notification completes exactly its own sends, whatever the order in which the
        /// notifications arrive.
        #[test]
        fn every_notification_completes_its_sends_once(
            first in prop_oneof![any::<u32>(), Just(u32::MAX - 3)],
            cuts in prop::collection::vec(1_u32..5, 1..12),
            order in prop::collection::vec(any::<prop::sample::Index>(), 12),
        ) {
            let quota = Quota::new(1 << 30);
            let total: u32 = cuts.iter().sum();
            let mut outstanding = OutstandingSends { first_number: first, sends: VecDeque::new() };
            for _ in 0..total {
                outstanding.sends.push_back(Some(sent(&quota).0));
            }
            let mut next = first;
            let mut notifications: Vec<_> = cuts.iter().map(|&count| {
                let range = notification(next, next.wrapping_add(count - 1), false);
                next = next.wrapping_add(count);
                (range, count as usize)
            }).collect();
            for pick in order {
                if notifications.is_empty() {
                    break;
                }
                let (range, count) = notifications.swap_remove(pick.index(notifications.len()));
                prop_assert_eq!(process(&mut outstanding, range), count);
            }
            prop_assert_eq!(outstanding.sends.is_empty(), notifications.is_empty());
            for (range, count) in notifications {
                prop_assert_eq!(process(&mut outstanding, range), count);
            }
            prop_assert_eq!(quota.in_flight_bytes(), 0);
            prop_assert_eq!(outstanding.first_number, first.wrapping_add(total));
        }
    }

    #[test]
    fn sends_whose_notifications_will_not_be_read_are_leaked() {
        let quota = Quota::new(1 << 30);
        let mut outstanding = OutstandingSends::default();
        outstanding.sends.push_back(Some(sent(&quota).0));
        drop(outstanding);
        assert_eq!(quota.in_flight_bytes(), 4096);
    }
}
