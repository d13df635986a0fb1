//! What a socket has been lent by `MSG_ZEROCOPY`, and the notices that give it back.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, Result};

use super::completion::{FreeReason, NotificationSource, SendPart};
use super::lease::Lease;
use super::reaper::Orphan;
use crate::sys::fork::{self, OwnerProcess};
use crate::sys::{ErrorQueueEntry, Kernel, Linux, Notification};

/// The error queue of a socket, with what the kernel still has of ours.
///
/// It has a descriptor of its own: after the last `close` of a socket nobody hears of its notices any
/// more, though the kernel may still read the pages.
#[derive(Debug)]
pub(crate) struct ErrorQueue {
    owner_process: OwnerProcess,
    socket: OwnedFd,
    outstanding: Mutex<Outstanding>,
}

impl ErrorQueue {
    pub(crate) fn of(socket: BorrowedFd<'_>) -> Result<Self> {
        Ok(Self {
            owner_process: OwnerProcess::current(),
            socket: rustix::io::fcntl_dupfd_cloexec(socket, 3)?,
            outstanding: Mutex::default(),
        })
    }

    /// Makes a call that lends `lent`, and keeps it under the kernel's next number if the call has moved
    /// bytes. No notice is taken in meanwhile: it could be this call's.
    pub(crate) fn send(
        &self,
        mut lent: SentLease,
        call: impl FnOnce(&Lease) -> Result<usize>,
    ) -> Result<usize> {
        let mut outstanding = self.lock();
        let moved = call(&lent.lease)?;
        if moved > 0 {
            lent.lease.shorten(moved);
            outstanding.sends.push_back(Some(lent));
        }
        Ok(moved)
    }

    /// Whether a child process looks at the queue of its parent. The notices are the parent's, and the
    /// ledger's lock may be held for ever: the child leaves both alone.
    pub(crate) fn is_of_parent(&self) -> bool {
        !self.owner_process.is_current()
    }

    /// How many sends are outstanding, and those that came back before an earlier one.
    pub(crate) fn len(&self) -> usize {
        self.lock().sends.len()
    }

    /// Whether everything has come back.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().sends.is_empty()
    }

    /// Takes in all notices that are there. Answers how many sends they settled.
    pub(crate) fn drain(&self, kernel: &impl Kernel) -> usize {
        if self.is_of_parent() {
            return 0;
        }
        let mut ended = Vec::new();
        let mut outstanding = self.lock();
        loop {
            match kernel.read_error_queue(self.socket.as_fd()) {
                Ok(Some(ErrorQueueEntry::Notification(notification))) => {
                    outstanding.end(notification, &mut ended)
                }
                Ok(Some(ErrorQueueEntry::Other)) | Err(Errno::INTR) => {}
                // What breaks a connection is on the queue as well, or met by the next call.
                Ok(None) | Err(_) => break,
            }
        }
        drop(outstanding);
        // Whoever is woken may come back here.
        let count = ended.len();
        complete_all(ended);
        count
    }

    /// Ends the connection at once, so that all notices come (`connect(2)`: AF_UNSPEC).
    pub(crate) fn abort(&self) {
        let _ = rustix::net::connect_unspec(&self.socket);
    }

    /// Says that no more bytes follow, as closing the last descriptor would.
    pub(crate) fn shut_down(&self) {
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write);
    }

    fn lock(&self) -> MutexGuard<'_, Outstanding> {
        // The list is whole between any two of the statements that could panic.
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
        if self.is_of_parent() {
            return Err(fork::owned_by_parent());
        }
        let began = Instant::now();
        let left = || limit.saturating_sub(began.elapsed());
        loop {
            // An error queue that is not empty is an error to poll(2), which needs no asking for.
            let mut ready = [PollFd::new(&self.socket, PollFlags::empty())];
            let timeout = Timespec::try_from(left()).ok();
            match poll(&mut ready, timeout.as_ref()) {
                Ok(0) => return Ok(()),
                Ok(_) if self.drain(&Linux) > 0 || self.is_empty() => return Ok(()),
                // A connection that is gone is ready for ever; its notices still take a moment.
                Ok(_) => std::thread::sleep(left().min(RETRY_INTERVAL)),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            if left().is_zero() {
                return Ok(());
            }
        }
    }
}

const RETRY_INTERVAL: Duration = Duration::from_millis(2);

