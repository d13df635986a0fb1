//! Moves memory to a socket with `vmsplice(2)` into a pipe and `splice(2)` out of it.
//!
//! # Moves
//!
//! The pipe takes references to the pages, and the socket takes them from the pipe. No byte is
//! copied on the way to the peer's receive queue, even if the peer is on the same machine.
//!
//! # Needs
//!
//! Any stream socket, and a pipe.
//!
//! # Errno
//!
//! | step | errno | outcome |
//! |---|---|---|
//! | before any call | `EINVAL`: the memory is neither pages nor a region | this step is copied |
//! | protecting a region | any | this step is copied |
//! | duplicating the descriptor, reading the queue | any | this step is copied |
//! | creating the pipe | any (`EMFILE`, `ENFILE`, `ENOMEM`, …) | unsupported |
//! | enlarging it | any (`EPERM`, `ENOMEM`) | this step is copied |
//! | into the pipe | any (`EAGAIN`, `EFAULT`, `ENOMEM`, `ENOSYS`, `EPERM`) | unsupported |
//! | out of it | `EAGAIN` | blocked on the sink |
//! | out of it | `EINVAL`, `EOPNOTSUPP`, `ESPIPE`, `ENOSYS`, `EPERM`, `EOVERFLOW` | unsupported |
//! | out of it | `ENOMEM` | unsupported |
//! | out of it | any other | failed on the sink |
//! | enlarging it, into it, out of it | `EINTR` | the call is repeated: no byte was moved |
//!
//! [`Region::protection`](crate::arena::Region::protection) lists why a region cannot be protected.
//! Enlarging the pipe fails with `EPERM` if the user's limit on pipe pages is reached. The step is
//! then copied, because a small pipe moves few bytes per call, so that a copy is cheaper. If moving
//! pages into the pipe fails with `EAGAIN`, the pipe is unusable, because an empty pipe should
//! accept at least one page. If moving them out fails with `EAGAIN`, the socket is full, because
//! the pipe is not empty.
//!
//! # Caveats
//!
//! - Nothing reports when the kernel is done with the pages. If the peer is on the same machine,
//!   its receive queue holds *the same pages*, even after the peer has acknowledged them. So pages
//!   that were sent this way are *gifted* to the kernel: they are never written to again, and their
//!   frames return to the kernel when the last handle is dropped. If the caller
//!   [declares](crate::SendOptions::assume_remote_peer) that the peer is on another machine, the
//!   pages can be reused once the peer has acknowledged them.
//! - The send completes at once, but its bytes count as in flight until they have left the socket's
//!   queue. To read the length of the queue at any time, the sender keeps a duplicate of the
//!   socket's descriptor. Bytes in the receive queue of a TCP peer on the same machine do not
//!   count, because the sender cannot see that queue. The peer's receive buffer limits these bytes,
//!   but not their pages: each of many short sends keeps a page.
//! - Bytes that the pipe holds and the socket has not accepted are dropped with the pipe when
//!   another mechanism, or other memory, comes next. No byte is lost, because the memory still
//!   exists and is sent again from the first byte that the socket has not accepted.
//! - A pipe slot refers to at most one page. Memory that does not begin at the start of a page
//!   needs one more slot for the same number of bytes, so fewer of its bytes fit into the pipe.
//!
//! # References
//!
//! `vmsplice(2)`, `splice(2)`, `pipe(7)`.

use std::sync::Arc;

use rustix::io::Errno;

use super::{LeaseContext, MemoryStep};
use crate::arena::Memory;
use crate::in_flight::{BytesInFlight, FreeReason, Lease, NotificationSource, SocketQueue};
use crate::mechanism::pipe::{Pipe, WIDE_PIPE_BYTES, WidePipeError};
use crate::mechanism::{Outcome, Status, retry_on_intr};
use crate::sys::Kernel;

#[derive(Debug, Default)]
pub(crate) struct Vmsplice {
    filled: Option<FilledPipe>,
}

#[derive(Debug)]
struct FilledPipe {
    pipe: Pipe,
    /// A handle to all bytes that the pipe was filled with. While it exists, no other memory can
    /// get the same address. This matters because [`begins`](Self::begins) recognises the bytes by
    /// their address.
    whole: Memory,
    /// A handle to the bytes in the pipe: those of `whole` that the socket has not accepted.
    memory: Memory,
    /// Whether the pages were gifted when the pipe was filled. They were not if acknowledgements
    /// were tracked at that time.
    is_gifted: bool,
    /// The bytes that count as in flight: those in the pipe, and those that the socket has accepted
    /// from the pipe and that no lease counts.
    count: BytesInFlight,
    /// If the socket has accepted bytes that no lease counts: the result of
    /// [`SocketQueue::count_sent`] for the last of them.
    accepted_end: Option<u64>,
}

impl Vmsplice {
    pub(crate) fn step(
        &mut self,
        kernel: &impl Kernel,
        step: &MemoryStep<'_>,
        context: &LeaseContext<'_>,
        queue: &SocketQueue,
    ) -> Outcome {
        let memory = step.first();
        if self.filled.as_ref().is_some_and(|it| !it.begins(memory)) {
            self.discard(Some(queue));
        }
        let filled = match self.filled.take() {
            Some(filled) => filled,
            None => match FilledPipe::new(kernel, memory, context, queue) {
                Ok(filled) => filled,
                Err(outcome) => return outcome,
            },
        };
        let (outcome, rest) = filled.drain(kernel, step, context, queue);
        self.filled = rest;
        outcome
    }

