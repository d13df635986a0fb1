//! An io_uring that makes zero-copy sends.
//!
//! A submission is one call: [`Uring::submit`] borrows the sockets and the memory of its sends, and
//! returns once the kernel has tried each of them. `MSG_DONTWAIT` makes the kernel try within
//! `io_uring_enter(2)`, so that no request refers to either of them afterwards. What arrives later
//! are the notifications, which name a send by the token that the caller chose.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use io_uring::types::Fd;
use io_uring::{EnterFlags, IoUring, opcode, squeue};
use rustix::io::{Errno, Result};

use super::Mapped;

/// `IORING_CQE_F_MORE`: a notification follows.
pub(crate) const FLAG_MORE: u32 = 1 << 1;
/// `IORING_CQE_F_NOTIF`: this is a notification.
pub(crate) const FLAG_NOTIFICATION: u32 = 1 << 3;
/// `IORING_NOTIF_USAGE_ZC_COPIED`, in the result of a notification: the kernel copied.
pub(crate) const RESULT_COPIED: u32 = 1 << 31;

/// The most bytes that one send takes: the kernel cuts every call short at this.
const MAX_SEND_BYTES: usize = 0x7fff_f000;

/// The most buffers that one send takes (`UIO_MAXIOV`).
const MAX_SEND_BUFFERS: usize = 1024;

/// `IORING_SEND_ZC_REPORT_USAGE`: the notification says whether the kernel copied.
const REPORT_USAGE: u16 = 1 << 3;

/// How often a submission is repeated that the kernel postpones until completions are processed.
const MAX_SUBMIT_TRIES: u32 = 64;

/// A zero-copy send of one or more buffers, which go out in their order.
pub(crate) struct SendRequest<'a> {
    pub(crate) sink: BorrowedFd<'a>,
    pub(crate) first: Mapped<'a>,
    pub(crate) rest: Vec<Mapped<'a>>,
    /// Names the send in its completions.
    pub(crate) token: u64,
}

/// A completion: the result of a send, or its notification.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion {
    pub(crate) token: u64,
    pub(crate) result: i32,
    pub(crate) flags: u32,
}

/// The last `count` sends of a submission never reached the kernel, and never will.
#[derive(Debug)]
pub(crate) struct Rejected {
    pub(crate) count: usize,
    pub(crate) errno: Errno,
}

/// A submission queue and a completion queue.
pub(crate) struct Uring {
    uring: IoUring,
    /// Completions that had to be taken out of the queue during a submission.
    early: Vec<Completion>,
    /// An entry is stuck in the submission queue: nothing is ever submitted again.
    is_broken: bool,
}

impl Uring {
    /// Queues with room for this many entries. More completions than that make the kernel allocate
    /// memory for them.
    ///
    /// # Errors
    ///
    /// `ENOSYS` and `EPERM` if the kernel, a seccomp filter or `kernel.io_uring_disabled` refuses
    /// rings; `EMFILE`, `ENFILE` and `ENOMEM` if there is no room for one; `EINVAL` from kernels
    /// before 5.19.
    pub(crate) fn new(submissions: u32, completions: u32) -> Result<Self> {
        let uring = IoUring::builder()
            .setup_cqsize(completions)
            // A notification need not interrupt the thread that sent: it is processed when the
            // thread next enters the kernel.
            .setup_coop_taskrun()
            // A send that is refused when it is submitted does not hold up those behind it.
            .setup_submit_all()
            .build(submissions)
            .map_err(errno)?;
        // Without these features, notifications would be lost when the completion queue is full, or
        // the header of a message would be read after the call.
        let params = uring.params();
        if !params.is_feature_nodrop() || !params.is_feature_submit_stable() {
            return Err(Errno::OPNOTSUPP);
        }
        Ok(Self {
            uring,
            early: Vec::new(),
            is_broken: false,
        })
    }

