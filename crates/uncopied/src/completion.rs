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
pub struct Completion(Arc<Ticket>);

/// What became of a send, once the kernel is done with its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// How many bytes the socket took.
    pub bytes: u64,
    /// How many of them the CPU copied: those that were sent by `copy`, and those that the kernel was
    /// lent and says it copied.
    pub copied: u64,
    /// What that the pages are free stands on.
    pub rule: Rule,
    /// From the send to the moment when this became known.
    pub took: Duration,
}

/// What it stands on that pages are free. Of a send that went by several mechanisms, the weakest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// The send copied the bytes: the pages were free when it returned.
    Copied,
    /// The kernel's notice: nothing refers to the pages any more.
    Notice,
    /// The peer, on another host, has acknowledged the bytes.
    Acknowledged,
    /// The frames were given away: they belong to the kernel now, and nobody writes to them again. The
    /// handle can be dropped at any time, but the pages never become a buffer again.
    GivenAway,
}

/// Who can look whether notices have come.
pub(crate) trait Notices: Send + Sync {
    /// Takes in the notices that are there, without waiting.
    fn reap(&self);

    /// Waits until there is a notice, for at most `limit`. May return early.
    fn wait(&self, limit: Duration) -> io::Result<()>;
}

struct Ticket {
    began: Instant,
    state: Mutex<State>,
    settled: Condvar,
}

#[derive(Default)]
struct State {
    /// The parts that are not settled, and one for the send itself until it has returned.
    open: usize,
    bytes: u64,
    copied: u64,
    rule: Option<Rule>,
    took: Option<Duration>,
    wakers: Vec<Waker>,
    /// How many threads wait for it. To wake nobody costs a system call too.
    waiting: usize,
    notices: Option<Arc<dyn Notices>>,
}

impl Completion {
    /// What became of the send, if that is known. It takes in the notices that have come; it never
    /// waits.
    #[must_use]
    pub fn settled(&self) -> Option<Settled> {
        let settled = self.0.settled(&self.0.lock());
        if settled.is_some() {
            return settled;
        }
        self.reap();
        self.0.settled(&self.0.lock())
    }

