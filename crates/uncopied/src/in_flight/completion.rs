//! The completion of a zero-copy send: reports when the memory of the send can be reused, and why.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::ended_send::SentBytes;
use super::notification_stats::NotificationStats;
use super::registry::NotificationSource;
use super::wakers::{isolate, wake_all};
use crate::sys::fork::OwnerProcess;

/// A handle that reports when the kernel is done with the pages of one send, and how many of the
/// bytes were copied.
///
/// Poll it with [`outcome`](Self::outcome), block on it with [`wait`](Self::wait), or `.await` it.
/// All clones refer to the same send.
///
/// Dropping a completion does not affect the send: the pages stay allocated for as long as the
/// kernel may read them.
///
/// ```
/// use std::net::{TcpListener, TcpStream};
/// use std::time::Duration;
/// use uncopied::{FreeReason, Sender, arena::PageBuffer};
///
/// # let listener = TcpListener::bind("127.0.0.1:0")?;
/// # let address = listener.local_addr()?;
/// let mut sender = Sender::new(TcpStream::connect(address)?);
/// # let _peer = listener.accept()?;
/// let pages = PageBuffer::copy_from_slice(b"hello")?.freeze();
/// let sent = sender.send(pages)?;
/// let outcome = sent.completion().wait(Some(Duration::from_secs(10)))?;
/// assert_eq!(outcome.bytes, 5);
/// if outcome.reason == FreeReason::Copied {
///     println!("too short for zero copy: {} bytes copied", outcome.copied);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Completion {
    state: Arc<CompletionState>,
    /// The waker that this handle was last polled with; `None` until the handle has been polled.
    waker: Option<HandleWaker>,
}

/// Identifies the waker of a handle.
#[derive(Clone, Copy)]
struct HandleWaker {
    /// The key of the waker in [`SendProgress::wakers`].
    key: u64,
    owner_process: OwnerProcess,
}

/// The outcome of a send. It is known once the kernel is done with the pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SendOutcome {
    /// The number of bytes that the socket accepted.
    pub bytes: u64,
    /// The number of these bytes that the CPU copied: all bytes sent with the `copy` mechanism, and
    /// those bytes of zero-copy sends that the kernel reports as copied, or whose page belongs to a
    /// [region](crate::arena::Region) and was copied because the program wrote to it while the send
    /// was in flight.
    ///
    /// If the pages of a region are [gifted](FreeReason::Gifted), the send is complete before the
    /// program can write to them. Later copies of these pages are counted by the report of the
    /// sender: see [`Report::copied_on_write`](crate::Report::copied_on_write).
    pub copied: u64,
    /// Why the send no longer needs the pages.
    pub reason: FreeReason,
    /// The time from the start of the send until it was known that the send no longer needs the
    /// pages.
    pub elapsed: Duration,
}

/// Why a send no longer needs its pages.
///
/// The variants are ordered from the strongest guarantee to the weakest. If a send used several
/// mechanisms, its outcome has the weakest of their reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum FreeReason {
    /// The send copied the bytes, so the pages could be reused as soon as it returned.
    Copied,
    /// The kernel's notification has arrived: nothing in the kernel refers to the pages any longer.
    Notification,
    /// The peer, on another host, has acknowledged the bytes.
    Acknowledged,
    /// The page frames were gifted to the kernel: they are never written to again, because nothing
    /// reports when the kernel is done with them.
    ///
    /// The handle to the pages can be dropped at any time, but the pages can never be turned back
    /// into a buffer.
    Gifted,
}

struct CompletionState {
    started_at: Instant,
    progress: Mutex<SendProgress>,
    completed: Condvar,
}