    /// Drops the pipe together with any bytes in it. Called when other bytes are sent next, so that
    /// the bytes in the pipe are not sent ahead of them. `queue` is that of the socket that the
    /// pipe was emptied to, if there is one.
    pub(crate) fn discard(&mut self, queue: Option<&SocketQueue>) {
        let (Some(filled), Some(queue)) = (self.filled.take(), queue) else {
            return;
        };
        if let Some(end) = filled.accepted_end {
            let accepted = filled.whole.len() - filled.memory.len();
            let mut count = filled.count;
            count.shrink_to(&filled.whole.first(accepted));
            queue.push(end, count);
        }
    }
}

impl FilledPipe {
    fn new(
        kernel: &impl Kernel,
        memory: &Memory,
        context: &LeaseContext<'_>,
        queue: &SocketQueue,
    ) -> Result<Self, Outcome> {
        if !memory.is_giftable() {
            return Err(Status::CopyOnce(Errno::INVAL).into());
        }
        // The pipe takes no more than this, so more need not be within the limits.
        let memory = memory.first(WIDE_PIPE_BYTES);
        queue.recount_at_interval(kernel);
        let recount_and_retry = || {
            queue.recount_with(kernel);
            if let Some(acknowledgements) = context.acknowledgements {
                acknowledgements.reap();
            }
            context.quota.reserve(&memory)
        };
        let count = context.quota.reserve(&memory).or_else(recount_and_retry);
        let mut count = count.ok_or(Status::AtLimit)?;
        let mut pipe = Pipe::wide(kernel).map_err(|error| match error {
            WidePipeError::NoPipe(errno) => Status::Unsupported(errno).in_call("pipe2"),
            WidePipeError::TooNarrow(errno) => Status::CopyOnce(errno).into(),
        })?;
        // Prepare a new handle (`first` has made one) instead of the caller's, which may outlive
        // this send. The pages of a region stay in flight as long as the prepared handle, or one
        // made from it for the pipe or for a lease, exists.
        let call = match memory.prepare() {
            Ok(call) => call,
            Err(errno) => {
                pipe.recycle();
                return Err(Status::CopyOnce(errno).into());
            }
        };
        let taken = retry_on_intr(|| kernel.vmsplice(pipe.writer(), memory.mapped()));
        let taken = match taken {
            Ok(taken @ 1..) => taken,
            Ok(0) => return Err(Status::Unsupported(Errno::IO).in_call("vmsplice")),
            Err(errno) => return Err(Status::Unsupported(errno).in_call("vmsplice")),
        };
        let is_gifted = context.acknowledgements.is_none();
        if is_gifted {
            call.gift(taken);
        } else {
            drop(call);
        }
        pipe.filled(taken);
        let whole = memory.first(taken);
        count.shrink_to(&whole);
        Ok(Self {
            pipe,
            memory: whole.clone(),
            whole,
            is_gifted,
            count,
            accepted_end: None,
        })
    }

    /// Whether the pipe belongs to this process, and holds the first bytes of `memory`.
    fn begins(&self, memory: &Memory) -> bool {
        let held = &self.memory;
        self.pipe.is_ours() && held.address() == memory.address() && held.len() <= memory.len()
    }

    /// Moves bytes from the pipe to the sink. Also returns the pipe if bytes are left in it.
    fn drain(
        mut self,
        kernel: &impl Kernel,
        step: &MemoryStep<'_>,
        context: &LeaseContext<'_>,
        queue: &SocketQueue,
    ) -> (Outcome, Option<Self>) {
        let outcome = self.pipe.drain(kernel, step.sink, false);
        let moved = outcome.moved as usize;
        if moved > 0 {
            self.account_for(kernel, moved, step, context, queue);
        }
        if self.pipe.held() > 0 {
            return (outcome, Some(self));
        }
        self.pipe.recycle();
        if let Some(end) = self.accepted_end {
            queue.push(end, self.count);
        }
        (outcome, None)
    }

    /// Determines when the part of the send that the socket has accepted completes, and until when
    /// its bytes count as in flight. If acknowledgements are tracked, both end when the peer has
    /// acknowledged the bytes. Otherwise the pages are gifted, and the part completes at once, but
    /// its bytes count until they have left the queue.
    fn account_for(
        &mut self,
        kernel: &impl Kernel,
        moved: usize,
        step: &MemoryStep<'_>,
        context: &LeaseContext<'_>,
        queue: &SocketQueue,
    ) {
        let end = queue.count_sent(moved as u64);
        let accepted = self.memory.first(moved);
        self.memory = self.memory.after(moved);
        // If earlier bytes of the pipe were gifted, the other bytes are gifted as well, because
        // `count` cannot be divided between the queue and a lease.
        let tracked = context
            .acknowledgements
            .filter(|_| self.accepted_end.is_none());
        let Some(acknowledgements) = tracked else {
            // Comes first, because gifting the memory of a region puts its current page frames in
            // flight, even if the bytes are in earlier ones.
            accepted.record_gifted(context.stats.copied_on_write());
            if !self.is_gifted {
                accepted.gift();
            }
            let bytes = accepted.len() as u64;
            let copied = context.stats.count_gifted(bytes);
            step.tracker
                .count_finished(bytes, copied, FreeReason::Gifted);
            self.accepted_end = Some(end);
            return;
        };
        // From now on, the lease counts the accepted bytes. The limits have allowed them already.
        // A page that is partly accepted counts twice, because part of it is still in the pipe.
        self.count.shrink_to(&self.memory);
        let lease = Lease::take_unchecked(accepted, context.quota);
        let source = Arc::clone(acknowledgements);
        let part = step.tracker.part(context.stats, Some(source));
        if let Some(gifted) = acknowledgements.push(kernel, lease, part) {
            queue.push(end, gifted);
        }
    }
}
