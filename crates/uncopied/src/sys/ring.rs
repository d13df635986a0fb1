//! An io_uring that lends memory to sockets.
//!
//! [`Ring`] is what makes it safe: it takes over the leases before the kernel is given the addresses,
//! and gives them back when the kernel's notice has come. Nobody else can reach the queues.
//!
//! The ring is asked one thing at a time, and answers at once: `MSG_DONTWAIT` makes the kernel try a send
//! within `io_uring_enter(2)`, so that its answer is in the completion queue when the call returns.
//! Only the notices come later.

use std::io;
#[cfg(feature = "tokio")]
use std::os::fd::OwnedFd;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use io_uring::types::Fd;
use io_uring::{EnterFlags, IoUring, opcode, squeue};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, Result};

use super::flights::{Done, Flights, Leases, Token};
use super::fork;
use crate::completion::Part;
use crate::lease::Lease;

/// The ring is not to be used for this: its thread or runtime is gone, it belongs to the parent process,
/// or the kernel has failed it. Another can be had; this send is copied.
pub(crate) const RETIRED: Errno = Errno::CANCELED;

/// Entries of the submission queue: so many sends go by one call. 64 bytes each.
const SUBMISSIONS: u32 = 64;

/// Entries of the completion queue: so many notices can come between two looks without the kernel
/// allocating memory for them. 16 bytes each.
const COMPLETIONS: u32 = 1024;

/// The most that one send takes, in bytes: what the kernel cuts every call short at.
const MOST: usize = 0x7fff_f000;

/// The most buffers that one send takes (`UIO_MAXIOV`).
const MOST_BUFFERS: usize = 1024;

/// `IORING_SEND_ZC_REPORT_USAGE`: the notice says whether the kernel copied.
const REPORT_USAGE: u16 = 1 << 3;

/// So often a submission is tried again that the kernel puts off until completions are taken in.
const TRIES: u32 = 64;

/// A ring, with the memory that it has lent. It serves the thread that made it best; others may use it
/// as well.
pub(crate) struct Ring {
    fork_generation: u64,
    owner: ThreadId,
    descriptor: RawFd,
    is_retired: AtomicBool,
    state: Mutex<State>,
}

struct State {
    uring: IoUring,
    flights: Flights,
    /// Answers that came and are not handed on yet.
    answers: Vec<(Token, Result<usize>)>,
    /// Other threads than its own have sent by it.
    has_guests: bool,
    /// An entry is stuck in the submission queue: nothing is ever submitted again.
    is_broken: bool,
}

impl Ring {
    /// A ring for the calling thread.
    ///
    /// # Errors
    ///
    /// `ENOSYS` and `EPERM` where the kernel, a seccomp filter or `kernel.io_uring_disabled` refuses
    /// rings, `EMFILE`, `ENFILE` and `ENOMEM` where there is no room for one, `EINVAL` from kernels
    /// before 5.19.
    pub(crate) fn new() -> Result<Self> {
        Self::with_sizes(SUBMISSIONS, COMPLETIONS)
    }

    fn with_sizes(submissions: u32, completions: u32) -> Result<Self> {
        // Known before the ring, so that a fork right after is seen.
        let fork_generation = fork::generation();
        let uring = IoUring::builder()
            .setup_cqsize(completions)
            // A notice need not interrupt the thread that sent: it is taken in when the thread next
            // enters the kernel.
            .setup_coop_taskrun()
            // A send that is refused as it is taken in does not hold up those behind it.
            .setup_submit_all()
            .build(submissions)
            .map_err(errno)?;
        // Without these, notices would be lost when the completion queue is full, or the header of a
        // message be read after the call.
        let params = uring.params();
        if !params.is_feature_nodrop() || !params.is_feature_submit_stable() {
            return Err(Errno::OPNOTSUPP);
        }
        Ok(Self {
            fork_generation,
            owner: thread::current().id(),
            descriptor: uring.as_raw_fd(),
            is_retired: AtomicBool::new(false),
            state: Mutex::new(State {
                uring,
                flights: Flights::default(),
                answers: Vec::new(),
                has_guests: false,
                is_broken: false,
            }),
        })
    }