    /// Waits until the kernel is done with the pages. For threads that may block: a peer that does not
    /// read can make that as long as it likes.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::TimedOut`] after `limit`; the completion goes on as before.
    pub fn wait(&self, limit: Option<Duration>) -> io::Result<Settled> {
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        loop {
            if let Some(settled) = self.settled() {
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
                None if self.0.settled(&state).is_none() => {
                    state.waiting += 1;
                    let (mut state, _) = self
                        .0
                        .settled
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
    type Output = Settled;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Settled> {
        if let Some(settled) = self.settled() {
            return Poll::Ready(settled);
        }
        let mut state = self.0.lock();
        if let Some(settled) = self.0.settled(&state) {
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
        let settled = self.0.settled(&self.0.lock());
        f.debug_tuple("Completion").field(&settled).finish()
    }
}

impl Ticket {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is whole between any two statements that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settled(&self, state: &State) -> Option<Settled> {
        Some(Settled {
            bytes: state.bytes,
            copied: state.copied,
            rule: state.rule.unwrap_or(Rule::Copied),
            took: state.took?,
        })
    }

    fn close_one(&self, mut state: MutexGuard<'_, State>) {
        state.open -= 1;
        if state.open > 0 {
            return;
        }
        state.took = Some(self.began.elapsed());
        state.notices = None;
        let wakers = std::mem::take(&mut state.wakers);
        let is_waited_for = state.waiting > 0;
        drop(state);
        if is_waited_for {
            self.settled.notify_all();
        }
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// A send under way: what [`Completion`] will tell. Dropping it ends the send; the completion then waits
/// for the parts only.
pub(crate) struct Sending(Arc<Ticket>);

impl Sending {
    pub(crate) fn new() -> Self {
        let state = State {
            open: 1,
            ..State::default()
        };
        Self(Arc::new(Ticket {
            began: Instant::now(),
            state: Mutex::new(state),
            settled: Condvar::new(),
        }))
    }

    pub(crate) fn completion(&self) -> Completion {
        Completion(Arc::clone(&self.0))
    }

    /// Counts bytes of which it is known at once how they went.
    pub(crate) fn count(&self, bytes: u64, copied: u64, rule: Rule) {
        let mut state = self.0.lock();
        state.bytes += bytes;
        state.copied += copied;
        state.rule = state.rule.max(Some(rule));
    }

    /// A part of the send that the kernel will tell about, which counts for `account` as well. `notices`
    /// is whom to ask, if asking helps.
    pub(crate) fn part(&self, account: &Arc<Account>, notices: Option<Arc<dyn Notices>>) -> Part {
        let mut state = self.0.lock();
        state.open += 1;
        state.notices = notices.or(state.notices.take());
        drop(state);
        Part {
            ticket: Some(Arc::clone(&self.0)),
            account: Arc::clone(account),
        }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.0.close_one(self.0.lock());
    }
}

/// A part of a send that is not settled.
///
/// Dropping it takes it out of the send, as if it had never been: for a call that failed.
pub(crate) struct Part {
    ticket: Option<Arc<Ticket>>,
    account: Arc<Account>,
}

impl Part {
    /// The kernel is done with `bytes`, of which it copied `copied`.
    pub(crate) fn settle(mut self, bytes: u64, copied: u64, rule: Rule) {
        self.account.note(bytes, copied);
        if let Some(ticket) = self.ticket.take() {
            let mut state = ticket.lock();
            state.bytes += bytes;
            state.copied += copied;
            state.rule = state.rule.max(Some(rule));
            ticket.close_one(state);
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            ticket.close_one(ticket.lock());
        }
    }
}

/// What the notices of a sender have told in all.
#[derive(Debug, Default)]
pub(crate) struct Account {
    copied: AtomicU64,
    /// How many notices in a row said that everything was copied.
    copied_in_a_row: AtomicU32,
    notices: AtomicU64,
    /// Who waits for the next one.
    waker: Mutex<Option<Waker>>,
}

impl Account {
    fn note(&self, bytes: u64, copied: u64) {
        self.copied.fetch_add(copied, Ordering::Relaxed);
        if copied < bytes {
            self.copied_in_a_row.store(0, Ordering::Relaxed);
        } else {
            self.copied_in_a_row.fetch_add(1, Ordering::Relaxed);
        }
        self.notices.fetch_add(1, Ordering::Release);
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
    pub(crate) fn notices(&self) -> u64 {
        self.notices.load(Ordering::Acquire)
    }

    /// Ready once there have been more than `seen`.
    #[cfg(feature = "tokio")]
    pub(crate) fn poll_notice(&self, cx: &mut Context<'_>, seen: u64) -> Poll<()> {
        *self.waker() = Some(cx.waker().clone());
        if self.notices() > seen {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Counts them from 0 again.
    pub(crate) fn forget_copied(&self) {
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

impl fmt::Debug for Sending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.completion().fmt(f)
    }
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Part").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_send_is_settled_when_its_last_part_is() {
        let sending = Sending::new();
        let completion = sending.completion();
        let account = Arc::default();
        let [first, second] = [(), ()].map(|()| sending.part(&account, None));
        sending.count(10, 10, Rule::Copied);
        drop(sending);
        second.settle(20, 0, Rule::Notice);
        assert_eq!(completion.settled(), None);
        assert!(completion.wait(Some(Duration::from_millis(1))).is_err());
        first.settle(30, 30, Rule::Notice);
        let settled = completion.settled().expect("all parts are");
        assert_eq!(
            (settled.bytes, settled.copied, settled.rule),
            (60, 40, Rule::Notice)
        );
        assert_eq!((account.copied(), account.copied_in_a_row()), (30, 1));
    }

    #[test]
    fn whoever_waits_is_woken() {
        let sending = Sending::new();
        let completion = sending.completion();
        let waiting = std::thread::spawn(move || completion.wait(None));
        let part = sending.part(&Arc::default(), None);
        drop(sending);
        part.settle(1, 0, Rule::Notice);
        let settled = waiting.join().expect("no panic").expect("no time-out");
        assert_eq!(settled.bytes, 1);
    }
}
