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
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use io_uring::types::Fd;
use io_uring::{EnterFlags, IoUring, opcode, squeue};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, Result};

use super::flights::{Done, Flights, Leases, Token};
use super::fork;
use crate::completion::Part;

/// The ring is not to be used for this: its thread or runtime is gone, it belongs to the parent process,
/// or the kernel has failed it. Another can be had; this send is copied.
pub(crate) const RETIRED: Errno = Errno::CANCELED;

/// Entries of the submission queue. One is used at a time.
const SUBMISSIONS: u32 = 4;

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

/// A ring, with the memory that it has lent. Sends are made by the thread that made it; notices may be
/// taken in by any.
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
        if self.is_retired() || self.owner != thread::current().id() {
            return Err(RETIRED);
        }
        let mut state = self.lock();
        let answer = state.send(sink, leases, part);
        if state.is_broken {
            self.retire();
        }
        settle(state);
        answer
    }

    /// Takes in the notices that are there.
    pub(crate) fn reap(&self) {
        if self.is_of_parent() {
            return;
        }
        let mut state = self.lock();
        state.reap(None);
        settle(state);
    }

    /// Waits until there is a notice to take in, for at most `limit`. May return early.
    ///
    /// # Errors
    ///
    /// That the ring is the parent process's, whose notices never come here.
    pub(crate) fn wait(&self, limit: Option<Duration>) -> io::Result<()> {
        if self.is_of_parent() {
            return Err(fork::of_parent());
        }
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
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

impl State {
    fn send(&mut self, sink: BorrowedFd<'_>, leases: Leases, part: Part) -> Result<usize> {
        if self.is_broken {
            return Err(RETIRED);
        }
        let token = self.flights.begin(leases, part);
        // The answer comes within the call: it need not wake anybody.
        self.uring.completion().disable_eventfd();
        let answer = match self.submit(sink, token) {
            Ok(()) => self.answer(token),
            Err(errno) => {
                self.flights.withdraw(token);
                Err(errno)
            }
        };
        self.uring.completion().enable_eventfd();
        // Looked at only after it is enabled: a notice that came before is taken in here, a later one
        // signals. Notices are posted by the thread that sent, this one, so they come between its
        // statements or not at all.
        fence(Ordering::SeqCst);
        self.reap(None);
        answer
    }

    /// Gives the kernel a send from the leases of `token`. After an error it was not given.
    fn submit(&mut self, sink: BorrowedFd<'_>, token: Token) -> Result<()> {
        let leases = self.flights.leases(token).ok_or(Errno::IO)?;
        let sink = Fd(sink.as_raw_fd());
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let mut buffers = Vec::new();
        // SAFETY: all zeroes are a message header without anything in it.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        let entry = if leases.is_one() {
            let memory = leases.first().memory();
            let address = std::ptr::with_exposed_provenance(memory.address());
            let len = memory.len().min(MOST) as u32;
            opcode::SendZc::new(sink, address, len)
                .flags(flags)
                .zc_flags(REPORT_USAGE)
                .build()
        } else {
            buffers.extend(leases.iter().take(MOST_BUFFERS).map(|lease| libc::iovec {
                iov_base: std::ptr::with_exposed_provenance_mut(lease.memory().address()),
                iov_len: lease.memory().len(),
            }));
            header.msg_iov = buffers.as_mut_ptr();
            header.msg_iovlen = buffers.len() as _;
            opcode::SendMsgZc::new(sink, &raw const header)
                .ioprio(REPORT_USAGE)
                .flags(flags.cast_unsigned())
                .build()
        };
        self.push(&entry.user_data(token.0))?;
        self.enter()
    }

    fn push(&mut self, entry: &squeue::Entry) -> Result<()> {
        // SAFETY: the entry comes from `submit`. Its descriptor is borrowed for as long as the call that
        // submits it. The memory that it names is kept by the leases in `flights` until the notice, or
        // the answer that says that none comes, and is leaked if the ring is dropped before: it stays
        // mapped, is initialised, and nobody writes to it. The message header and its list of buffers
        // live until `submit` returns; the kernel has read them by then (IORING_FEAT_SUBMIT_STABLE,
        // which `with_sizes` checks), or else never does: `enter` breaks the ring.
        let pushed = unsafe { self.uring.submission().push(entry) };
        // The queue is empty but for this entry: every entry before was submitted, or broke the ring.
        pushed.map_err(|_| {
            self.is_broken = true;
            RETIRED
        })
    }

    /// Has the kernel take in the one entry. After an error it has not and never will.
    fn enter(&mut self) -> Result<()> {
        let mut failure = Errno::NOMEM;
        for _ in 0..TRIES {
            let entered = self.uring.submit();
            // The queue tells it better than the answer, which speaks of all that the call did.
            if self.uring.submission().is_empty() {
                return Ok(());
            }
            match entered.map_err(errno) {
                Err(Errno::INTR) => {}
                Err(Errno::BUSY) => {
                    self.reap(None);
                }
                // No memory for a request. Not to be taken for a socket that is full.
                Ok(_) | Err(Errno::AGAIN) => break,
                // Of the call, not of the send: a filter that came after the ring was made.
                Err(Errno::PERM | Errno::ACCESS) => {
                    failure = Errno::NOSYS;
                    break;
                }
                Err(errno) => {
                    failure = errno;
                    break;
                }
            }
        }
        self.is_broken = true;
        Err(failure)
    }

    /// The answer to a send that the kernel has been given. It is there; if it ever should not be, it is
    /// waited for.
    fn answer(&mut self, token: Token) -> Result<usize> {
        loop {
            if let Some(answer) = self.reap(Some(token)) {
                return answer;
            }
            match self.look(1) {
                Ok(()) | Err(Errno::INTR | Errno::AGAIN | Errno::BUSY) => {}
                Err(_) => {
                    // The lease stays in the ledger. The next send is not tried here.
                    self.is_broken = true;
                    return Err(Errno::IO);
                }
            }
        }
    }

    /// Takes in what has completed. If the answer to `awaited` is among it, that.
    fn reap(&mut self, awaited: Option<Token>) -> Option<Result<usize>> {
        let mut answer = None;
        loop {
            let mut has_overflowed = false;
            {
                let (_, submission, completion) = self.uring.split();
                has_overflowed |= submission.cq_overflow();
                for entry in completion {
                    let token = Token(entry.user_data());
                    let taken = self.flights.take_in(token, entry.result(), entry.flags());
                    if taken.is_some() && awaited == Some(token) {
                        answer = taken;
                    }
                }
            }
            // What the queue had no room for, the kernel keeps until it is asked.
            if !has_overflowed || matches!(self.look(0), Err(errno) if errno != Errno::INTR) {
                return answer;
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
