//! An io_uring that makes zero-copy sends.
//!
//! [`Uring::submit`] borrows the sockets and the memory of several sends, and returns once the
//! kernel has tried each send: `MSG_DONTWAIT` makes the kernel try it within `io_uring_enter(2)`.
//! After that, no request refers to the sockets or to the memory any longer. Only the notifications
//! arrive later; each of them identifies its send by the token that the caller chose.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use io_uring::types::Fd;
use io_uring::{EnterFlags, IoUring, opcode, squeue};
use rustix::io::{Errno, Result};

use super::Mapped;

/// `IORING_CQE_F_MORE`, in the flags of a completion: a notification for the same send follows.
pub(crate) const FLAG_MORE: u32 = 1 << 1;
/// `IORING_CQE_F_NOTIF`, in the flags of a completion: the completion is a notification.
pub(crate) const FLAG_NOTIFICATION: u32 = 1 << 3;
/// `IORING_NOTIF_USAGE_ZC_COPIED`, in the result of a notification: the kernel copied the bytes.
pub(crate) const RESULT_COPIED: u32 = 1 << 31;

/// The maximum number of bytes in one send. The kernel cuts longer sends short at this length.
const MAX_SEND_BYTES: usize = 0x7fff_f000;

/// The maximum number of buffers in one send (`UIO_MAXIOV`).
const MAX_SEND_BUFFERS: usize = 1024;

/// `IORING_SEND_ZC_REPORT_USAGE`: the notification says whether the kernel copied the bytes.
const REPORT_USAGE: u16 = 1 << 3;

/// The maximum number of consecutive submission calls that make no progress. Such a call fails with
/// `EINTR`, or with `EBUSY` if the kernel wants completions to be processed first.
const MAX_SUBMIT_TRIES: u32 = 64;

/// A zero-copy send of one or more buffers, in order: `first`, then `rest`.
pub(crate) struct SendRequest<'a> {
    pub(crate) sink: BorrowedFd<'a>,
    pub(crate) first: Mapped<'a>,
    pub(crate) rest: Vec<Mapped<'a>>,
    /// Identifies the send in its completions.
    pub(crate) token: u64,
}

/// A completion: the result of a send, or its notification.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion {
    pub(crate) token: u64,
    pub(crate) result: i32,
    pub(crate) flags: u32,
}

/// The error of [`Uring::submit`]: the last `count` sends did not reach the kernel, and never will.
#[derive(Debug)]
pub(crate) struct RejectedSends {
    pub(crate) count: usize,
    pub(crate) errno: Errno,
}

/// An io_uring instance: a submission queue and a completion queue.
pub(crate) struct Uring {
    uring: IoUring,
    /// Completions that had to be removed from the queue during a submission. The next
    /// [`drain`](Self::drain) processes them first.
    early_completions: Vec<Completion>,
    /// Whether nothing may be submitted any more. Set once a submission has failed: entries may
    /// then be stuck in the submission queue, and another submission would submit them too, when
    /// their sockets and memory may be gone.
    is_broken: bool,
}

impl Uring {
    /// Creates queues with room for `submissions` and `completions` entries. If more completions
    /// arrive, the kernel allocates memory for them.
    ///
    /// # Errors
    ///
    /// - `ENOSYS`, `EPERM`: the kernel, a seccomp filter or `kernel.io_uring_disabled` does not
    ///   allow rings.
    /// - `EMFILE`, `ENFILE`, `ENOMEM`: there is no descriptor or memory left for a ring.
    /// - `EINVAL`: the kernel is older than 5.19.
    /// - `EOPNOTSUPP`: the kernel lacks the NODROP or the SUBMIT_STABLE feature.
    pub(crate) fn new(submissions: u32, completions: u32) -> Result<Self> {
        let uring = IoUring::builder()
            .setup_cqsize(completions)
            // The kernel need not interrupt the thread that made a send when the notification of
            // that send arrives. It is enough to process the notification when the thread next
            // enters the kernel.
            .setup_coop_taskrun()
            // If the kernel refuses a send at submission, it must still process the sends after it.
            .setup_submit_all()
            .build(submissions)
            .map_err(errno)?;
        // Without NODROP, notifications are lost if the completion queue is full. Without
        // SUBMIT_STABLE, the kernel may still read the header of a message after the call has
        // returned.
        let params = uring.params();
        if !params.is_feature_nodrop() || !params.is_feature_submit_stable() {
            return Err(Errno::OPNOTSUPP);
        }
        Ok(Self {
            uring,
            early_completions: Vec::new(),
            is_broken: false,
        })
    }

