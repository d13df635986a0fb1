//! A ring that sends memory to sockets, and keeps the memory allocated until the kernel is done
//! with it.
//!
//! [`Ring`] takes ownership of the leases of a send before the kernel sees the address of the
//! memory, and drops these leases when the kernel's notification has arrived. A send does not
//! block: the kernel tries it within the system call, so its result is known when the call returns.
//! Only the notification arrives later.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, Result};

use super::sends::{SendToken, Sends};
use crate::in_flight::{EndedSend, Leases, NotificationSource, SendPart, complete_all};
use crate::sys::fork::{self, OwnerProcess};
use crate::sys::uring::Uring;

/// The error of a send whose ring can no longer be used, because the ring's thread or runtime has
/// ended, the process has forked since the ring was created, or a system call on the ring has
/// failed. The bytes of such a send are copied instead; the next send can use a new ring.
pub(crate) const RING_RETIRED: Errno = Errno::CANCELED;

/// The number of entries in the submission queue, and therefore the maximum number of sends per
/// system call. Each entry takes 64 bytes.
const SUBMISSION_ENTRIES: u32 = 64;

/// The number of entries in the completion queue. If more notifications than this are waiting to be
/// processed, the kernel allocates memory for the rest. Each entry takes 16 bytes.
const COMPLETION_ENTRIES: u32 = 1024;

/// A ring and the sends that it has in flight. Threads other than the one that created the ring may
/// use it too, but less efficiently: see [`RingState::without_signals`].
pub(crate) struct Ring {
    owner_process: OwnerProcess,
    owner_thread: ThreadId,
    /// A duplicate of the ring's descriptor, which can be polled without taking the lock.
    descriptor: OwnedFd,
    is_retired: AtomicBool,
    state: Mutex<RingState>,
}

struct RingState {
    uring: Uring,
    sends: Sends,
    /// The results that have arrived, but have not been returned to the caller of the send yet.
    results: Vec<(SendToken, Result<usize>)>,
    /// Whether a thread other than `owner_thread` has ever sent with this ring.
    has_foreign_sends: bool,
}

impl Ring {
    /// Creates a ring for the calling thread.
    ///
    /// # Errors
    ///
    /// The same as [`Uring::new`], and `EMFILE` if the process has too many descriptors open.
    pub(crate) fn new() -> Result<Self> {
        Self::with_entries(SUBMISSION_ENTRIES, COMPLETION_ENTRIES)
    }

    fn with_entries(submissions: u32, completions: u32) -> Result<Self> {
        // Recorded before the ring exists, so that a fork in between is detected.
        let owner_process = OwnerProcess::current();
        let uring = Uring::new(submissions, completions)?;
        Ok(Self {
            owner_process,
            owner_thread: thread::current().id(),
            descriptor: uring.duplicate_descriptor()?,
            is_retired: AtomicBool::new(false),
            state: Mutex::new(RingState {
                uring,
                sends: Sends::default(),
                results: Vec::new(),
                has_foreign_sends: false,
            }),
        })
    }

    /// Sends the memory held by `leases`, and returns at once with the number of bytes that the
    /// socket accepted.
    ///
    /// The leases are held until the kernel is done with the memory; then `part` is completed. If
    /// the send fails, `part` is dropped and does not count in the outcome.
    ///
    /// # Errors
    ///
    /// If this returns an error other than `EIO`, no byte was sent.
    ///
    /// - The errno of the send, such as `EAGAIN` if the socket's buffer is full.
    /// - `ENOMEM` also if the kernel did not accept the request at all, because it lacked memory or
    ///   was busy.
    /// - [`RING_RETIRED`] if the ring can no longer be used.
    /// - `EIO` if the ring itself failed after the kernel had accepted the request. It is then
    ///   unknown how many bytes were sent, so the connection can no longer be used.
    pub(crate) fn send(
        &self,
        sink: BorrowedFd<'_>,
        leases: Leases,
        part: SendPart,
    ) -> Result<usize> {
        if self.is_retired() {
            complete_all([EndedSend::unsent(Some(leases), Some(part))]);
            return Err(RING_RETIRED);
        }
        let (result, ended) = self.locked_to_send(|state| state.send(sink, leases, part));
        complete_all(ended);
        result
    }