/// An error queue whose sender is gone.
pub(crate) struct OrphanedErrorQueue {
    pub(crate) queue: Arc<ErrorQueue>,
    /// Whether the socket went with the sender: then a peer that takes nothing may be cut off.
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

/// What one call has lent.
pub(crate) struct SentLease {
    pub(crate) lease: Lease,
    pub(crate) part: SendPart,
}

impl SentLease {
    fn complete(self, copied: bool) {
        let bytes = self.lease.memory().len() as u64;
        // The pages first: whoever is told that they are free may ask for them at once.
        drop(self.lease);
        self.part.complete(
            bytes,
            if copied { bytes } else { 0 },
            FreeReason::Notification,
        );
    }
}

/// Settles all of them. Wakers are anybody's code: one that panics keeps nobody else's send open.
fn complete_all(ended: Vec<(SentLease, bool)>) {
    let mut panicked = None;
    for (lent, copied) in ended {
        let completing = catch_unwind(AssertUnwindSafe(|| lent.complete(copied)));
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

/// The sends that no notice has told of, by their numbers.
#[derive(Debug, Default)]
struct Outstanding {
    /// The number of the first.
    first: u32,
    /// `None` where the notice came before that of an earlier one.
    sends: VecDeque<Option<SentLease>>,
}

impl Outstanding {
    /// Takes out the sends of a notice. Numbers that are not outstanding are passed over.
    fn end(&mut self, notification: Notification, ended: &mut Vec<(SentLease, bool)>) {
        // Numbers wrap: what counts is their distance from the first.
        let count = notification.last.wrapping_sub(notification.first) as usize + 1;
        let start = notification.first.wrapping_sub(self.first) as usize;
        let end = start.saturating_add(count).min(self.sends.len());
        for send in self.sends.range_mut(start.min(end)..end) {
            ended.extend(send.take().map(|lent| (lent, notification.copied)));
        }
        while let Some(None) = self.sends.front() {
            self.sends.pop_front();
            self.first = self.first.wrapping_add(1);
        }
    }
}

impl Drop for Outstanding {
    fn drop(&mut self) {
        // Nobody will hear of these any more: leaked before they are freed early, and never settled.
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

    fn lent(quota: &Arc<Quota>) -> (SentLease, Completion) {
        let pages = PageBuffer::zeroed(1).expect("taken").freeze();
        let lease = Lease::take(Memory::Pages(pages), quota).expect("granted");
        let tracker = SendTracker::new();
        let part = tracker.part(&Arc::new(NotificationStats::default()), None);
        (SentLease { lease, part }, tracker.completion())
    }

    fn notice(first: u32, last: u32, copied: bool) -> Notification {
        Notification {
            first,
            last,
            copied,
        }
    }

    fn settle(outstanding: &mut Outstanding, notice: Notification) -> usize {
        let mut settled = Vec::new();
        outstanding.end(notice, &mut settled);
        let count = settled.len();
        for (lent, copied) in settled {
            lent.complete(copied);
        }
        count
    }

    #[test]
    fn ranges_coalesce_come_out_of_order_and_wrap() {
        let quota = Quota::new(1 << 30);
        let mut outstanding = Outstanding {
            first: u32::MAX - 1,
            sends: VecDeque::new(),
        };
        let completions: Vec<_> = (0..5)
            .map(|_| {
                let (lent, completion) = lent(&quota);
                outstanding.sends.push_back(Some(lent));
                completion
            })
            .collect();
        let free = |completions: &[Completion]| -> Vec<bool> {
            completions
                .iter()
                .map(|completion| completion.outcome().is_some())
                .collect()
        };
        // As after a reset: the later ones first. Their numbers are MAX, 0 and 1.
        assert_eq!(settle(&mut outstanding, notice(u32::MAX, 1, true)), 3);
        assert_eq!(free(&completions), [false, true, true, true, false]);
        assert_eq!(settle(&mut outstanding, notice(u32::MAX, 1, true)), 0);
        assert_eq!(
            settle(&mut outstanding, notice(u32::MAX - 1, u32::MAX - 1, false)),
            1
        );
        assert_eq!((outstanding.first, outstanding.sends.len()), (2, 1));
        // Numbers that were never given out, and ranges that reach beyond.
        assert_eq!(settle(&mut outstanding, notice(3, 900, false)), 0);
        assert_eq!(settle(&mut outstanding, notice(0, 1, false)), 0);
        assert_eq!(settle(&mut outstanding, notice(2, 900, false)), 1);
        assert_eq!(free(&completions), [true; 5]);
        assert_eq!(quota.in_flight_bytes(), 0);
        let copied = completions
            .iter()
            .map(|completion| completion.outcome().map(|settled| settled.copied));
        assert_eq!(
            copied.collect::<Vec<_>>(),
            [Some(0), Some(1), Some(1), Some(1), Some(0)]
        );
    }

    proptest! {
        /// Whatever order the notices come in, each send is settled by its own and once.
        #[test]
        fn every_send_is_settled_once(
            first in prop_oneof![any::<u32>(), Just(u32::MAX - 3)],
            cuts in prop::collection::vec(1_u32..5, 1..12),
            order in prop::collection::vec(any::<prop::sample::Index>(), 12),
        ) {
            let quota = Quota::new(1 << 30);
            let total: u32 = cuts.iter().sum();
            let mut outstanding = Outstanding { first, sends: VecDeque::new() };
            for _ in 0..total {
                outstanding.sends.push_back(Some(lent(&quota).0));
            }
            let mut at = first;
            let mut notices: Vec<_> = cuts.iter().map(|&count| {
                let range = notice(at, at.wrapping_add(count - 1), false);
                at = at.wrapping_add(count);
                (range, count as usize)
            }).collect();
            for pick in order {
                if notices.is_empty() {
                    break;
                }
                let (range, count) = notices.swap_remove(pick.index(notices.len()));
                prop_assert_eq!(settle(&mut outstanding, range), count);
            }
            prop_assert_eq!(outstanding.sends.is_empty(), notices.is_empty());
            for (range, count) in notices {
                prop_assert_eq!(settle(&mut outstanding, range), count);
            }
            prop_assert_eq!(quota.in_flight_bytes(), 0);
            prop_assert_eq!(outstanding.first, first.wrapping_add(total));
        }
    }

    #[test]
    fn what_nobody_will_hear_of_is_leaked() {
        let quota = Quota::new(1 << 30);
        let mut outstanding = Outstanding::default();
        outstanding.sends.push_back(Some(lent(&quota).0));
        drop(outstanding);
        assert_eq!(quota.in_flight_bytes(), 4096);
    }
}
