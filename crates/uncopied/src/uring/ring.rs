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

use super::sends::{EndedSend, Sends, Token};
use crate::in_flight::{Leases, NotificationSource, SendPart};
use crate::sys::fork::{self, OwnerProcess};
use crate::sys::uring::Uring;

/// The ring cannot be used for this send: its thread or runtime is gone, it belongs to the parent
/// process, or the kernel has failed it. Another ring can be made; this send is copied.
pub(crate) const RETIRED: Errno = Errno::CANCELED;

/// Entries of the submission queue, which is how many sends one call makes. 64 bytes each.
const SUBMISSION_ENTRIES: u32 = 64;

/// Entries of the completion queue. If more notifications than this arrive before they are
/// processed, the kernel allocates memory for them. 16 bytes each.
const COMPLETION_ENTRIES: u32 = 1024;

/// A ring with the memory that it has in flight. It works best for the thread that made it; others
/// may use it as well.
pub(crate) struct Ring {
    owner_process: OwnerProcess,
    owner_thread: ThreadId,
    /// The ring's descriptor once more, so that it can be polled without the lock.
    descriptor: OwnedFd,
    is_retired: AtomicBool,
    state: Mutex<RingState>,
}

struct RingState {
    uring: Uring,
    sends: Sends,
    /// Results that have arrived and are not returned yet.
    results: Vec<(Token, Result<usize>)>,
    /// Whether threads other than the owner have sent by it.
    has_guests: bool,
    /// Whether the kernel has failed the ring: nothing more is submitted.
    is_broken: bool,
}

impl Ring {
    /// A ring for the calling thread.
    ///
    /// # Errors
    ///
    /// Those of [`Uring::new`], and `EMFILE`.
    pub(crate) fn new() -> Result<Self> {
        Self::with_entries(SUBMISSION_ENTRIES, COMPLETION_ENTRIES)
    }