    /// Submits these sends in order, with as few system calls as possible, and passes the result of
    /// each to `report`. No two of the sends may be to the same socket: if the socket accepted only
    /// part of the first send, the second would follow anyway, and the stream would have a gap.
    #[cfg_attr(not(feature = "tokio"), allow(dead_code))]
    pub(crate) fn send_all(
        &self,
        sends: impl IntoIterator<Item = QueuedSend>,
        mut report: impl FnMut(Result<usize>),
    ) {
        let mut queued = sends.into_iter();
        // Completing a send runs foreign code, which may wait for the result of another of these
        // sends. So no send is completed until all results have been reported.
        let mut ended = Vec::new();
        loop {
            let batch = queued.by_ref().take(SUBMISSION_ENTRIES as usize);
            let batch = batch.map(|it| (it.sink, (it.leases, it.part)));
            let (sinks, sends): (Vec<_>, Vec<_>) = batch.unzip();
            if sinks.is_empty() {
                break;
            }
            if self.is_retired() {
                let unsent = sends.into_iter().map(|(leases, part)| {
                    report(Err(RING_RETIRED));
                    EndedSend::unsent(Some(leases), Some(part))
                });
                ended.extend(unsent);
                continue;
            }
            let (results, newly_ended) = self.locked_to_send(|state| state.send_all(&sinks, sends));
            ended.extend(newly_ended);
            results.into_iter().for_each(&mut report);
        }
        complete_all(ended);
    }

    /// Runs `make`, which makes sends, while the lock is held. Also returns the sends that have
    /// ended meanwhile, for the caller to complete.
    fn locked_to_send<T>(&self, make: impl FnOnce(&mut RingState) -> T) -> (T, Vec<EndedSend>) {
        let mut state = self.lock();
        state.has_foreign_sends |= self.owner_thread != thread::current().id();
        let made = make(&mut state);
        if state.uring.is_broken() {
            self.retire();
        }
        let ended = state.sends.take_ended();
        (made, ended)
    }

    /// Processes the notifications that have arrived.
    pub(crate) fn reap(&self) {
        if self.belongs_to_parent() {
            return;
        }
        let mut state = self.lock();
        state.reap();
        let ended = state.sends.take_ended();
        // The lock is released first, because completing a send runs foreign code, which may use
        // this ring.
        drop(state);
        complete_all(ended);
    }

    /// Waits for a notification to process, for at most `limit`. May return earlier without a
    /// notification.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::Unsupported`] in a forked child if the ring was created before the fork,
    /// because only the parent receives the notifications. Otherwise the errno of `poll(2)`.
    pub(crate) fn wait(&self, limit: Duration) -> io::Result<()> {
        if self.belongs_to_parent() {
            return Err(fork::owned_by_parent());
        }
        let limit = Timespec::try_from(limit).ok();
        let mut ready = [PollFd::new(self, PollFlags::IN)];
        match poll(&mut ready, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Creates an eventfd that the kernel signals at each notification. Results of sends are
    /// processed at once and need no signal. They signal the eventfd only if a thread other than
    /// the owner has sent with the ring (see [`RingState::without_signals`]). Nothing reads the
    /// eventfd, so the caller must wait for it edge-triggered.
    #[cfg(feature = "tokio")]
    pub(crate) fn notification_eventfd(&self) -> Result<OwnedFd> {
        use rustix::event::{EventfdFlags, eventfd};
        let signal = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        self.lock().uring.signal_to(signal.as_fd())?;
        Ok(signal)
    }

    /// Returns the number of sends in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.lock().sends.len()
    }

    /// Whether the caller is a forked child of the process that created the ring. A child must not
    /// take the lock: if a thread of the parent held the lock during the fork, the child's copy of
    /// the lock is never released, and the state under it may be half-written.
    pub(crate) fn belongs_to_parent(&self) -> bool {
        !self.owner_process.is_current()
    }

    /// Stops the ring from accepting further sends.
    pub(crate) fn retire(&self) {
        self.is_retired.store(true, Ordering::Relaxed);
    }

    /// Whether the ring no longer accepts sends.
    pub(crate) fn is_retired(&self) -> bool {
        self.is_retired.load(Ordering::Relaxed) || self.belongs_to_parent()
    }

    fn lock(&self) -> MutexGuard<'_, RingState> {
        // No foreign code runs while the lock is held, not even to drop memory or wakers, so a
        // panic cannot have left the state inconsistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Ring {
    /// Returns a descriptor that is readable while there are completions to process.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl NotificationSource for Ring {
    fn reap(&self) {
        Self::reap(self);
    }

    fn wait(&self, limit: Duration) -> io::Result<()> {
        Self::wait(self, limit)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let belongs_to_parent = self.belongs_to_parent();
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let sends = std::mem::take(&mut state.sends);
        // The kernel may still read the memory in flight, and nothing will process its
        // notifications, so the memory is leaked. A forked child does not even look at the sends:
        // another thread of the parent may have been changing them during the fork, so the child's
        // copy may be half-written.
        if belongs_to_parent || sends.len() > 0 {
            std::mem::forget(sends);
        }
    }
}

/// A send that [`Ring::send_all`] submits together with others.
#[cfg_attr(not(feature = "tokio"), allow(dead_code))]
pub(crate) struct QueuedSend {
    pub(crate) sink: Arc<OwnedFd>,
    pub(crate) leases: Leases,
    pub(crate) part: SendPart,
}

impl RingState {
    fn send(&mut self, sink: BorrowedFd<'_>, leases: Leases, part: SendPart) -> Result<usize> {
        self.without_signals(|state| {
            let token = state.sends.begin(leases, part);
            let request = state.sends.request(token, sink);
            let submitted = state.uring.submit(request.as_slice());
            state.withdraw_rejected(&[token], submitted);
            state.result_of(token)
        })
    }