#[derive(Default)]
struct SendProgress {
    /// The number of [`SendPart`]s that are not complete, plus one until the send itself has
    /// returned. The send is complete when this reaches 0.
    open_parts: usize,
    bytes: u64,
    copied: u64,
    reason: Option<FreeReason>,
    /// The duration of the send; `None` until the send is complete.
    elapsed: Option<Duration>,
    /// The wakers of the tasks that wait for the send: at most one for each handle, found by its
    /// [`HandleWaker::key`].
    wakers: BTreeMap<u64, Waker>,
    /// The number of handles that have ever been polled. The first poll of a handle increments it,
    /// and uses the new value as the key of the handle.
    polled_handles: u64,
    /// The number of threads that wait on [`CompletionState::completed`]. If there are none,
    /// `notify_all` is skipped, because it costs a system call.
    blocked_threads: usize,
    source: Option<Arc<dyn NotificationSource>>,
}

impl Completion {
    /// Returns the outcome of the send, or `None` if the kernel may still read the pages.
    ///
    /// Processes the notifications that have arrived, and never blocks.
    #[must_use]
    pub fn outcome(&self) -> Option<SendOutcome> {
        let outcome = self.state.outcome(&self.state.lock());
        if outcome.is_some() {
            return outcome;
        }
        self.reap();
        self.state.outcome(&self.state.lock())
    }

    /// Blocks the thread until the kernel is done with the pages, for at most `limit`.
    ///
    /// Without a limit this can block indefinitely: a peer that does not read keeps the pages in
    /// flight.
    ///
    /// # Errors
    ///
    /// - [`io::ErrorKind::TimedOut`] if the kernel may still read the pages after `limit`. The send
    ///   is not affected, and the completion can still be used.
    /// - [`io::ErrorKind::Unsupported`] in a child process that was forked after the send, because
    ///   only the parent receives the notification.
    /// - The errno of `poll(2)`, such as `ENOMEM`.
    pub fn wait(&self, limit: Option<Duration>) -> io::Result<SendOutcome> {
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        loop {
            if let Some(outcome) = self.outcome() {
                return Ok(outcome);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let at_most = left.map_or(MAX_SINGLE_WAIT, |left| left.min(MAX_SINGLE_WAIT));
            let mut progress = self.state.lock();
            match progress.source.clone() {
                Some(source) => {
                    drop(progress);
                    source.wait(at_most)?;
                }
                None if self.state.outcome(&progress).is_none() => {
                    progress.blocked_threads += 1;
                    let (mut progress, _) = self
                        .state
                        .completed
                        .wait_timeout(progress, at_most)
                        .unwrap_or_else(PoisonError::into_inner);
                    progress.blocked_threads -= 1;
                }
                None => {}
            }
        }
    }

    fn reap(&self) {
        let source = self.state.lock().source.clone();
        if let Some(source) = source {
            source.reap();
        }
    }
}

/// The longest time for which [`Completion::wait`] waits before it checks the outcome again.
/// Another thread may have processed the notification in the meantime, which does not always wake
/// this thread.
const MAX_SINGLE_WAIT: Duration = Duration::from_millis(50);

/// Resolves once the kernel is done with the pages.
///
/// If the send used `send_zc` on tokio, the task is woken as soon as the notification arrives. If
/// the send used `MSG_ZEROCOPY`, the task is only woken when the sender's notifications are
/// processed, for example by [`Sender::reap`](crate::Sender::reap).
///
/// Each handle keeps the waker with which it was last polled, until the send is complete or the
/// handle is dropped. Wakers are woken while this library holds no lock, so they may call it. If
/// one of them panics, the panic is reported by the panic hook and otherwise ignored: it affects
/// neither the other wakers nor the thread that processes the notifications.
///
/// # Cancellation
///
/// Dropping the future does not affect the send: the pages stay allocated for as long as the kernel
/// may read them.
impl Future for Completion {
    type Output = SendOutcome;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<SendOutcome> {
        if let Some(outcome) = self.outcome() {
            return Poll::Ready(outcome);
        }
        let this = self.get_mut();
        // Wakers are foreign code, so this one is cloned before the lock is taken, and the one that
        // it replaces is dropped after the lock has been released.
        let waker = cx.waker().clone();
        let mut progress = this.state.lock();
        if let Some(outcome) = this.state.outcome(&progress) {
            drop(progress);
            isolate(|| drop(waker));
            return Poll::Ready(outcome);
        }
        let own = *this.waker.get_or_insert_with(|| {
            progress.polled_handles += 1;
            HandleWaker {
                key: progress.polled_handles,
                owner_process: OwnerProcess::current(),
            }
        });
        let replaced = progress.wakers.insert(own.key, waker);
        drop(progress);
        isolate(|| drop(replaced));
        Poll::Pending
    }
}

/// The clone has no waker until it is polled.
impl Clone for Completion {
    fn clone(&self) -> Self {
        Self {
            state: Arc::clone(&self.state),
            waker: None,
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        // A forked child must not take the lock: if a thread of the parent held it during the fork,
        // the child's copy of the lock is never released.
        if let Some(own) = self.waker
            && own.owner_process.is_current()
        {
            let waker = self.state.lock().wakers.remove(&own.key);
            isolate(|| drop(waker));
        }
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = self.state.outcome(&self.state.lock());
        f.debug_tuple("Completion").field(&outcome).finish()
    }
}

impl CompletionState {
    fn lock(&self) -> MutexGuard<'_, SendProgress> {
        // A panic while the lock was held cannot have left the progress inconsistent.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outcome(&self, progress: &SendProgress) -> Option<SendOutcome> {
        Some(SendOutcome {
            bytes: progress.bytes,
            copied: progress.copied,
            reason: progress.reason.unwrap_or(FreeReason::Copied),
            elapsed: progress.elapsed?,
        })
    }