    /// Another descriptor of the ring, which is readable while there is a completion to process.
    ///
    /// # Errors
    ///
    /// `EMFILE`.
    pub(crate) fn duplicate_descriptor(&self) -> Result<OwnedFd> {
        // SAFETY: the descriptor is that of `self.uring`, and is open for as long as that lives,
        // which is longer than this function runs.
        let descriptor = unsafe { BorrowedFd::borrow_raw(self.uring.as_raw_fd()) };
        rustix::io::fcntl_dupfd_cloexec(descriptor, 3)
    }

    /// Whether nothing can be submitted any more.
    pub(crate) fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Has the kernel try these sends, in their order. Their completions are in the queue when this
    /// returns. There may be at most as many as the submission queue has entries.
    ///
    /// # Errors
    ///
    /// Which of the sends the kernel did not accept, and why. Afterwards the ring is
    /// [broken](Self::is_broken), because their entries cannot be removed from the queue.
    pub(crate) fn submit(
        &mut self,
        requests: &[SendRequest<'_>],
    ) -> std::result::Result<(), Rejected> {
        if self.is_broken {
            let count = requests.len();
            return Err(Rejected {
                count,
                errno: Errno::CANCELED,
            });
        }
        let mut messages = Vec::new();
        let mut queued = 0;
        for request in requests {
            let (entry, message) = entry(request);
            messages.extend(message);
            // SAFETY: the entry names a socket and memory that `requests` borrows, and a message
            // that `messages` owns; all of them outlive this function. The kernel uses them only
            // until `enter_all` returns: by then it has read the message (SUBMIT_STABLE, which
            // `new` checks) and has looked up the socket and the pages of the memory, because with
            // MSG_DONTWAIT it fails a send that cannot be made at once instead of deferring it. If
            // `enter_all` fails, the ring is broken and never submits the entry. Afterwards the
            // kernel reads the memory through its own references to the page frames.
            if unsafe { self.uring.submission().push(&entry) }.is_err() {
                break;
            }
            queued += 1;
        }
        let entered = self.enter_all();
        let stuck = self.uring.submission().len() + requests.len() - queued;
        if stuck == 0 && entered.is_ok() {
            return Ok(());
        }
        self.is_broken = true;
        Err(Rejected {
            count: stuck.min(requests.len()),
            errno: entered.err().unwrap_or(Errno::CANCELED),
        })
    }

    /// Has the kernel process the whole submission queue.
    fn enter_all(&mut self) -> Result<()> {
        let mut left = self.uring.submission().len();
        let mut tries = 0;
        while left > 0 {
            let entered = self.uring.submit().map_err(errno);
            // The queue is a better witness of how many entries were processed than the result,
            // which also counts what the call did besides.
            let before = std::mem::replace(&mut left, self.uring.submission().len());
            tries = if left < before { 0 } else { tries + 1 };
            match entered {
                _ if tries == 0 => {}
                Err(Errno::INTR) if tries < MAX_SUBMIT_TRIES => {}
                // Completions have to be processed first.
                Err(Errno::BUSY) if tries < MAX_SUBMIT_TRIES => self.take_early(),
                // No memory for a request. This must not look like a full socket.
                Ok(_) | Err(Errno::AGAIN | Errno::INTR | Errno::BUSY) => return Err(Errno::NOMEM),
                // This is about the call, not the send: a filter that was installed after the ring
                // was made.
                Err(Errno::PERM | Errno::ACCESS) => return Err(Errno::NOSYS),
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    fn take_early(&mut self) {
        let mut early = std::mem::take(&mut self.early);
        self.drain_queue(&mut |completion| early.push(completion));
        self.early = early;
    }

    /// Takes every completion out of the queue.
    pub(crate) fn drain(&mut self, mut process: impl FnMut(Completion)) {
        for completion in self.early.drain(..) {
            process(completion);
        }
        self.drain_queue(&mut process);
    }

    fn drain_queue(&mut self, process: &mut impl FnMut(Completion)) {
        loop {
            let has_overflowed = {
                let (_, submission, completions) = self.uring.split();
                for entry in completions {
                    process(Completion {
                        token: entry.user_data(),
                        result: entry.result(),
                        flags: entry.flags(),
                    });
                }
                submission.cq_overflow()
            };
            // Completions that the queue had no room for stay in the kernel until it is asked.
            if !has_overflowed || matches!(self.wait(0), Err(errno) if errno != Errno::INTR) {
                return;
            }
        }
    }

    /// Has the kernel bring the completion queue up to date, and waits until it holds `at_least`
    /// completions.
    pub(crate) fn wait(&mut self, at_least: u32) -> Result<()> {
        let flags = EnterFlags::GETEVENTS.bits();
        let submitter = self.uring.submitter();
        // SAFETY: nothing is submitted, and no argument is passed.
        let waited = unsafe { submitter.enter::<libc::sigset_t>(0, at_least, flags, None) };
        waited.map(|_| ()).map_err(errno)
    }

    /// Has the kernel signal `eventfd` with every completion, unless that is
    /// [switched off](Self::set_signalling).
    #[cfg(feature = "tokio")]
    pub(crate) fn signal_to(&self, eventfd: BorrowedFd<'_>) -> Result<()> {
        let submitter = self.uring.submitter();
        submitter
            .register_eventfd(eventfd.as_raw_fd())
            .map_err(errno)
    }

    /// Switches the signals to the eventfd on or off.
    pub(crate) fn set_signalling(&mut self, on: bool) {
        if on {
            self.uring.completion().enable_eventfd();
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        } else {
            self.uring.completion().disable_eventfd();
        }
    }
}

/// A message of several buffers. The header points to the list.
struct Message {
    header: libc::msghdr,
    buffers: Vec<libc::iovec>,
}

impl Message {
    fn of(request: &SendRequest<'_>) -> Box<Self> {
        let buffers = std::iter::once(&request.first).chain(&request.rest);
        let mut message = Box::new(Self {
            // SAFETY: all zeroes is a valid message header: null pointers with lengths of 0.
            header: unsafe { std::mem::zeroed() },
            buffers: buffers
                .take(MAX_SEND_BUFFERS)
                .map(|it| it.as_iovec())
                .collect(),
        });
        message.header.msg_iov = message.buffers.as_mut_ptr();
        message.header.msg_iovlen = message.buffers.len() as _;
        message
    }
}

/// The submission queue entry of a send, and the message that it points to, if it needs one.
fn entry(request: &SendRequest<'_>) -> (squeue::Entry, Option<Box<Message>>) {
    let sink = Fd(request.sink.as_raw_fd());
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    if request.rest.is_empty() {
        let bytes = request.first.first(MAX_SEND_BYTES);
        let send = opcode::SendZc::new(sink, bytes.as_ptr().cast(), bytes.len() as u32);
        let send = send.flags(flags).zc_flags(REPORT_USAGE).build();
        (send.user_data(request.token), None)
    } else {
        let message = Message::of(request);
        let send = opcode::SendMsgZc::new(sink, &raw const message.header);
        let send = send.flags(flags.cast_unsigned()).ioprio(REPORT_USAGE);
        (send.build().user_data(request.token), Some(message))
    }
}

/// Has the current tokio runtime watch `eventfd`.
///
/// # Errors
///
/// Those of `epoll_ctl(2)`.
#[cfg(feature = "tokio")]
pub(crate) fn watch(eventfd: OwnedFd) -> Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    use tokio::io::{Interest, unix::AsyncFd};
    // SAFETY: an `OwnedFd` owns an open descriptor and always returns the same one.
    let watched = unsafe { AsyncFd::register_with_interest(eventfd, Interest::READABLE) };
    watched.map_err(|error| errno(error.into()))
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
