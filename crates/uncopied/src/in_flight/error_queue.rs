//! The sends of a socket by `MSG_ZEROCOPY` that are in flight, and the error queue of the socket,
//! whose notifications complete them.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, Result};

use super::completion::{FreeReason, SendPart};
use super::lease::Lease;
use super::reaper::Orphan;
use super::registry::NotificationSource;
use crate::sys::fork::{self, OwnerProcess};
use crate::sys::{ErrorQueueEntry, Kernel, Linux, Notification};

/// The error queue of a socket, and the sends that its notifications will complete.
///
/// It has a descriptor of its own: once the last descriptor of a socket is closed, its
/// notifications can no longer be read, although the kernel may still read the pages.
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

    /// Makes a zero-copy call. If it sends bytes, `sent` is kept under the kernel's next number
    /// until the notification for that number arrives.
    ///
    /// The lock is held during the call, because its notification can arrive before it returns.
    pub(crate) fn send(
        &self,
        mut sent: SentLease,
        call: impl FnOnce(&Lease) -> Result<usize>,
    ) -> Result<usize> {
        let mut outstanding = self.lock();
        let moved = call(&sent.lease)?;
        if moved > 0 {
            sent.lease.shorten(moved);
            outstanding.sends.push_back(Some(sent));
        }
        Ok(moved)
    }

    /// Whether the caller is a child of the process that sent. The notifications are the parent's,
    /// and the lock may be held forever: a child leaves both alone.
    pub(crate) fn belongs_to_parent(&self) -> bool {
        !self.owner_process.is_current()
    }

    /// How many sends are outstanding, including those that completed before an earlier one.
    pub(crate) fn len(&self) -> usize {
        self.lock().sends.len()
    }

    /// Whether no send is outstanding.
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
                // An error of the connection is not handled here: the next call on the socket
                // reports it.
                Ok(None) | Err(_) => break,
            }
        }
        drop(outstanding);
        // Completing a send runs wakers, which may call this again: the lock is released first.
        let count = ended.len();
        complete_all(ended);
        count
    }

    /// Resets the connection, which makes all notifications arrive (`connect(2)`: AF_UNSPEC).
    pub(crate) fn abort(&self) {
        let _ = rustix::net::connect_unspec(&self.socket);
    }

    /// Tells the peer that no more bytes follow, as closing the last descriptor would.
    pub(crate) fn shut_down(&self) {
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write);
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
            // poll(2) always reports a non-empty error queue, as POLLERR.
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

/// Back-off when the socket is ready but has no notification: a connection that is gone is always
/// ready, and its last notifications still take a moment.
const NO_NOTIFICATION_BACKOFF: Duration = Duration::from_millis(2);

/// An error queue whose sender is gone.
pub(crate) struct OrphanedErrorQueue {
    pub(crate) queue: Arc<ErrorQueue>,
    /// Whether the socket was closed with the sender. If so, the connection may be reset when the
    /// peer stops reading.
    pub(crate) is_closed: bool,
}

impl Orphan for OrphanedErrorQueue {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }

    fn ready_for(&self) -> PollFlags {
        PollFlags::empty()
    }

    fn reap(&self) -> usize {
        self.queue.drain(&Linux)
    }

    fn is_done(&self) -> bool {
        self.queue.is_empty()
    }

    fn give_up(&self) {
        if self.is_closed {
            self.queue.abort();
        }
    }
}

/// The memory that one call has sent, and the part of the send that its notification completes.
pub(crate) struct SentLease {
    pub(crate) lease: Lease,
    pub(crate) part: SendPart,
}

impl SentLease {
    fn complete(self, copied: bool) {
        let bytes = self.lease.memory().len() as u64;
        // The lease is dropped first: a task that learns that the pages are free may want them at
        // once.
        drop(self.lease);
        self.part.complete(
            bytes,
            if copied { bytes } else { 0 },
            FreeReason::Notification,
        );
    }
}

/// Completes all of these sends, even if a waker, which is foreign code, panics for one of them.
fn complete_all(ended: Vec<(SentLease, bool)>) {
    let mut panicked = None;
    for (sent, copied) in ended {
        let completing = catch_unwind(AssertUnwindSafe(|| sent.complete(copied)));
        panicked = completing.err().or(panicked);
    }
    if let Some(panic) = panicked {
        resume_unwind(panic);
    }
}

impl fmt::Debug for SentLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lease.fmt(f)
    }
}

/// The sends whose notifications have not arrived, by the kernel's numbers.
#[derive(Debug, Default)]
struct OutstandingSends {
    /// The number of the first send in the list.
    first_number: u32,
    /// `None` for a send whose notification arrived before that of an earlier one.
    sends: VecDeque<Option<SentLease>>,
}

impl OutstandingSends {
    /// Moves the sends of a notification to `ended`, with whether the kernel copied them. Numbers
    /// that are not outstanding are ignored.
    fn take_notified(&mut self, notification: Notification, ended: &mut Vec<(SentLease, bool)>) {
        // Numbers wrap around, so that only their distances from the first one are compared.
        let count = notification.last.wrapping_sub(notification.first) as usize + 1;
        let start = notification.first.wrapping_sub(self.first_number) as usize;
        let end = start.saturating_add(count).min(self.sends.len());
        for send in self.sends.range_mut(start.min(end)..end) {
            ended.extend(send.take().map(|sent| (sent, notification.copied)));
        }
        while let Some(None) = self.sends.front() {
            self.sends.pop_front();
            self.first_number = self.first_number.wrapping_add(1);
        }
    }
}

impl Drop for OutstandingSends {
    fn drop(&mut self) {
        // The notifications of these sends will not be read. The memory is leaked rather than freed
        // early, and the completions never report an outcome.
        self.sends.drain(..).for_each(std::mem::forget);
    }
}

#[cfg(test)]
mod tests {
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

    fn notification(first: u32, last: u32, copied: bool) -> Notification {
        Notification {
            first,
            last,
            copied,
        }
    }

    /// Completes the sends of a notification. Returns how many there were.
    fn process(outstanding: &mut OutstandingSends, notification: Notification) -> usize {
        let mut ended = Vec::new();
        outstanding.take_notified(notification, &mut ended);
        let count = ended.len();
        complete_all(ended);
        count
    }

    #[test]
    fn notifications_cover_ranges_arrive_out_of_order_and_wrap_around() {
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
        // As after a reset, the later sends first. Their numbers are MAX, 0 and 1.
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
        // Numbers that were never used, and ranges that extend past the last one.
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
        /// In whatever order the notifications arrive, each completes its own sends, once.
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