    /// Decrements the number of open parts. If that was the last open part, marks the send as
    /// complete, wakes the threads that wait for it, and adds the wakers of the tasks that wait for
    /// it to `wakers`.
    fn close_part(&self, mut progress: MutexGuard<'_, SendProgress>, wakers: &mut Vec<Waker>) {
        progress.open_parts -= 1;
        if progress.open_parts > 0 {
            return;
        }
        progress.elapsed = Some(self.started_at.elapsed());
        let source = progress.source.take();
        let waiting = mem::take(&mut progress.wakers);
        let has_blocked_threads = progress.blocked_threads > 0;
        // The lock is released before `source` is dropped, which may close a ring or a socket.
        drop(progress);
        if has_blocked_threads {
            self.completed.notify_all();
        }
        wakers.extend(waiting.into_values());
        drop(source);
    }
}

impl SendProgress {
    fn add(&mut self, sent: &SentBytes) {
        self.bytes += sent.bytes;
        self.copied += sent.copied + sent.copied_on_write;
        self.reason = self.reason.max(Some(sent.reason));
    }
}

/// The sender's side of a [`Completion`]. The sender drops the tracker when the send returns. From
/// then on no more parts are added, so the send is complete once all its parts are.
pub(crate) struct SendTracker(Arc<CompletionState>);

impl SendTracker {
    pub(crate) fn new() -> Self {
        let progress = SendProgress {
            open_parts: 1,
            ..SendProgress::default()
        };
        Self(Arc::new(CompletionState {
            started_at: Instant::now(),
            progress: Mutex::new(progress),
            completed: Condvar::new(),
        }))
    }

    pub(crate) fn completion(&self) -> Completion {
        Completion {
            state: Arc::clone(&self.0),
            waker: None,
        }
    }

    /// Counts bytes that need no notification, because they were copied or because their pages were
    /// gifted (see [`FreeReason::Gifted`]).
    pub(crate) fn count_finished(&self, bytes: u64, copied: u64, reason: FreeReason) {
        self.0.lock().add(&SentBytes {
            bytes,
            copied,
            copied_on_write: 0,
            reason,
        });
    }

