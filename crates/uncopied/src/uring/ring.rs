//! A ring that sends memory to sockets, and keeps the memory until the kernel is done with it.
//!
//! [`Ring`] takes over the leases of a send before the kernel sees an address, and releases them
//! when the kernel's notification has arrived. A send returns at once: the kernel tries it within
//! the call. Only notifications arrive later.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, Result};

use super::sends::{EndedSend, SendToken, Sends};
use crate::in_flight::{Leases, NotificationSource, SendPart};
use crate::sys::fork::{self, OwnerProcess};
use crate::sys::uring::Uring;

/// The error of a send by a ring that cannot be used any more: its thread or runtime is gone, it
/// belongs to the parent process, or the kernel has failed it. This send is copied; the next one
/// can use a new ring.
pub(crate) const RING_RETIRED: Errno = Errno::CANCELED;

/// Entries of the submission queue, which is how many sends one call makes. 64 bytes each.
const SUBMISSION_ENTRIES: u32 = 64;

/// Entries of the completion queue. If more notifications than this arrive before they are
/// processed, the kernel allocates memory for them. 16 bytes each.
const COMPLETION_ENTRIES: u32 = 1024;

/// A ring and the memory that it has in flight. It works best for the thread that created it, but
/// other threads may use it as well.
pub(crate) struct Ring {
    owner_process: OwnerProcess,
    owner_thread: ThreadId,
    /// A duplicate of the ring's descriptor, which can be polled without the lock.
    descriptor: OwnedFd,
    is_retired: AtomicBool,
    state: Mutex<RingState>,
}

struct RingState {
    uring: Uring,
    sends: Sends,
    /// Results that have arrived and have not been returned yet.
    results: Vec<(SendToken, Result<usize>)>,
    /// Whether threads other than the owner have sent by this ring.
    has_foreign_sends: bool,
    /// Whether the ring has failed, so that nothing more is submitted.
    is_broken: bool,
}

impl Ring {
    /// Creates a ring for the calling thread.
    ///
    /// # Errors
    ///
    /// Those of [`Uring::new`], and `EMFILE` if the process has too many descriptors open.
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
                is_broken: false,
            }),
        })
    }

    /// Sends the memory of these leases, and returns at once how many bytes the socket accepted.
    ///
    /// The leases are kept until the kernel is done with the memory, and then `part` is completed.
    /// After an error, `part` does not count.
    ///
    /// # Errors
    ///
    /// No byte was sent, except possibly with `EIO`.
    ///
    /// - The errno of the send, such as `EAGAIN` if the socket's buffer is full.
    /// - `ENOMEM` also if the kernel could not even accept the request.
    /// - [`RING_RETIRED`] if the ring cannot be used any more.
    /// - `EIO` if the ring itself failed after the kernel had accepted the request. It is unknown
    ///   how many bytes were sent, so that the connection is unusable.
    pub(crate) fn send(
        &self,
        sink: BorrowedFd<'_>,
        leases: Leases,
        part: SendPart,
    ) -> Result<usize> {
        if self.is_retired() {
            return Err(RING_RETIRED);
        }
        let mut state = self.lock_to_send();
        let result = state.send(sink, leases, part);
        self.unlock_after_send(state);
        result
    }

    /// Makes these sends, in their order, in as few calls as possible, and reports the result of
    /// each. There must not be two sends to the same socket: the second one would be made even if
    /// the first one was cut short.
    #[cfg_attr(not(feature = "tokio"), allow(dead_code))]
    pub(crate) fn send_all(
        &self,
        sends: impl IntoIterator<Item = QueuedSend>,
        mut report: impl FnMut(Result<usize>),
    ) {
        let mut sends = sends.into_iter();
        loop {
            let batch: Vec<_> = sends.by_ref().take(SUBMISSION_ENTRIES as usize).collect();
            if batch.is_empty() {
                return;
            }
            if self.is_retired() {
                batch.into_iter().for_each(|_| report(Err(RING_RETIRED)));
                continue;
            }
            let mut state = self.lock_to_send();
            let results = state.send_all(batch);
            self.unlock_after_send(state);
            results.into_iter().for_each(&mut report);
        }
    }

    fn lock_to_send(&self) -> MutexGuard<'_, RingState> {
        let mut state = self.lock();
        state.has_foreign_sends |= self.owner_thread != thread::current().id();
        state
    }

    fn unlock_after_send(&self, state: MutexGuard<'_, RingState>) {
        if state.is_broken {
            self.retire();
        }
        complete_ended(state);
    }

    /// Processes the notifications that have arrived.
    pub(crate) fn reap(&self) {
        if self.belongs_to_parent() {
            return;
        }
        let mut state = self.lock();
        state.reap();
        complete_ended(state);
    }

    /// Waits until there is a notification to process, for at most `limit`. It may return early.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::Unsupported`] if the ring belongs to the parent process, whose
    /// notifications never arrive here, and the errno of `poll(2)`.
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

    /// Creates an eventfd that counts notifications, but not the results of sends, which are
    /// processed at once. It is never read: the caller waits for it edge-triggered.
    #[cfg(feature = "tokio")]
    pub(crate) fn notification_eventfd(&self) -> Result<OwnedFd> {
        use rustix::event::{EventfdFlags, eventfd};
        let signal = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        self.lock().uring.signal_to(signal.as_fd())?;
        Ok(signal)
    }

    /// How many sends are in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.lock().sends.len()
    }

    /// Whether the caller is a child of the process that created the ring. The lock may be held
    /// forever, and the state under it may be half written: a child leaves both alone.
    pub(crate) fn belongs_to_parent(&self) -> bool {
        !self.owner_process.is_current()
    }

    /// Refuses every send from now on.
    pub(crate) fn retire(&self) {
        self.is_retired.store(true, Ordering::Relaxed);
    }

    /// Whether every send is refused.
    pub(crate) fn is_retired(&self) -> bool {
        self.is_retired.load(Ordering::Relaxed) || self.belongs_to_parent()
    }

    fn lock(&self) -> MutexGuard<'_, RingState> {
        // The code under the lock drops no lease and calls no foreign code, so that a panic cannot
        // have left the state inconsistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Ring {
    /// Readable while there is a completion to process.
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
        // The kernel still reads the memory in flight, and its notifications will not be seen: the
        // memory is leaked. A child does not even look at the sends, which may be half written.
        if belongs_to_parent || sends.len() > 0 {
            std::mem::forget(sends);
        }
    }
}