    fn with_entries(submissions: u32, completions: u32) -> Result<Self> {
        // Determined before the ring exists, so that a fork right after is noticed.
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
                has_guests: false,
                is_broken: false,
            }),
        })
    }

    /// Sends the memory of these leases, and returns at once how many bytes the socket accepted.
    /// The leases are kept until the kernel is done with them; `part` is completed then. After an
    /// error, `part` does not count.
    ///
    /// # Errors
    ///
    /// The errno of the send (`EAGAIN`: the socket's buffer is full), and [`RETIRED`]. `ENOMEM`
    /// also if the kernel cannot even accept the request. In these cases no byte was sent. `EIO` if
    /// the ring itself failed after the kernel had accepted the request: it is unknown how many
    /// bytes were sent, and the connection is unusable.
    pub(crate) fn send(
        &self,
        sink: BorrowedFd<'_>,
        leases: Leases,
        part: SendPart,
    ) -> Result<usize> {
        if self.is_retired() {
            return Err(RETIRED);
        }
        let mut state = self.enter();
        let result = state.send(sink, leases, part);
        self.leave(state);
        result
    }

    /// Makes these sends, in their order, by as few calls as possible, and reports the result of
    /// each. There must not be two sends to one socket: the second would be made however little the
    /// first one sent.
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
                batch.into_iter().for_each(|_| report(Err(RETIRED)));
                continue;
            }
            let mut state = self.enter();
            let results = state.send_all(batch);
            self.leave(state);
            results.into_iter().for_each(&mut report);
        }
    }

    fn enter(&self) -> MutexGuard<'_, RingState> {
        let mut state = self.lock();
        state.has_guests |= self.owner_thread != thread::current().id();
        state
    }

    fn leave(&self, state: MutexGuard<'_, RingState>) {
        if state.is_broken {
            self.retire();
        }
        complete_ended(state);
    }

    /// Processes the notifications that have arrived.
    pub(crate) fn reap(&self) {
        if self.is_of_parent() {
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
    /// If the ring belongs to the parent process, whose notifications never arrive here.
    pub(crate) fn wait(&self, limit: Duration) -> io::Result<()> {
        if self.is_of_parent() {
            return Err(fork::owned_by_parent());
        }
        let limit = Timespec::try_from(limit).ok();
        let mut ready = [PollFd::new(self, PollFlags::IN)];
        match poll(&mut ready, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// A descriptor that becomes readable with every notification, but not with the results of
    /// sends, which are processed at once. It counts up and is never read: for edge-triggered
    /// waiting.
    #[cfg(feature = "tokio")]
    pub(crate) fn notification_eventfd(&self) -> Result<OwnedFd> {
        use rustix::event::{EventfdFlags, eventfd};
        let signal = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        self.lock().uring.signal_to(signal.as_fd())?;
        Ok(signal)
    }

    /// How many sends wait for their notifications.
    pub(crate) fn in_flight(&self) -> usize {
        self.lock().sends.len()
    }

    /// Whether the caller is a child of the process that made the ring. The lock may be held
    /// forever, and the ledger may be half written: a child leaves both alone.
    pub(crate) fn is_of_parent(&self) -> bool {
        !self.owner_process.is_current()
    }

    /// Refuses every send from now on.
    pub(crate) fn retire(&self) {
        self.is_retired.store(true, Ordering::Relaxed);
    }

    /// Whether it refuses sends.
    pub(crate) fn is_retired(&self) -> bool {
        self.is_retired.load(Ordering::Relaxed) || self.is_of_parent()
    }

    fn lock(&self) -> MutexGuard<'_, RingState> {
        // The code under the lock drops nothing and calls nothing foreign: it cannot panic between
        // two statements that leave the ledger inconsistent.
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
        let is_of_parent = self.is_of_parent();
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let sends = std::mem::take(&mut state.sends);
        // The kernel still reads the memory in flight, and its notifications will not be seen: the
        // memory is leaked. A child does not even look into the ledger, which may be half written.
        if is_of_parent || sends.len() > 0 {
            std::mem::forget(sends);
        }
    }
}

/// Releases the lock, and then completes what has ended.
fn complete_ended(mut state: MutexGuard<'_, RingState>) {
    let ended = state.sends.take_ended();
    drop(state);
    ended.into_iter().for_each(EndedSend::complete);
}

/// A send that goes out together with others.
#[cfg_attr(not(feature = "tokio"), allow(dead_code))]
pub(crate) struct QueuedSend {
    pub(crate) sink: Arc<dyn AsFd + Send + Sync>,
    pub(crate) leases: Leases,
    pub(crate) part: SendPart,
}

impl RingState {
    fn send(&mut self, sink: BorrowedFd<'_>, leases: Leases, part: SendPart) -> Result<usize> {
        if self.is_broken {
            return Err(RETIRED);
        }
        self.without_signals(|state| {
            let token = state.sends.begin(leases, part);
            let request = state.sends.request(token, sink);
            let submitted = state.uring.submit(request.as_slice());
            state.withdraw_rejected(&[token], submitted);
            state.result_of(token)
        })
    }

    /// Makes at most as many sends as the submission queue has entries.
    #[cfg_attr(not(feature = "tokio"), allow(dead_code))]
    fn send_all(&mut self, sends: Vec<QueuedSend>) -> Vec<Result<usize>> {
        if self.is_broken {
            return sends.iter().map(|_| Err(RETIRED)).collect();
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

    /// Runs `make`, whose sends have their results at once, without signals to the eventfd.
    fn without_signals<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> T {
        // Notifications are posted by the thread that sent. If that was always this one, they arrive
        // between the statements here or not at all. Those of another thread could arrive just as
        // signals are switched on again, and be missed.
        if self.has_guests {
            return make(self);
        }
        self.uring.set_signalling(false);
        let made = make(self);
        self.uring.set_signalling(true);
        // What arrived before has not signalled.
        self.reap();
        made
    }

    /// Ends the sends that the kernel did not accept: the last ones of `tokens`.
    fn withdraw_rejected(
        &mut self,
        tokens: &[Token],
        submitted: std::result::Result<(), crate::sys::uring::Rejected>,
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

    /// The result of a send that the kernel has accepted. It has arrived; should it ever not have,
    /// this waits for it.
    fn result_of(&mut self, token: Token) -> Result<usize> {
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
                    // The leases stay in the ledger. Nothing more is sent by this ring.
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
pub(crate) mod tests;