    /// Sends from these leases, and answers at once with how many bytes the socket took. They are kept
    /// until the kernel is done with them; `part` is settled then. After an error `part` does not
    /// count.
    ///
    /// # Errors
    ///
    /// What the kernel answers to the send (`EAGAIN`: the socket's buffer is full), and [`RETIRED`].
    /// `ENOMEM` also where the kernel cannot even take the send in. In either case no byte went.
    /// `EIO` where the ring itself failed after the kernel had been given the send: nobody knows how
    /// many bytes went, and the connection is of no use any more.
    pub(crate) fn send(&self, sink: BorrowedFd<'_>, leases: Leases, part: Part) -> Result<usize> {
        if self.is_retired() {
            return Err(RETIRED);
        }
        let mut state = self.enter();
        let answer = state.send(sink, leases, part);
        self.leave(state);
        answer
    }

    /// Makes these sends, in their order, by as few calls of the kernel as can be, and tells each with its
    /// answer. Two sends to one socket do not belong in here: the second would follow the first however
    /// little that took.
    #[cfg_attr(not(feature = "tokio"), allow(dead_code))]
    pub(crate) fn send_all(
        &self,
        sends: impl IntoIterator<Item = Outgoing>,
        mut tell: impl FnMut(Result<usize>),
    ) {
        let mut sends = sends.into_iter();
        loop {
            let batch: Vec<_> = sends.by_ref().take(SUBMISSIONS as usize).collect();
            if batch.is_empty() {
                return;
            }
            if self.is_retired() {
                batch.into_iter().for_each(|_| tell(Err(RETIRED)));
                continue;
            }
            let mut state = self.enter();
            let answers = state.send_all(batch);
            self.leave(state);
            answers.into_iter().for_each(&mut tell);
        }
    }

    fn enter(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        state.has_guests |= self.owner != thread::current().id();
        state
    }

    fn leave(&self, state: MutexGuard<'_, State>) {
        if state.is_broken {
            self.retire();
        }
        settle(state);
    }

    /// Takes in the notices that are there.
    pub(crate) fn reap(&self) {
        if self.is_of_parent() {
            return;
        }
        let mut state = self.lock();
        state.reap();
        settle(state);
    }

