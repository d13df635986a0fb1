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

use crate::completion::{Notices, Part, Rule};
use crate::lease::Lease;
use crate::reaper::Orphan;
use crate::sys::fork;
use crate::sys::{Kernel, Linux, Notice, Queued};

/// The error queue of a socket, with what the kernel still has of ours.
///
/// It has a descriptor of its own: after the last `close` of a socket nobody hears of its notices any
/// more, though the kernel may still read the pages.
#[derive(Debug)]
pub(crate) struct ErrorQueue {
    fork_generation: u64,
    socket: OwnedFd,
    outstanding: Mutex<Outstanding>,
}

impl ErrorQueue {
    pub(crate) fn of(socket: BorrowedFd<'_>) -> Result<Self> {
        Ok(Self {
            fork_generation: fork::generation(),
            socket: rustix::io::fcntl_dupfd_cloexec(socket, 3)?,
            outstanding: Mutex::default(),
        })
    }

    /// Makes a call that lends `lent`, and keeps it under the kernel's next number if the call has moved
    /// bytes. No notice is taken in meanwhile: it could be this call's.
    pub(crate) fn lend(
        &self,
        mut lent: Lent,
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
        self.fork_generation != fork::generation()
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
    pub(crate) fn take_all(&self, kernel: &impl Kernel) -> usize {
        if self.is_of_parent() {
            return 0;
        }
        let mut settled = Vec::new();
        let mut outstanding = self.lock();
        loop {
            match kernel.take_queued(self.socket.as_fd()) {
                Ok(Some(Queued::Notice(notice))) => outstanding.settle(notice, &mut settled),
                Ok(Some(Queued::Other)) | Err(Errno::INTR) => {}
                // What breaks a connection is on the queue as well, or met by the next call.
                Ok(None) | Err(_) => break,
            }
        }
        drop(outstanding);
        // Whoever is woken may come back here.
        let count = settled.len();
        settle_all(settled);
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

impl Notices for ErrorQueue {
    fn reap(&self) {
        self.take_all(&Linux);
    }

    fn wait(&self, limit: Duration) -> io::Result<()> {
        if self.is_of_parent() {
            return Err(fork::of_parent());
        }
        let began = Instant::now();
        let left = || limit.saturating_sub(began.elapsed());
        loop {
            // An error queue that is not empty is an error to poll(2), which needs no asking for.
            let mut ready = [PollFd::new(&self.socket, PollFlags::empty())];
            let timeout = Timespec::try_from(left()).ok();
            match poll(&mut ready, timeout.as_ref()) {
                Ok(0) => return Ok(()),
                Ok(_) if self.take_all(&Linux) > 0 || self.is_empty() => return Ok(()),
                // A connection that is gone is ready for ever; its notices still take a moment.
                Ok(_) => std::thread::sleep(left().min(MOMENT)),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            if left().is_zero() {
                return Ok(());
            }
        }
    }
}

const MOMENT: Duration = Duration::from_millis(2);

/// An error queue whose sender is gone.
pub(crate) struct Orphaned {
    pub(crate) queue: Arc<ErrorQueue>,
    /// Whether the socket went with the sender: then a peer that takes nothing may be cut off.
    pub(crate) is_closed: bool,
}

impl Orphan for Orphaned {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }

    fn ready_for(&self) -> PollFlags {
        PollFlags::empty()
    }

    fn reap(&self) -> usize {
        self.queue.take_all(&Linux)
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
pub(crate) struct Lent {
    pub(crate) lease: Lease,
    pub(crate) part: Part,
}

impl Lent {
    fn settle(self, copied: bool) {
        let bytes = self.lease.memory().len() as u64;
        // The pages first: whoever is told that they are free may ask for them at once.
        drop(self.lease);
        self.part
            .settle(bytes, if copied { bytes } else { 0 }, Rule::Notice);
    }
}

/// Settles all of them. Wakers are anybody's code: one that panics keeps nobody else's send open.
fn settle_all(settled: Vec<(Lent, bool)>) {
    let mut panicked = None;
    for (lent, copied) in settled {
        let settling = catch_unwind(AssertUnwindSafe(|| lent.settle(copied)));
        panicked = settling.err().or(panicked);
    }
    if let Some(panic) = panicked {
        resume_unwind(panic);
    }
}

impl fmt::Debug for Lent {
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
    sends: VecDeque<Option<Lent>>,
}

impl Outstanding {
    /// Takes out the sends of a notice. Numbers that are not outstanding are passed over.
    fn settle(&mut self, notice: Notice, settled: &mut Vec<(Lent, bool)>) {
        // Numbers wrap: what counts is their distance from the first.
        let count = notice.last.wrapping_sub(notice.first) as usize + 1;
        let start = notice.first.wrapping_sub(self.first) as usize;
        let end = start.saturating_add(count).min(self.sends.len());
        for send in self.sends.range_mut(start.min(end)..end) {
            settled.extend(send.take().map(|lent| (lent, notice.copied)));
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
    use crate::arena::PageBuffer;
    use crate::completion::{Account, Completion, Sending};
    use crate::lease::{Memory, Quota};

    fn lent(quota: &Arc<Quota>) -> (Lent, Completion) {
        let pages = PageBuffer::zeroed(1).expect("taken").freeze();
        let lease = Lease::take(Memory::Pages(pages), quota).expect("granted");
        let sending = Sending::new();
        let part = sending.part(&Arc::new(Account::default()), None);
        (Lent { lease, part }, sending.completion())
    }

    fn notice(first: u32, last: u32, copied: bool) -> Notice {
        Notice {
            first,
            last,
            copied,
        }
    }

    fn settle(outstanding: &mut Outstanding, notice: Notice) -> usize {
        let mut settled = Vec::new();
        outstanding.settle(notice, &mut settled);
        let count = settled.len();
        for (lent, copied) in settled {
            lent.settle(copied);
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
                .map(|completion| completion.settled().is_some())
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
        assert_eq!(quota.leased(), 0);
        let copied = completions
            .iter()
            .map(|completion| completion.settled().map(|settled| settled.copied));
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
            prop_assert_eq!(quota.leased(), 0);
            prop_assert_eq!(outstanding.first, first.wrapping_add(total));
        }
    }

    #[test]
    fn what_nobody_will_hear_of_is_leaked() {
        let quota = Quota::new(1 << 30);
        let mut outstanding = Outstanding::default();
        outstanding.sends.push_back(Some(lent(&quota).0));
        drop(outstanding);
        assert_eq!(quota.leased(), 4096);
    }
}
