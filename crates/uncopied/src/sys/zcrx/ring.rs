//! Receiving with a registered interface queue.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};
use rustix::io::{Errno, Result};

use super::Lease;
use super::registration::{Zcrx, errno_of};
use super::signal::Signal;
use crate::sys::fork::OwnerProcess;

/// `IORING_CQE_F_MORE`, in the flags of a completion: the request has not ended.
const FLAG_MORE: u32 = 1 << 1;

/// The upper bits of an offset are the number of the area, and there is only one area.
const OFFSET_BITS: u32 = 48;

/// The token of requests that cancel others. No other request has it.
const CANCEL_TOKEN: u64 = u64::MAX;

/// The maximum number of consecutive submission calls that make no progress. Such a call fails with
/// `EINTR`, or with `EBUSY` if the kernel wants completions to be processed first.
const MAX_SUBMIT_TRIES: u32 = 64;

/// What the kernel reports about a request to receive.
#[derive(Debug)]
pub(crate) enum Completion {
    /// Bytes were received.
    Bytes { token: u64, lease: Lease },
    /// The request has ended: at the end of the stream if the result is `Ok`.
    Ended { token: u64, result: Result<()> },
}

/// What a completion of a request to receive says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    Bytes { offset: u64, len: usize },
    Nothing,
    Ended(Result<()>),
}

impl Meaning {
    /// `offset` is the first field of `struct io_uring_zcrx_cqe`.
    pub(super) fn of(result: i32, flags: u32, offset: u64) -> Self {
        match u32::try_from(result) {
            Ok(len) if len > 0 && flags & FLAG_MORE != 0 => Self::Bytes {
                offset: offset & ((1 << OFFSET_BITS) - 1),
                len: len as usize,
            },
            // A result without bytes that does not end the request says nothing.
            _ if flags & FLAG_MORE != 0 => Self::Nothing,
            Ok(0) => Self::Ended(Ok(())),
            // The kernel never ends a request with bytes.
            Ok(_) => Self::Ended(Err(Errno::IO)),
            Err(_) => Self::Ended(Err(Errno::from_raw_os_error(-result))),
        }
    }
}

impl Zcrx {
    /// Returns the process that has created the ring. A forked child must not use the ring.
    pub(crate) fn owner_process(&self) -> OwnerProcess {
        self.shared.owner_process()
    }

    /// Returns the signal that the kernel raises at each completion.
    pub(crate) fn signal(&self) -> &Signal {
        self.shared.signal()
    }