    /// Adds a part to the send. A notification will complete the part, and is then also counted in
    /// `stats`. `source` is where the notification arrives. Without a `source`,
    /// [`Completion::wait`] cannot process the notification itself, and waits until another thread
    /// has done so.
    pub(crate) fn part(
        &self,
        stats: &Arc<NotificationStats>,
        source: Option<Arc<dyn NotificationSource>>,
    ) -> SendPart {
        let mut progress = self.0.lock();
        progress.open_parts += 1;
        let replaced = source.and_then(|source| progress.source.replace(source));
        // The lock is released before the replaced source is dropped, which may close a ring.
        drop(progress);
        drop(replaced);
        SendPart {
            completion: Some(Arc::clone(&self.0)),
            stats: Arc::clone(stats),
        }
    }
}

impl Drop for SendTracker {
    fn drop(&mut self) {
        let mut wakers = Vec::new();
        self.0.close_part(self.0.lock(), &mut wakers);
        wake_all(wakers);
    }
}

/// A part of a send: the bytes of one zero-copy call, which a notification will complete.
///
/// Dropping a part removes it from the send without counting any bytes. If the send is complete
/// without the part, this wakes the tasks that wait for the send. Waking runs foreign code, so drop
/// a part only while no lock is held, or pass it to [`complete_all`](super::complete_all).
pub(crate) struct SendPart {
    completion: Option<Arc<CompletionState>>,
    stats: Arc<NotificationStats>,
}

impl SendPart {
    /// Completes the part, because the kernel is done with its bytes, which `sent` counts. Adds to
    /// `wakers` the waker of the task that waits for any notification of the sender and, if this
    /// was the last part of the send, the wakers of the tasks that wait for the send.
    pub(super) fn complete(mut self, sent: &SentBytes, wakers: &mut Vec<Waker>) {
        let sent = &self.stats.correct(sent);
        self.stats.copied_on_write().add(sent.copied_on_write);
        wakers.extend(self.stats.note(sent.bytes, sent.copied));
        if let Some(completion) = self.completion.take() {
            let mut progress = completion.lock();
            progress.add(sent);
            completion.close_part(progress, wakers);
        }
    }

    /// Removes the part from the send without counting any bytes. If the send is complete without
    /// it, adds the wakers of the tasks that wait for the send to `wakers`.
    pub(super) fn remove(mut self, wakers: &mut Vec<Waker>) {
        if let Some(completion) = self.completion.take() {
            completion.close_part(completion.lock(), wakers);
        }
    }
}

impl Drop for SendPart {
    fn drop(&mut self) {
        if let Some(completion) = self.completion.take() {
            let mut wakers = Vec::new();
            completion.close_part(completion.lock(), &mut wakers);
            wake_all(wakers);
        }
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
    use rustix::time::{ClockId, clock_gettime};

    use super::*;
    use crate::sys::fork::tests::in_child;

    fn complete(part: SendPart, bytes: u64, copied: u64) {
        let reason = FreeReason::Notification;
        let sent = SentBytes {
            bytes,
            copied,
            copied_on_write: 0,
            reason,
        };
        let mut wakers = Vec::new();
        part.complete(&sent, &mut wakers);
        wake_all(wakers);
    }

    #[test]
    fn a_send_is_complete_once_its_last_part_is() {
        let tracker = SendTracker::new();
        let completion = tracker.completion();
        let stats = Arc::default();
        let [first, second] = [(), ()].map(|()| tracker.part(&stats, None));
        tracker.count_finished(10, 10, FreeReason::Copied);
        drop(tracker);
        complete(second, 20, 0);
        assert_eq!(completion.outcome(), None);
        assert!(completion.wait(Some(Duration::from_millis(1))).is_err());
        complete(first, 30, 30);
        let outcome = completion.outcome().expect("complete");
        assert_eq!(
            (outcome.bytes, outcome.copied, outcome.reason),
            (60, 40, FreeReason::Notification)
        );
        assert_eq!(
            (stats.copied_bytes(), stats.copied_notifications_in_a_row()),
            (30, 1)
        );
    }

    #[test]
    fn completing_a_send_wakes_a_thread_that_waits_for_it() {
        let tracker = SendTracker::new();
        let completion = tracker.completion();
        let waiting = std::thread::spawn(move || completion.wait(None));
        let part = tracker.part(&Arc::default(), None);
        drop(tracker);
        complete(part, 1, 0);
        let outcome = waiting.join().expect("no panic").expect("no time-out");
        assert_eq!(outcome.bytes, 1);
    }

    #[test]
    fn bytes_copied_on_write_count_as_copied() {
        let tracker = SendTracker::new();
        let stats = Arc::default();
        let sent = SentBytes {
            bytes: 50,
            copied: 10,
            copied_on_write: 20,
            reason: FreeReason::Notification,
        };
        tracker.part(&stats, None).complete(&sent, &mut Vec::new());
        let completion = tracker.completion();
        drop(tracker);
        assert_eq!(completion.outcome().expect("complete").copied, 30);
        assert_eq!(
            (stats.copied_bytes(), stats.copied_on_write().get()),
            (10, 20)
        );
    }

    #[test]
    fn a_dropped_part_no_longer_belongs_to_the_send() {
        let tracker = SendTracker::new();
        let mut completion = tracker.completion();
        let part = tracker.part(&Arc::default(), None);
        tracker.count_finished(10, 10, FreeReason::Copied);
        drop(tracker);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut completion).poll(&mut cx).is_pending());
        drop(part);
        assert_eq!(completion.outcome().expect("complete").bytes, 10);
    }

