//! Receiving with a registered interface queue.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, opcode, squeue};
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
        let mut left = self.uring.submission().len();
        let mut tries = 0;
        while left > 0 {
            let result = self.uring.submit().map_err(|error| errno_of(&error));
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
            let completion = match u32::try_from(entry.result()) {
                Ok(len) if len > 0 && entry.flags() & FLAG_MORE != 0 => {
                    let offset = entry.big_cqe()[0] & ((1 << OFFSET_BITS) - 1);
                    // SAFETY: this completion is that of a request to receive, because the token is
                    // not that of a request to cancel. So the kernel has handed out these bytes
                    // with it. The iterator removes each completion from the queue.
                    let lease = unsafe { Lease::new(&self.shared, offset, len as usize) };
                    match lease {
                        Some(lease) => Completion::Bytes { token, lease },
                        None => Completion::Ended {
                            token,
                            result: Err(Errno::IO),
                        },
                    }
                }
                // A result without bytes that does not end the request says nothing.
                _ if entry.flags() & FLAG_MORE != 0 => continue,
                Ok(0) => Completion::Ended {
                    token,
                    result: Ok(()),
                },
                // The kernel never ends a request with bytes.
                Ok(_) => Completion::Ended {
                    token,
                    result: Err(Errno::IO),
                },
                Err(_) => Completion::Ended {
                    token,
                    result: Err(Errno::from_raw_os_error(-entry.result())),
                },
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
