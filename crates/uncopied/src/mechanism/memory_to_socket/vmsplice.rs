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
use crate::in_flight::{FreeReason, Lease};
use crate::mechanism::pipe::{Pipe, WidePipeError};
use crate::mechanism::{Outcome, Status, retry_on_intr};
use crate::sys::Kernel;

#[derive(Debug, Default)]
pub(crate) struct Vmsplice {
    filled: Option<FilledPipe>,
}

#[derive(Debug)]
struct FilledPipe {
    pipe: Pipe,
    /// A handle to the bytes in the pipe. While it exists, no other memory can get the same
    /// address. This matters because [`begins`](Self::begins) recognises the bytes by their
    /// address.
    memory: Memory,
    /// Whether the pages were gifted when the pipe was filled. They were not if acknowledgements
    /// were tracked at that time.
    is_gifted: bool,
}

impl Vmsplice {
    pub(crate) fn step(
        &mut self,
        kernel: &impl Kernel,
        step: &MemoryStep<'_>,
        context: &LeaseContext<'_>,
    ) -> Outcome {
        let memory = step.first();
        let filled = match self.filled.take().filter(|it| it.begins(memory)) {
            Some(filled) => filled,
            None => match FilledPipe::new(kernel, memory, context) {
                Ok(filled) => filled,
                Err(outcome) => return outcome,
            },
        };
        let (outcome, rest) = filled.drain(kernel, step, context);
        self.filled = rest;
        outcome
    }

    /// Drops the pipe together with any bytes in it. Called when other bytes are sent next, so that
    /// the bytes in the pipe are not sent ahead of them.
    pub(crate) fn discard(&mut self) {
        self.filled = None;
    }
}

impl FilledPipe {
    fn new(
        kernel: &impl Kernel,
        memory: &Memory,
        context: &LeaseContext<'_>,
    ) -> Result<Self, Outcome> {
        if !memory.is_giftable() {
            return Err(Status::CopyOnce(Errno::INVAL).into());
        }
        let mut pipe = Pipe::wide(kernel).map_err(|error| match error {
            WidePipeError::NoPipe(errno) => Status::Unsupported(errno).in_call("pipe2"),
            WidePipeError::TooNarrow(errno) => Status::CopyOnce(errno).into(),
        })?;
        // Prepare a new handle instead of the caller's, which may outlive this send. The pages of a
        // region stay in flight as long as the prepared handle, or one made from it for the pipe or
        // for a lease, exists.
        let memory = memory.clone();
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
        Ok(Self {
            pipe,
            memory: memory.first(taken),
            is_gifted,
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
    ) -> (Outcome, Option<Self>) {
        let outcome = self.pipe.drain(kernel, step.sink, false);
        let moved = outcome.moved as usize;
        if moved > 0 {
            account_for(
                kernel,
                self.memory.first(moved),
                self.is_gifted,
                step,
                context,
            );
        }
        if self.pipe.held() == 0 {
            self.pipe.recycle();
            return (outcome, None);
        }
        self.memory = self.memory.after(moved);
        (outcome, Some(self))
    }
}

/// Determines when the part of the send that the socket has accepted completes. If acknowledgements
/// are tracked and the limits allow a lease, the part completes when the peer has acknowledged the
/// bytes. Otherwise the pages are gifted, and the part completes at once.
fn account_for(
    kernel: &impl Kernel,
    accepted: Memory,
    is_gifted: bool,
    step: &MemoryStep<'_>,
    context: &LeaseContext<'_>,
) {
    let bytes = accepted.len() as u64;
    let Some(acknowledgements) = context.acknowledgements else {
        if !is_gifted {
            accepted.gift();
        }
        step.tracker.count_finished(bytes, 0, FreeReason::Gifted);
        return;
    };
    if let Some(lease) = Lease::take(accepted.clone(), context.quota) {
        let source = Arc::clone(acknowledgements);
        let part = step.tracker.part(context.stats, Some(source));
        acknowledgements.push(kernel, lease, part);
    } else {
        accepted.gift();
        step.tracker.count_finished(bytes, 0, FreeReason::Gifted);
    }
}