    /// Submits these sends in one system call, each to the sink with the same index, and returns
    /// their results in the same order. There must not be more sends than the submission queue has
    /// entries.
    #[cfg_attr(not(feature = "tokio"), allow(dead_code))]
    fn send_all(
        &mut self,
        sinks: &[Arc<OwnedFd>],
        sends: Vec<(Leases, SendPart)>,
    ) -> Vec<Result<usize>> {
        self.without_signals(|state| {
            let begin = |(leases, part)| state.sends.begin(leases, part);
            let tokens: Vec<_> = sends.into_iter().map(begin).collect();
            let requests = tokens.iter().zip(sinks);
            let requests: Vec<_> = requests
                .filter_map(|(token, sink)| state.sends.request(*token, sink.as_fd()))
                .collect();
            let submitted = state.uring.submit(&requests);
            drop(requests);
            state.withdraw_rejected(&tokens, submitted);
            tokens.into_iter().map(|it| state.result_of(it)).collect()
        })
    }

    /// Runs `make`, which submits sends and takes their results. Signals to the eventfd are
    /// switched off meanwhile, because the results need no signal.
    fn without_signals<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> T {
        // The kernel posts the notification of a send on the thread that made the send. If only
        // this thread has sent, each notification is posted either during `make`, in which case the
        // `reap` below processes it, or after this function has returned, in which case it is
        // signalled. But the notification of another thread's send could be posted just as the
        // signals are switched on again, and then it might neither be signalled nor be seen by
        // `reap`. So once another thread has sent, the signals stay on.
        if self.has_foreign_sends {
            return make(self);
        }
        self.uring.set_signalling(false);
        let made = make(self);
        self.uring.set_signalling(true);
        // Process the notifications that arrived during `make`, because they were not signalled.
        self.reap();
        made
    }

    /// If the kernel did not accept all sends, ends the ones that it rejected, which are the last
    /// ones in `tokens`, and records the error as their result.
    fn withdraw_rejected(
        &mut self,
        tokens: &[SendToken],
        submitted: std::result::Result<(), crate::sys::uring::RejectedSends>,
    ) {
        let Err(rejected) = submitted else {
            return;
        };
        let accepted = tokens.len().saturating_sub(rejected.count);
        for &token in &tokens[accepted..] {
            self.sends.withdraw(token);
            self.results.push((token, Err(rejected.errno)));
        }
    }

    /// Returns the result of a send that has been submitted. The result should have arrived during
    /// the system call that submitted the send. If it has not, this waits for it.
    fn result_of(&mut self, token: SendToken) -> Result<usize> {
        loop {
            if let Some(index) = self.results.iter().position(|(it, _)| *it == token) {
                return self.results.remove(index).1;
            }
            let known = self.results.len();
            self.reap();
            if self.results.len() > known {
                continue;
            }
            match self.uring.wait(1) {
                Ok(()) | Err(Errno::INTR | Errno::AGAIN | Errno::BUSY) => {}
                Err(_) => {
                    // The result is unknown, so keep the leases, and send nothing more with this
                    // ring.
                    self.uring.break_off();
                    return Err(Errno::IO);
                }
            }
        }
    }

    /// Processes the completions that have arrived.
    fn reap(&mut self) {
        let Self {
            uring,
            sends,
            results,
            ..
        } = self;
        uring.drain(|completion| results.extend(sends.process(completion)));
    }
}

#[cfg(test)]
#[allow(unsafe_code)] // system calls that only these tests make
mod tests;
