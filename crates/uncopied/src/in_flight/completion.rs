//! When lent memory is free again.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// The answer to "is it sent yet?", for one send: when the kernel is done with the pages, and whether
/// it copied them after all.
///
/// It can be asked, waited for, awaited, or dropped: the pages are kept for as long as the kernel reads
/// them either way.
#[derive(Clone)]
pub struct Completion(Arc<CompletionState>);

/// What became of a send, once the kernel is done with its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendOutcome {
    /// How many bytes the socket took.
    pub bytes: u64,
    /// How many of them the CPU copied: those that were sent by `copy`, and those that the kernel was
    /// lent and says it copied.
    pub copied: u64,
    /// What that the pages are free stands on.
    pub reason: FreeReason,
    /// From the send to the moment when this became known.
    pub elapsed: Duration,
}

/// What it stands on that pages are free. Of a send that went by several mechanisms, the weakest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FreeReason {
    /// The send copied the bytes: the pages were free when it returned.
    Copied,
    /// The kernel's notice: nothing refers to the pages any more.
    Notification,
    /// The peer, on another host, has acknowledged the bytes.
    Acknowledged,
    /// The frames were given away: they belong to the kernel now, and nobody writes to them again. The
    /// handle can be dropped at any time, but the pages never become a buffer again.
    Gifted,
}

/// Who can look whether notices have come.
pub(crate) trait NotificationSource: Send + Sync {
    /// Takes in the notices that are there, without waiting.
    fn reap(&self);

    /// Waits until there is a notice, for at most `limit`. May return early.
    fn wait(&self, limit: Duration) -> io::Result<()>;
}

struct CompletionState {
    began: Instant,
    state: Mutex<SendProgress>,
    changed: Condvar,
}

#[derive(Default)]
struct SendProgress {
    /// The parts that are not settled, and one for the send itself until it has returned.
    open: usize,
    bytes: u64,
    copied: u64,
    reason: Option<FreeReason>,
    elapsed: Option<Duration>,
    wakers: Vec<Waker>,
    /// How many threads wait for it. To wake nobody costs a system call too.
    waiting: usize,
    notices: Option<Arc<dyn NotificationSource>>,
}

impl Completion {
    /// What became of the send, if that is known. It takes in the notices that have come; it never
    /// waits.
    #[must_use]
    pub fn outcome(&self) -> Option<SendOutcome> {
        let settled = self.0.outcome(&self.0.lock());
        if settled.is_some() {
            return settled;
        }
        self.reap();
        self.0.outcome(&self.0.lock())
    }

    /// Waits until the kernel is done with the pages. For threads that may block: a peer that does not
    /// read can make that as long as it likes.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::TimedOut`] after `limit`; the completion goes on as before.
    pub fn wait(&self, limit: Option<Duration>) -> io::Result<SendOutcome> {
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        loop {
            if let Some(settled) = self.outcome() {
                return Ok(settled);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            // Somebody else may take the notice in: look again before long.
            let at_most = left.map_or(LOOK_AGAIN, |left| left.min(LOOK_AGAIN));
            let mut state = self.0.lock();
            match state.notices.clone() {
                Some(notices) => {
                    drop(state);
                    notices.wait(at_most)?;
                }
                None if self.0.outcome(&state).is_none() => {
                    state.waiting += 1;
                    let (mut state, _) = self
                        .0
                        .changed
                        .wait_timeout(state, at_most)
                        .unwrap_or_else(PoisonError::into_inner);
                    state.waiting -= 1;
                }
                None => {}
            }
        }
    }

    fn reap(&self) {
        let notices = self.0.lock().notices.clone();
        if let Some(notices) = notices {
            notices.reap();
        }
    }
}

/// For how long a wait goes on before it looks whether somebody else has seen the notice.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Ready once the kernel is done with the pages. On tokio it is woken by the ring that sent them. A
/// sender by `MSG_ZEROCOPY` wakes it when its notices are [taken in](crate::Sender::reap).
///
/// Dropping the future changes nothing: the pages are kept as long as they must be.
impl Future for Completion {
    type Output = SendOutcome;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<SendOutcome> {
        if let Some(settled) = self.outcome() {
            return Poll::Ready(settled);
        }
        let mut state = self.0.lock();
        if let Some(settled) = self.0.outcome(&state) {
            return Poll::Ready(settled);
        }
        if !state.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            state.wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settled = self.0.outcome(&self.0.lock());
        f.debug_tuple("Completion").field(&settled).finish()
    }
}

impl CompletionState {
    fn lock(&self) -> MutexGuard<'_, SendProgress> {
        // Every change of the state is whole between any two statements that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outcome(&self, state: &SendProgress) -> Option<SendOutcome> {
        Some(SendOutcome {
            bytes: state.bytes,
            copied: state.copied,
            reason: state.reason.unwrap_or(FreeReason::Copied),
            elapsed: state.elapsed?,
        })
    }