/// Releases the lock, and then completes the sends that have ended.
fn complete_ended(mut state: MutexGuard<'_, RingState>) {
    let ended = state.sends.take_ended();
    drop(state);
    ended.into_iter().for_each(EndedSend::complete);
}

/// A send that is made in one call together with others.
#[cfg_attr(not(feature = "tokio"), allow(dead_code))]
pub(crate) struct QueuedSend {
    pub(crate) sink: Arc<dyn AsFd + Send + Sync>,
    pub(crate) leases: Leases,
    pub(crate) part: SendPart,
}

impl RingState {
    fn send(&mut self, sink: BorrowedFd<'_>, leases: Leases, part: SendPart) -> Result<usize> {
        if self.is_broken {
            return Err(RING_RETIRED);
        }
        self.without_signals(|state| {
            let token = state.sends.begin(leases, part);
            let request = state.sends.request(token, sink);
            let submitted = state.uring.submit(request.as_slice());
            state.withdraw_rejected(&[token], submitted);
            state.result_of(token)
        })
    }

    /// Makes these sends in one call. There are at most as many as the submission queue has
    /// entries.
    #[cfg_attr(not(feature = "tokio"), allow(dead_code))]
    fn send_all(&mut self, sends: Vec<QueuedSend>) -> Vec<Result<usize>> {
        if self.is_broken {
            return sends.iter().map(|_| Err(RING_RETIRED)).collect();
        }
        self.without_signals(|state| {
            let mut sinks = Vec::with_capacity(sends.len());
            let mut tokens = Vec::with_capacity(sends.len());
            for QueuedSend { sink, leases, part } in sends {
                tokens.push(state.sends.begin(leases, part));
                sinks.push(sink);
            }
            let requests = tokens.iter().zip(&sinks);
            let requests: Vec<_> = requests
                .filter_map(|(token, sink)| state.sends.request(*token, (**sink).as_fd()))
                .collect();
            let submitted = state.uring.submit(&requests);
            drop(requests);
            state.withdraw_rejected(&tokens, submitted);
            tokens.into_iter().map(|it| state.result_of(it)).collect()
        })
    }

    /// Runs `make`, whose results arrive within it, with the signals to the eventfd switched off.
    fn without_signals<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> T {
        // The kernel posts notifications on the thread that sent. If only this thread has sent,
        // they are posted during `make`, and processed below, or after this function, with a
        // signal. Those of another thread could be posted just as the signals are switched on
        // again, and be missed by both.
        if self.has_foreign_sends {
            return make(self);
        }
        self.uring.set_signalling(false);
        let made = make(self);
        self.uring.set_signalling(true);
        // What arrived during `make` has not signalled.
        self.reap();
        made
    }

    /// Ends the sends that the kernel did not accept: the last ones of `tokens`.
    fn withdraw_rejected(
        &mut self,
        tokens: &[SendToken],
        submitted: std::result::Result<(), crate::sys::uring::RejectedSends>,
    ) {
        self.is_broken |= self.uring.is_broken();
        let Err(rejected) = submitted else {
            return;
        };
        let accepted = tokens.len().saturating_sub(rejected.count);
        for &token in &tokens[accepted..] {
            self.sends.withdraw(token);
            self.results.push((token, Err(rejected.errno)));
        }
    }

    /// Returns the result of a send that the kernel has accepted. It has arrived with the call; if
    /// it ever has not, this waits for it.
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
                    // The leases are kept, and nothing more is sent by this ring.
                    self.is_broken = true;
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