    /// Starts to receive from these sockets, until the request of each has [ended](Completion). A
    /// token identifies the socket in its completions. A socket must not have another request.
    ///
    /// # Errors
    ///
    /// The errno of the submission. Afterwards, nothing more can be submitted: some of the requests
    /// may be stuck in the submission queue, and their sockets may be gone later.
    pub(crate) fn receive(&mut self, sockets: &[(BorrowedFd<'_>, u64)]) -> Result<()> {
        let capacity = self.uring.submission().capacity();
        for some in sockets.chunks(capacity) {
            let requests = some.iter().map(|&(socket, token)| {
                debug_assert_ne!(token, CANCEL_TOKEN);
                let request = opcode::RecvZc::new(Fd(socket.as_raw_fd()), 0).ifq(self.id);
                request.build().user_data(token)
            });
            let requests: Vec<_> = requests.collect();
            // SAFETY: the requests refer to no memory. They refer to sockets, which are borrowed
            // until this function returns. Then no request is left in the submission queue, or
            // nothing is submitted any more.
            unsafe { self.submit(&requests)? };
        }
        Ok(())
    }

    /// Asks the kernel to end the request that has this token, or all requests. They have not ended
    /// before their completions say so.
    ///
    /// # Errors
    ///
    /// The same as for [`receive`](Self::receive).
    pub(crate) fn cancel(&mut self, token: Option<u64>) -> Result<()> {
        let which = token.map_or_else(CancelBuilder::any, CancelBuilder::user_data);
        let request = opcode::AsyncCancel2::new(which).build();
        // SAFETY: the request refers to no memory and to no descriptor.
        unsafe { self.submit(&[request.user_data(CANCEL_TOKEN)]) }
    }

    /// Submits these requests. There must not be more than the submission queue has entries.
    ///
    /// # Safety
    ///
    /// What the requests refer to must be valid until this returns.
    unsafe fn submit(&mut self, requests: &[squeue::Entry]) -> Result<()> {
        if self.is_broken {
            return Err(Errno::CANCELED);
        }
        // SAFETY: the caller guarantees that what the requests refer to is valid until this
        // function returns. By then the kernel has read all of them, or `is_broken` is set.
        let is_queued = unsafe { self.uring.submission().push_multiple(requests) }.is_ok();
        let submitted = if is_queued {
            self.submit_all()
        } else {
            Err(Errno::NOMEM)
        };
        self.is_broken = submitted.is_err();
        submitted
    }

    fn submit_all(&mut self) -> Result<()> {
        self.submit_all_with(|ring| ring.submit().map_err(|error| errno_of(&error)))
    }

    fn submit_all_with(
        &mut self,
        mut submit: impl FnMut(&IoUring<squeue::Entry, cqueue::Entry32>) -> Result<usize>,
    ) -> Result<()> {
        let mut left = self.uring.submission().len();
        let mut tries = 0;
        while left > 0 {
            let result = submit(&self.uring);
            let before = std::mem::replace(&mut left, self.uring.submission().len());
            tries = if left < before { 0 } else { tries + 1 };
            match result {
                _ if tries == 0 => {}
                Err(Errno::INTR) if tries < MAX_SUBMIT_TRIES => {}
                // The kernel wants completions to be processed first.
                Err(Errno::BUSY) if tries < MAX_SUBMIT_TRIES => {
                    let mut early = std::mem::take(&mut self.early_completions);
                    self.drain_queue(&mut |completion| early.push(completion));
                    self.early_completions = early;
                }
                Ok(_) => return Err(Errno::NOMEM),
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Makes the kernel do the work that has come up since the last call: receive, and bring the
    /// completion queue up to date. Does not wait.
    ///
    /// # Errors
    ///
    /// The errno of `io_uring_enter(2)`.
    pub(crate) fn enter(&mut self) -> Result<()> {
        let flags = EnterFlags::GETEVENTS.bits();
        let submitter = self.uring.submitter();
        // SAFETY: the call submits nothing, and no pointer is passed.
        let entered = unsafe { submitter.enter::<libc::sigset_t>(0, 0, flags, None) };
        unless_interrupted(entered)
    }

    /// Whether the kernel holds back completions for which the queue had no room. The next
    /// [`enter`](Self::enter) moves them to the queue, as far as there is room.
    pub(crate) fn has_overflow(&mut self) -> bool {
        self.uring.submission().cq_overflow()
    }

    /// Waits for a completion, for at most `limit`.
    ///
    /// # Errors
    ///
    /// The errno of `io_uring_enter(2)`.
    pub(crate) fn wait(&mut self, limit: Duration) -> Result<()> {
        let limit = Timespec::from(limit);
        let arguments = SubmitArgs::new().timespec(&limit);
        let flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
        let submitter = self.uring.submitter();
        // SAFETY: the call submits nothing, and `EXT_ARG` says that it is given such arguments.
        let waited = unsafe { submitter.enter(0, 1, flags.bits(), Some(&arguments)) };
        match unless_interrupted(waited) {
            Err(Errno::TIME) => Ok(()),
            result => result,
        }
    }

    /// Removes all completions from the queue, and passes each of them to `process`.
    pub(crate) fn drain(&mut self, mut process: impl FnMut(Completion)) {
        for completion in self.early_completions.drain(..) {
            process(completion);
        }
        self.drain_queue(&mut process);
    }

    fn drain_queue(&mut self, process: &mut impl FnMut(Completion)) {
        for entry in self.uring.completion() {
            let token = entry.user_data();
            if token == CANCEL_TOKEN {
                continue;
            }
            let offset = entry.big_cqe()[0];
            let completion = match Meaning::of(entry.result(), entry.flags(), offset) {
                Meaning::Bytes { offset, len } => {
                    // SAFETY: this completion is that of a request to receive, because the token is
                    // not that of a request to cancel. So the kernel has handed out these bytes
                    // with it. The iterator removes each completion from the queue.
                    let lease = unsafe { Lease::new(&self.shared, offset, len) };
                    match lease {
                        Some(lease) => Completion::Bytes { token, lease },
                        None => Completion::Ended {
                            token,
                            result: Err(Errno::IO),
                        },
                    }
                }
                Meaning::Nothing => continue,
                Meaning::Ended(result) => Completion::Ended { token, result },
            };
            process(completion);
        }
    }

    /// Moves memory that was given back into the refill ring, as far as there is room. Returns the
    /// number of entries that the kernel can take from there.
    pub(crate) fn refill(&mut self) -> u32 {
        let mut refill = self.shared.lock_refill();
        refill.fill();
        refill.in_ring()
    }

    /// Returns how many bytes the kernel has copied into the area, because the network card did not
    /// put them there. Returns `None` if the kernel does not count that. Bytes in the head of a
    /// packet buffer are not counted.
    pub(crate) fn copied_bytes(&self) -> Option<u64> {
        self.shared.lock_refill().copied_bytes()
    }
}

impl AsFd for Zcrx {
    /// Returns the descriptor of the ring. `poll(2)` finds it readable if there are completions, or
    /// work that [`enter`](Self::enter) would do. It may not wake up for such work that comes up
    /// later: that is what the [signal](Self::signal) is for.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring keeps the descriptor open, and is borrowed for as long as the result.
        unsafe { BorrowedFd::borrow_raw(self.uring.as_raw_fd()) }
    }
}

pub(super) fn unless_interrupted(result: std::io::Result<usize>) -> Result<()> {
    match result.map_err(|error| errno_of(&error)) {
        // EBUSY and EAGAIN: the kernel has no memory for completions that did not fit into the
        // queue. There is room once the queue has been drained.
        Ok(_) | Err(Errno::INTR | Errno::BUSY | Errno::AGAIN) => Ok(()),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Returns a ring with which no interface queue is registered.
    fn ring() -> Zcrx {
        Zcrx::unregistered(8).expect("a ring")
    }

    fn drained(ring: &mut Zcrx) -> Vec<(u64, Result<()>)> {
        let mut ended = Vec::new();
        ring.drain(|completion| match completion {
            Completion::Ended { token, result } => ended.push((token, result)),
            Completion::Bytes { .. } => panic!("no bytes can be received"),
        });
        ended
    }

    #[test]
    fn what_completions_say() {
        let of = |result, flags| Meaning::of(result, flags | 1 << 5, 3 << OFFSET_BITS | 77);
        let bytes = |len| Meaning::Bytes { offset: 77, len };
        assert_eq!(of(1, FLAG_MORE), bytes(1));
        assert_eq!(of(4096, FLAG_MORE), bytes(4096));
        for result in [0, -libc::EAGAIN] {
            assert_eq!(of(result, FLAG_MORE), Meaning::Nothing);
        }
        assert_eq!(of(0, 0), Meaning::Ended(Ok(())));
        assert_eq!(of(1, 0), Meaning::Ended(Err(Errno::IO)));
        let reset = Meaning::Ended(Err(Errno::CONNRESET));
        assert_eq!(of(-libc::ECONNRESET, 0), reset);
    }

    #[test]
    fn a_request_ends_with_an_error_if_no_queue_is_registered() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("an address");
        let socket = TcpStream::connect(address).expect("connected");
        let mut ring = ring();
        let sockets: Vec<_> = (0..20).map(|token| (socket.as_fd(), token)).collect();
        // There are more requests than the queues have entries.
        ring.receive(&sockets).expect("submitted");
        assert!(ring.has_overflow());
        let mut ended = Vec::new();
        for _ in 0..20 {
            ended.extend(drained(&mut ring));
            ring.enter().expect("no failure");
        }
        assert!(ended.iter().all(|(_, result)| result.is_err()));
        let tokens: Vec<_> = ended.iter().map(|&(token, _)| token).collect();
        assert_eq!(tokens, Vec::from_iter(0..20));
        assert!(!ring.has_overflow());
    }

    #[test]
    fn memory_that_was_given_back_is_in_the_refill_ring() {
        let mut ring = ring();
        assert_eq!(ring.refill(), 0);
        for offset in 0..3 {
            // SAFETY: the bytes are handed out with this lease only.
            let lease = unsafe { Lease::new(&ring.shared, offset, 1) };
            drop(lease.expect("within the area"));
        }
        assert_eq!(ring.refill(), 3);
    }

    #[test]
    fn the_end_of_a_request_to_cancel_is_not_reported() {
        let mut ring = ring();
        ring.cancel(Some(7)).expect("submitted");
        ring.wait(Duration::from_secs(60)).expect("no failure");
        assert_eq!(ring.uring.completion().len(), 1);
        assert_eq!(drained(&mut ring), []);
        assert_eq!(ring.uring.completion().len(), 0);
        ring.wait(Duration::ZERO).expect("the time is over");
    }

    /// `EINTR` and `EBUSY` end a submission only if they keep coming back.
    #[test]
    fn a_submission_is_tried_again_a_limited_number_of_times() {
        let max = MAX_SUBMIT_TRIES as usize;
        for (errno, failures, result, calls) in [
            (Errno::INTR, max - 1, Ok(()), max),
            (Errno::BUSY, max - 1, Ok(()), max),
            (Errno::INTR, max, Err(Errno::INTR), max),
            (Errno::BUSY, max, Err(Errno::BUSY), max),
            (Errno::BADF, 1, Err(Errno::BADF), 1),
        ] {
            let mut ring = ring();
            let request = opcode::Nop::new().build();
            // SAFETY: the request refers to no memory and to no descriptor.
            unsafe { ring.uring.submission().push(&request) }.expect("room in the queue");
            let mut made = 0;
            let submitted = ring.submit_all_with(|ring| {
                made += 1;
                if made <= failures {
                    return Err(errno);
                }
                ring.submit().map_err(|error| errno_of(&error))
            });
            assert_eq!((submitted, made), (result, calls), "{errno}");
        }
    }
}