    /// Duplicates the descriptor of the ring. The descriptor is readable while there are
    /// completions to process.
    ///
    /// # Errors
    ///
    /// `EMFILE`: the process has no descriptors left.
    pub(crate) fn duplicate_descriptor(&self) -> Result<OwnedFd> {
        // SAFETY: `self.uring` keeps the descriptor open, and is borrowed until this function
        // returns.
        let descriptor = unsafe { BorrowedFd::borrow_raw(self.uring.as_raw_fd()) };
        rustix::io::fcntl_dupfd_cloexec(descriptor, 3)
    }

    /// Whether an earlier submission has failed, or [`break_off`](Self::break_off) has been called.
    /// If so, the ring accepts no more submissions.
    pub(crate) fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Stops the ring from accepting submissions: [`submit`](Self::submit) then fails with
    /// `ECANCELED`.
    pub(crate) fn break_off(&mut self) {
        self.is_broken = true;
    }

    /// Submits these sends, and makes the kernel try each of them, in order. When this returns, the
    /// result of each send is in the completion queue. `requests` must not be longer than the
    /// submission queue.
    ///
    /// # Errors
    ///
    /// The number of sends that the kernel did not accept, and the reason. Afterwards the ring is
    /// [broken](Self::is_broken), because the entries of these sends cannot be removed from the
    /// submission queue. If the ring was broken before, the reason is `ECANCELED`.
    pub(crate) fn submit(
        &mut self,
        requests: &[SendRequest<'_>],
    ) -> std::result::Result<(), RejectedSends> {
        if self.is_broken {
            let count = requests.len();
            return Err(RejectedSends {
                count,
                errno: Errno::CANCELED,
            });
        }
        let mut messages = Vec::new();
        let mut queued = 0;
        for request in requests {
            let (entry, message) = entry(request);
            messages.extend(message);
            // SAFETY: the entry refers to a socket and memory that `requests` borrows, and to a
            // message that `messages` owns. All of them live until this function returns. The
            // kernel uses them only until `submit_all` returns: by then it has read the message
            // (SUBMIT_STABLE, which `new` checks), and has looked up the socket and the pages of
            // the memory, because MSG_DONTWAIT makes a send fail if it cannot be made at once,
            // instead of being deferred. If `submit_all` fails, the ring is broken, and entries
            // that are left in its queue are never submitted. After the call, the kernel reads the
            // memory only through its own references to the page frames.
            if unsafe { self.uring.submission().push(&entry) }.is_err() {
                break;
            }
            queued += 1;
        }
        let submitted = self.submit_all();
        let stuck = self.uring.submission().len() + requests.len() - queued;
        if stuck == 0 && submitted.is_ok() {
            return Ok(());
        }
        self.is_broken = true;
        Err(RejectedSends {
            count: stuck.min(requests.len()),
            errno: submitted.err().unwrap_or(Errno::CANCELED),
        })
    }

    /// Makes the kernel process all entries of the submission queue.
    fn submit_all(&mut self) -> Result<()> {
        self.submit_all_with(|uring| uring.submit().map_err(errno))
    }

    fn submit_all_with(&mut self, mut submit: impl FnMut(&IoUring) -> Result<usize>) -> Result<()> {
        let mut left = self.uring.submission().len();
        let mut tries = 0;
        while left > 0 {
            let result = submit(&self.uring);
            // Progress is measured by the length of the queue. The number that the call returns is
            // not reliable, because it also counts other work.
            let before = std::mem::replace(&mut left, self.uring.submission().len());
            tries = if left < before { 0 } else { tries + 1 };
            match result {
                _ if tries == 0 => {}
                Err(Errno::INTR) if tries < MAX_SUBMIT_TRIES => {}
                // The kernel wants completions to be processed first.
                Err(Errno::BUSY) if tries < MAX_SUBMIT_TRIES => self.drain_early(),
                // The kernel has no memory for a request, or the tries are used up. EAGAIN must not
                // be returned, because the caller would take it to mean that the socket's buffer is
                // full.
                Ok(_) | Err(Errno::AGAIN | Errno::INTR | Errno::BUSY) => return Err(Errno::NOMEM),
                // A seccomp filter that was installed after the ring was created refuses the call.
                // These errnos must not be returned, because the caller would take them for errors
                // of a send.
                Err(Errno::PERM | Errno::ACCESS) => return Err(Errno::NOSYS),
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    fn drain_early(&mut self) {
        let mut early = std::mem::take(&mut self.early_completions);
        self.drain_queue(&mut |completion| early.push(completion));
        self.early_completions = early;
    }

    /// Removes all completions from the queue, and passes each of them to `process`.
    pub(crate) fn drain(&mut self, mut process: impl FnMut(Completion)) {
        for completion in self.early_completions.drain(..) {
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
            // The kernel keeps the completions for which the queue has no room. It moves them to
            // the queue only when it is called again, which `wait(0)` does.
            if !has_overflowed || matches!(self.wait(0), Err(errno) if errno != Errno::INTR) {
                return;
            }
        }
    }

    /// Makes the kernel bring the completion queue up to date, and waits until the queue has
    /// `at_least` completions.
    pub(crate) fn wait(&mut self, at_least: u32) -> Result<()> {
        let flags = EnterFlags::GETEVENTS.bits();
        let submitter = self.uring.submitter();
        // SAFETY: the call submits nothing, and no pointer is passed.
        let waited = unsafe { submitter.enter::<libc::sigset_t>(0, at_least, flags, None) };
        waited.map(|_| ()).map_err(errno)
    }

    /// Makes the kernel signal `eventfd` at every completion, unless signals are [switched
    /// off](Self::set_signalling).
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
            // The flag must be visible to the kernel before the caller next looks at the completion
            // queue. Otherwise a completion that arrives in between would be neither seen nor
            // signalled.
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        } else {
            self.uring.completion().disable_eventfd();
        }
    }
}

/// A message of several buffers. The header points to the list of buffers.
struct VectoredMessage {
    header: libc::msghdr,
    buffers: Vec<libc::iovec>,
}

impl VectoredMessage {
    fn new(request: &SendRequest<'_>) -> Box<Self> {
        let buffers = std::iter::once(&request.first).chain(&request.rest);
        let mut message = Box::new(Self {
            // SAFETY: an all-zero `msghdr` is valid: null pointers and zero lengths.
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

/// Creates the submission queue entry of a send. A send of several buffers also needs the returned
/// message, to which the entry points.
fn entry(request: &SendRequest<'_>) -> (squeue::Entry, Option<Box<VectoredMessage>>) {
    let sink = Fd(request.sink.as_raw_fd());
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    if request.rest.is_empty() {
        let bytes = request.first.first(MAX_SEND_BYTES);
        let send = opcode::SendZc::new(sink, bytes.as_ptr().cast(), bytes.len() as u32);
        let send = send.flags(flags).zc_flags(REPORT_USAGE).build();
        (send.user_data(request.token), None)
    } else {
        let message = VectoredMessage::new(request);
        let send = opcode::SendMsgZc::new(sink, &raw const message.header);
        let send = send.flags(flags.cast_unsigned()).ioprio(REPORT_USAGE);
        (send.build().user_data(request.token), Some(message))
    }
}

/// Registers `eventfd` with the current tokio runtime, which then reports when the eventfd is
/// readable.
///
/// # Errors
///
/// The errnos of `epoll_ctl(2)`.
#[cfg(feature = "tokio")]
pub(crate) fn register_with_tokio(eventfd: OwnedFd) -> Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    use tokio::io::{Interest, unix::AsyncFd};
    // SAFETY: an `OwnedFd` always returns the same descriptor, and keeps that descriptor open until
    // the `OwnedFd` is dropped.
    let watched = unsafe { AsyncFd::register_with_interest(eventfd, Interest::READABLE) };
    watched.map_err(|error| errno(error.into()))
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;

    /// Makes the system call `call` fail with `errno` from now on, in the calling thread and in the
    /// threads and processes that it creates, by installing a seccomp filter. The filter cannot be
    /// removed, so this must run in a thread or a child process of its own.
    pub(crate) fn refuse(call: libc::c_long, errno: Errno) {
        let instruction = |code: u32, jt, jf, k| libc::sock_filter {
            code: code as u16,
            jt,
            jf,
            k,
        };
        let errno = libc::SECCOMP_RET_ERRNO | errno.raw_os_error().cast_unsigned();
        let mut instructions = [
            instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
            instruction(
                libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
                0,
                1,
                call as u32,
            ),
            instruction(libc::BPF_RET | libc::BPF_K, 0, 0, errno),
            instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog {
            len: instructions.len() as u16,
            filter: instructions.as_mut_ptr(),
        };
        // SAFETY: the call takes only numbers, no pointers.
        let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        assert_eq!(result, 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        // SAFETY: the kernel copies the program, which lives until the call returns.
        let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) };
        assert_eq!(result, 0);
    }

    /// Queues requests that do nothing, with these tokens.
    fn queue(uring: &mut Uring, tokens: &[u64]) {
        for &token in tokens {
            let entry = opcode::Nop::new().build().user_data(token);
            // SAFETY: the request refers to no memory and to no descriptor.
            unsafe { uring.uring.submission().push(&entry) }.expect("room in the queue");
        }
    }

    /// `EBUSY` means that the kernel accepts no requests until completions have been processed. So
    /// `submit_all` takes the completions out of the queue, and keeps them for the next
    /// [`Uring::drain`].
    #[test]
    fn ebusy_empties_the_completion_queue() {
        let refused = std::thread::spawn(|| {
            let mut uring = Uring::new(4, 8).expect("a ring");
            queue(&mut uring, &[1, 2, 3]);
            uring.submit_all().expect("submitted");
            assert_eq!(uring.uring.completion().len(), 3);

            queue(&mut uring, &[4]);
            refuse(libc::SYS_io_uring_enter, Errno::BUSY);
            assert_eq!(uring.submit_all(), Err(Errno::NOMEM));
            assert_eq!(uring.uring.completion().len(), 0, "the queue is not empty");
            let mut tokens = Vec::new();
            uring.drain(|completion| tokens.push(completion.token));
            assert_eq!(tokens, [1, 2, 3]);
            uring.drain(|completion| panic!("twice: {completion:?}"));
        });
        refused.join().expect("no panic");
    }

    /// `EINTR` and `EBUSY` end a submission only if they keep coming back. Other errnos end it at
    /// once, some of them as another errno.
    #[test]
    fn a_submission_is_tried_again_a_limited_number_of_times() {
        let mut uring = Uring::new(4, 8).expect("a ring");
        let max = MAX_SUBMIT_TRIES as usize;
        for (errno, failures, result, calls) in [
            (Errno::INTR, max - 1, Ok(()), max),
            (Errno::BUSY, max - 1, Ok(()), max),
            (Errno::INTR, max, Err(Errno::NOMEM), max),
            (Errno::BUSY, max, Err(Errno::NOMEM), max),
            (Errno::AGAIN, 1, Err(Errno::NOMEM), 1),
            (Errno::PERM, 1, Err(Errno::NOSYS), 1),
            (Errno::ACCESS, 1, Err(Errno::NOSYS), 1),
            (Errno::BADF, 1, Err(Errno::BADF), 1),
        ] {
            queue(&mut uring, &[1]);
            let mut made = 0;
            let submitted = uring.submit_all_with(|uring| {
                made += 1;
                if made <= failures {
                    return Err(errno);
                }
                uring.submit().map_err(super::errno)
            });
            assert_eq!((submitted, made), (result, calls), "{errno}");
            uring.submit_all().expect("submitted");
            uring.drain(|_| {});
        }
    }

    /// Otherwise their memory would count as in flight forever.
    #[test]
    fn sends_beyond_the_submission_queue_are_rejected() {
        let mut uring = Uring::new(2, 8).expect("a ring");
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("an address");
        let socket = TcpStream::connect(address).expect("connected");
        let byte = 7_u8;
        let requests = [1, 2, 3, 4, 5].map(|token| SendRequest {
            sink: socket.as_fd(),
            // SAFETY: the byte is a local.
            first: unsafe { Mapped::new((&raw const byte).expose_provenance(), 1) },
            rest: Vec::new(),
            token,
        });
        let rejected = uring.submit(&requests).expect_err("too many");
        assert_eq!((rejected.count, rejected.errno), (3, Errno::CANCELED));
        let rejected = uring
            .submit(&requests[..1])
            .expect_err("the ring is broken");
        assert_eq!((rejected.count, rejected.errno), (1, Errno::CANCELED));
    }
}