    #[test]
    fn a_dropped_handle_leaves_no_waker_behind() {
        let tracker = SendTracker::new();
        let mut cx = Context::from_waker(Waker::noop());
        let mut handle = tracker.completion();
        let mut clone = handle.clone();
        assert!(Pin::new(&mut handle).poll(&mut cx).is_pending());
        assert!(Pin::new(&mut clone).poll(&mut cx).is_pending());
        assert_eq!(tracker.0.lock().wakers.len(), 2);
        drop(handle);
        assert_eq!(tracker.0.lock().wakers.len(), 1);
    }

    /// A thread that is not woken checks the outcome only after [`MAX_SINGLE_WAIT`]. Because other
    /// processes may delay the thread, only the fastest of several attempts counts.
    #[test]
    fn a_waiting_thread_is_woken_at_once() {
        let is_woken_at_once = || {
            let tracker = SendTracker::new();
            let part = tracker.part(&Arc::default(), None);
            let completion = tracker.completion();
            drop(tracker);
            let state = Arc::clone(&completion.state);
            let waiting = std::thread::spawn(move || {
                completion.wait(None).expect("an outcome");
                Instant::now()
            });
            while state.lock().blocked_threads == 0 {
                std::thread::yield_now();
            }
            let completed_at = Instant::now();
            complete(part, 1, 0);
            let woken_at = waiting.join().expect("no panic");
            woken_at.duration_since(completed_at) < MAX_SINGLE_WAIT / 4
        };
        assert!((0..20).any(|_| is_woken_at_once()));
    }

    /// Without a source of notifications, a thread waits until another one completes the send.
    #[test]
    fn waiting_for_a_send_costs_no_cpu_time() {
        let cpu_time = || {
            let now = clock_gettime(ClockId::ThreadCPUTime);
            Duration::try_from(now).expect("not negative")
        };
        let tracker = SendTracker::new();
        let limit = Duration::from_millis(300);
        let (started, cpu_before) = (Instant::now(), cpu_time());
        let error = tracker.completion().wait(Some(limit)).expect_err("late");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(started.elapsed() >= limit);
        assert!(cpu_time() - cpu_before < limit / 3);
    }

    /// The parent holds the lock of the completion during the fork, so the child's copy of the lock
    /// is never released. The child must be able to drop its copies of handles without that lock,
    /// for example when it drops its copy of a task that owns a handle.
    #[test]
    fn a_child_drops_a_handle_without_the_lock() {
        let tracker = SendTracker::new();
        let mut handle = tracker.completion();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut handle).poll(&mut cx).is_pending());
        let state = Arc::clone(&handle.state);
        // The closure borrows the handle. If it owned the handle, `in_child` would drop the handle
        // in the parent too, which would wait for the lock that the parent holds.
        let mut handle = Some(handle);
        let progress = state.lock();
        let is_dropped = in_child(|| {
            // SAFETY: the call takes only a number. The alarm ends the child if it hangs.
            #[allow(unsafe_code)]
            unsafe {
                libc::alarm(20)
            };
            drop(handle.take());
            1
        });
        drop(progress);
        assert_eq!(is_dropped, 1);
    }
}