    /// Waits until there is a notice to take in, for at most `limit`. May return early.
    ///
    /// # Errors
    ///
    /// That the ring is the parent process's, whose notices never come here.
    pub(crate) fn wait(&self, limit: Duration) -> io::Result<()> {
        if self.is_of_parent() {
            return Err(fork::of_parent());
        }
        let limit = Timespec::try_from(limit).ok();
        let mut ready = [PollFd::new(self, PollFlags::IN)];
        match poll(&mut ready, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// A descriptor that becomes readable with every notice, but not with the answers to sends, which
    /// are taken in at once. It counts up and is never read: for those who wait for edges.
    #[cfg(feature = "tokio")]
    pub(crate) fn notice_signal(&self) -> Result<OwnedFd> {
        use rustix::event::{EventfdFlags, eventfd};
        let signal = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let state = self.lock();
        let submitter = state.uring.submitter();
        submitter
            .register_eventfd(signal.as_raw_fd())
            .map_err(errno)?;
        Ok(signal)
    }

    /// How many sends wait for their notices.
    pub(crate) fn in_flight(&self) -> usize {
        self.lock().flights.len()
    }

    /// Whether a child process looks at the ring of its parent. Its lock may be held for ever, and its
    /// ledger be half written: the child leaves them alone.
    pub(crate) fn is_of_parent(&self) -> bool {
        self.fork_generation != fork::generation()
    }

    /// From now on it takes no sends.
    pub(crate) fn retire(&self) {
        self.is_retired.store(true, Ordering::Relaxed);
    }

    /// Whether it takes no more sends.
    pub(crate) fn is_retired(&self) -> bool {
        self.is_retired.load(Ordering::Relaxed) || self.is_of_parent()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic cannot come between two statements that leave the ledger untrue: it drops nothing
        // and calls nobody.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Ring {
    /// Readable while there is a completion to take in.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is that of `state.uring`, which is never replaced and lives as long as
        // `self`, which is borrowed for as long as what is returned.
        unsafe { BorrowedFd::borrow_raw(self.descriptor) }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let is_of_parent = self.is_of_parent();
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let flights = std::mem::take(&mut state.flights);
        // The kernel still reads what has been lent, and nobody will be told when it stops: leaked. A
        // child does not even look into the ledger, which may be half written.
        if is_of_parent || flights.len() > 0 {
            std::mem::forget(flights);
        }
    }
}

/// Gives up the lock, and then tells whoever is to be told.
fn settle(mut state: MutexGuard<'_, State>) {
    let done = state.flights.take_done();
    drop(state);
    done.into_iter().for_each(Done::settle);
}

/// A send that goes together with others.
#[cfg_attr(not(feature = "tokio"), allow(dead_code))]
pub(crate) struct Outgoing {
    pub(crate) sink: Arc<dyn AsFd + Send + Sync>,
    pub(crate) leases: Leases,
    pub(crate) part: Part,
}

/// A message of several buffers. The header names the list.
struct Message {
    header: libc::msghdr,
    buffers: Vec<libc::iovec>,
}

impl Message {
    fn of(leases: &Leases) -> Box<Self> {
        let buffer = |lease: &Lease| libc::iovec {
            iov_base: std::ptr::with_exposed_provenance_mut(lease.memory().address()),
            iov_len: lease.memory().len(),
        };
        let mut message = Box::new(Self {
            // SAFETY: all zeroes are a message header without anything in it.
            header: unsafe { std::mem::zeroed() },
            buffers: leases.iter().take(MOST_BUFFERS).map(buffer).collect(),
        });
        message.header.msg_iov = message.buffers.as_mut_ptr();
        message.header.msg_iovlen = message.buffers.len() as _;
        message
    }
}

impl State {
    fn send(&mut self, sink: BorrowedFd<'_>, leases: Leases, part: Part) -> Result<usize> {
        if self.is_broken {
            return Err(RETIRED);
        }
        self.quietly(|state| {
            // The message is kept until the call has been made.
            let (token, _message) = state.give(sink, leases, part);
            state.enter(&[token]);
            state.answer(token)
        })
    }

    /// At most as many sends as the submission queue has entries.
    #[cfg_attr(not(feature = "tokio"), allow(dead_code))]
    fn send_all(&mut self, sends: Vec<Outgoing>) -> Vec<Result<usize>> {
        if self.is_broken {
            return sends.iter().map(|_| Err(RETIRED)).collect();
        }
        self.quietly(|state| {
            // The sinks stay open, and the messages are kept, until the call has been made.
            let mut sinks = Vec::with_capacity(sends.len());
            let mut messages = Vec::new();
            let mut tokens = Vec::with_capacity(sends.len());
            for Outgoing { sink, leases, part } in sends {
                let (token, message) = state.give((*sink).as_fd(), leases, part);
                sinks.push(sink);
                messages.extend(message);
                tokens.push(token);
            }
            state.enter(&tokens);
            tokens.into_iter().map(|it| state.answer(it)).collect()
        })
    }

    /// Makes sends whose answers wake nobody: they come within the call.
    fn quietly<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> T {
        // Notices are posted by the thread that sent. If that was always this one, they come between the
        // statements here or not at all; another's could come just as the signal is enabled, and be
        // missed.
        if self.has_guests {
            return make(self);
        }
        self.uring.completion().disable_eventfd();
        let made = make(self);
        self.uring.completion().enable_eventfd();
        fence(Ordering::SeqCst);
        // What came before that has not signalled.
        self.reap();
        made
    }

    /// Queues a send. The sink is to stay open, and the message that comes back to be kept, until
    /// [`enter`](Self::enter) has returned.
    fn give(
        &mut self,
        sink: BorrowedFd<'_>,
        leases: Leases,
        part: Part,
    ) -> (Token, Option<Box<Message>>) {
        let (entry, message) = entry(sink, &leases);
        let token = self.flights.begin(leases, part);
        // SAFETY: the callers, `send` and `send_all`, keep the sink and the message as said above: the
        // kernel has read them by then (IORING_FEAT_SUBMIT_STABLE, which `with_sizes` checks), or else
        // never does, for `enter` breaks the ring. The memory that the entry names is kept by the leases
        // in `flights` until the notice, or the answer that says that none comes, and is leaked if the
        // ring is dropped before: it stays mapped, is initialised, and nobody writes to it.
        let pushed = unsafe { self.uring.submission().push(&entry.user_data(token.0)) };
        if pushed.is_err() {
            // It cannot be full: what was queued before was taken in, or broke the ring.
            self.is_broken = true;
            self.flights.withdraw(token);
            self.answers.push((token, Err(RETIRED)));
        }
        (token, message)
    }

    /// Has the kernel take in what is queued: the sends of these tokens. Those that it will not take in
    /// stay in the queue and never go out; their answer is why.
    fn enter(&mut self, tokens: &[Token]) {
        let Err(errno) = self.try_enter() else {
            return;
        };
        self.is_broken = true;
        let stuck = self.uring.submission().len().min(tokens.len());
        for &token in &tokens[tokens.len() - stuck..] {
            self.flights.withdraw(token);
            self.answers.push((token, Err(errno)));
        }
    }

    fn try_enter(&mut self) -> Result<()> {
        let mut left = self.uring.submission().len();
        let mut tries = 0;
        while left > 0 {
            let entered = self.uring.submit().map_err(errno);
            // The queue tells better how many it took in than the answer, which speaks of all that the
            // call did.
            let before = std::mem::replace(&mut left, self.uring.submission().len());
            tries = if left < before { 0 } else { tries + 1 };
            match entered {
                _ if tries == 0 => {}
                Err(Errno::INTR) if tries < TRIES => {}
                // Completions are to be taken in first.
                Err(Errno::BUSY) if tries < TRIES => self.reap(),
                // No memory for a request. Not to be taken for a socket that is full.
                Ok(_) | Err(Errno::AGAIN | Errno::INTR | Errno::BUSY) => return Err(Errno::NOMEM),
                // Of the call, not of the send: a filter that came after the ring was made.
                Err(Errno::PERM | Errno::ACCESS) => return Err(Errno::NOSYS),
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// The answer to a send that the kernel has been given. It is there; if it ever should not be, it is
    /// waited for.
    fn answer(&mut self, token: Token) -> Result<usize> {
        loop {
            if let Some(place) = self.answers.iter().position(|(it, _)| *it == token) {
                return self.answers.remove(place).1;
            }
            let known = self.answers.len();
            self.reap();
            if self.answers.len() > known {
                continue;
            }
            match self.look(1) {
                Ok(()) | Err(Errno::INTR | Errno::AGAIN | Errno::BUSY) => {}
                Err(_) => {
                    // The leases stay in the ledger. Nothing is sent by this ring any more.
                    self.is_broken = true;
                    return Err(Errno::IO);
                }
            }
        }
    }

    /// Takes in what has completed.
    fn reap(&mut self) {
        loop {
            let has_overflowed = {
                let (_, submission, completion) = self.uring.split();
                for entry in completion {
                    let token = Token(entry.user_data());
                    let taken = self.flights.take_in(token, entry.result(), entry.flags());
                    self.answers.extend(taken.map(|answer| (token, answer)));
                }
                submission.cq_overflow()
            };
            // What the queue had no room for, the kernel keeps until it is asked.
            if !has_overflowed || matches!(self.look(0), Err(errno) if errno != Errno::INTR) {
                return;
            }
        }
    }

    /// Has the kernel bring the completion queue up to date, and waits until so many are in it.
    fn look(&self, at_least: u32) -> Result<()> {
        let flags = EnterFlags::GETEVENTS.bits();
        let submitter = self.uring.submitter();
        // SAFETY: nothing is submitted, and no argument is passed.
        let looked = unsafe { submitter.enter::<libc::sigset_t>(0, at_least, flags, None) };
        looked.map(|_| ()).map_err(errno)
    }
}

/// What asks the kernel for a send from `leases`, and the message that it names, if it is one.
fn entry(sink: BorrowedFd<'_>, leases: &Leases) -> (squeue::Entry, Option<Box<Message>>) {
    let sink = Fd(sink.as_raw_fd());
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    if leases.is_one() {
        let memory = leases.first().memory();
        let address = std::ptr::with_exposed_provenance(memory.address());
        let len = memory.len().min(MOST) as u32;
        let send = opcode::SendZc::new(sink, address, len);
        (send.flags(flags).zc_flags(REPORT_USAGE).build(), None)
    } else {
        let message = Message::of(leases);
        let send = opcode::SendMsgZc::new(sink, &raw const message.header);
        let send = send.flags(flags.cast_unsigned()).ioprio(REPORT_USAGE);
        (send.build(), Some(message))
    }
}

/// tokio's watch over a [signal](Ring::notice_signal), of the runtime that calls.
///
/// # Errors
///
/// Those of `epoll_ctl(2)`.
#[cfg(feature = "tokio")]
pub(crate) fn watch(signal: OwnedFd) -> Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    use tokio::io::{Interest, unix::AsyncFd};
    // SAFETY: an `OwnedFd` owns an open descriptor and always answers the same one.
    let watched = unsafe { AsyncFd::register_with_interest(signal, Interest::READABLE) };
    watched.map_err(|error| errno(error.into()))
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

#[cfg(test)]
pub(crate) mod tests;