    fn close_one(&self, mut state: MutexGuard<'_, SendProgress>) {
        state.open -= 1;
        if state.open > 0 {
            return;
        }
        state.elapsed = Some(self.began.elapsed());
        state.notices = None;
        let wakers = std::mem::take(&mut state.wakers);
        let is_waited_for = state.waiting > 0;
        drop(state);
        if is_waited_for {
            self.changed.notify_all();
        }
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// A send under way: what [`Completion`] will tell. Dropping it ends the send; the completion then waits
/// for the parts only.
pub(crate) struct SendTracker(Arc<CompletionState>);

impl SendTracker {
    pub(crate) fn new() -> Self {
        let state = SendProgress {
            open: 1,
            ..SendProgress::default()
        };
        Self(Arc::new(CompletionState {
            began: Instant::now(),
            state: Mutex::new(state),
            changed: Condvar::new(),
        }))
    }

    pub(crate) fn completion(&self) -> Completion {
        Completion(Arc::clone(&self.0))
    }

    /// Counts bytes of which it is known at once how they went.
    pub(crate) fn count(&self, bytes: u64, copied: u64, reason: FreeReason) {
        let mut state = self.0.lock();
        state.bytes += bytes;
        state.copied += copied;
        state.reason = state.reason.max(Some(reason));
    }

    /// A part of the send that the kernel will tell about, which counts for `stats` as well. `notices`
    /// is whom to ask, if asking helps.
    pub(crate) fn part(
        &self,
        stats: &Arc<NotificationStats>,
        notices: Option<Arc<dyn NotificationSource>>,
    ) -> SendPart {
        let mut state = self.0.lock();
        state.open += 1;
        state.notices = notices.or(state.notices.take());
        drop(state);
        SendPart {
            completion: Some(Arc::clone(&self.0)),
            stats: Arc::clone(stats),
        }
    }
}

impl Drop for SendTracker {
    fn drop(&mut self) {
        self.0.close_one(self.0.lock());
    }
}

/// A part of a send that is not settled.
///
/// Dropping it takes it out of the send, as if it had never been: for a call that failed.
pub(crate) struct SendPart {
    completion: Option<Arc<CompletionState>>,
    stats: Arc<NotificationStats>,
}

impl SendPart {
    /// The kernel is done with `bytes`, of which it copied `copied`.
    pub(crate) fn complete(mut self, bytes: u64, copied: u64, reason: FreeReason) {
        self.stats.note(bytes, copied);
        if let Some(completion) = self.completion.take() {
            let mut state = completion.lock();
            state.bytes += bytes;
            state.copied += copied;
            state.reason = state.reason.max(Some(reason));
            completion.close_one(state);
        }
    }
}

impl Drop for SendPart {
    fn drop(&mut self) {
        if let Some(completion) = self.completion.take() {
            completion.close_one(completion.lock());
        }
    }
}

/// What the notices of a sender have told in all.
#[derive(Debug, Default)]
pub(crate) struct NotificationStats {
    copied: AtomicU64,
    /// How many notices in a row said that everything was copied.
    copied_in_a_row: AtomicU32,
    notifications: AtomicU64,
    /// Who waits for the next one.
    waker: Mutex<Option<Waker>>,
}

impl NotificationStats {
    fn note(&self, bytes: u64, copied: u64) {
        self.copied.fetch_add(copied, Ordering::Relaxed);
        if copied < bytes {
            self.copied_in_a_row.store(0, Ordering::Relaxed);
        } else {
            self.copied_in_a_row.fetch_add(1, Ordering::Relaxed);
        }
        self.notifications.fetch_add(1, Ordering::Release);
        let waker = self.waker().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn waker(&self) -> MutexGuard<'_, Option<Waker>> {
        self.waker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many notices have come.
    #[cfg(feature = "tokio")]
    pub(crate) fn notifications(&self) -> u64 {
        self.notifications.load(Ordering::Acquire)
    }

    /// Ready once there have been more than `seen`.
    #[cfg(feature = "tokio")]
    pub(crate) fn poll_notification(&self, cx: &mut Context<'_>, seen: u64) -> Poll<()> {
        *self.waker() = Some(cx.waker().clone());
        if self.notifications() > seen {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Counts them from 0 again.
    pub(crate) fn reset_copied_in_a_row(&self) {
        self.copied_in_a_row.store(0, Ordering::Relaxed);
    }

    /// How many bytes the kernel copied after all.
    pub(crate) fn copied(&self) -> u64 {
        self.copied.load(Ordering::Relaxed)
    }

    /// How many notices in a row said that everything was copied.
    pub(crate) fn copied_in_a_row(&self) -> u32 {
        self.copied_in_a_row.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for SendTracker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.completion().fmt(f)
    }
}

impl fmt::Debug for SendPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendPart").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_send_is_settled_when_its_last_part_is() {
        let tracker = SendTracker::new();
        let completion = tracker.completion();
        let stats = Arc::default();
        let [first, second] = [(), ()].map(|()| tracker.part(&stats, None));
        tracker.count(10, 10, FreeReason::Copied);
        drop(tracker);
        second.complete(20, 0, FreeReason::Notification);
        assert_eq!(completion.outcome(), None);
        assert!(completion.wait(Some(Duration::from_millis(1))).is_err());
        first.complete(30, 30, FreeReason::Notification);
        let settled = completion.outcome().expect("all parts are");
        assert_eq!(
            (settled.bytes, settled.copied, settled.reason),
            (60, 40, FreeReason::Notification)
        );
        assert_eq!((stats.copied(), stats.copied_in_a_row()), (30, 1));
    }

    #[test]
    fn whoever_waits_is_woken() {
        let tracker = SendTracker::new();
        let completion = tracker.completion();
        let waiting = std::thread::spawn(move || completion.wait(None));
        let part = tracker.part(&Arc::default(), None);
        drop(tracker);
        part.complete(1, 0, FreeReason::Notification);
        let settled = waiting.join().expect("no panic").expect("no time-out");
        assert_eq!(settled.bytes, 1);
    }
}
