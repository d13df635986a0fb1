//! Moves memory to a socket by `vmsplice(2)` into a pipe and `splice(2)` out of it.
//!
//! # Moves
//!
//! The pipe takes references to the pages, and the socket takes them from the pipe. No byte is
//! copied on the way to the peer's queue, even if the peer is on the same machine.
//!
//! # Needs
//!
//! Any stream socket, and a pipe.
//!
//! # Errno
//!
//! | step | errno | outcome |
//! |---|---|---|
//! | protecting a region | any | this send is copied |
//! | making the pipe | any (`EMFILE`, `ENFILE`, `ENOMEM`, …) | unsupported |
//! | widening it | any (`EPERM`, `ENOMEM`) | this send is copied |
//! | into the pipe | any (`EAGAIN`, `EFAULT`, `ENOMEM`, `ENOSYS`, `EPERM`) | unsupported |
//! | out of it | `EAGAIN` | blocked on the sink |
//! | out of it | `EINVAL`, `EOPNOTSUPP`, `ESPIPE`, `ENOSYS`, `EPERM`, `EOVERFLOW` | unsupported |
//! | out of it | `ENOMEM` | unsupported |
//! | out of it | any other | failed, of the sink |
//! | both | `EINTR` | again: no byte was moved |
//!
//! For regions see [`Region::protection`](crate::arena::Region::protection). Widening fails with
//! `EPERM` if the user's pipe pages are used up; a narrow pipe would cost more than the copy. An
//! empty pipe should accept at least one page, and a pipe that is not empty can only be blocked by
//! the socket.
//!
//! # Caveats
//!
//! - Nothing reports when the pages are free. On one machine the peer's queue holds *the same
//!   pages*, even after it has acknowledged them. So pages that were sent this way are gifted: they
//!   are never written to again, and their frames return to the kernel with the last handle. If the
//!   caller [vouches](crate::SendOptions::assume_remote_peer) that the peer is on another machine,
//!   they are free once it has acknowledged them.
//! - What the pipe holds and the socket did not accept is dropped with the pipe when another
//!   mechanism, or other memory, comes next. The memory is still there, and is sent from the last
//!   byte that the socket accepted.
//! - A slot of a pipe holds a page or less: memory that does not begin on a page fills it early.
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
    /// What the pipe holds. The handle also keeps other memory from getting the same address.
    memory: Memory,
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
                Err(status) => return status.into(),
            },
        };
        let (outcome, rest) = filled.drain(kernel, step, context);
        self.filled = rest;
        outcome
    }

    /// Discards what the pipe holds, because other bytes are sent next.
    pub(crate) fn discard(&mut self) {
        self.filled = None;
    }
}

impl FilledPipe {
    fn new(
        kernel: &impl Kernel,
        memory: &Memory,
        context: &LeaseContext<'_>,
    ) -> Result<Self, Status> {
        let mut pipe = Pipe::wide(kernel).map_err(|error| match error {
            WidePipeError::NoPipe(errno) => Status::Unsupported(errno),
            WidePipeError::TooNarrow(errno) => Status::CopyOnce(errno),
        })?;
        // A handle of its own: what is in flight of it stays so while the pipe, or a lease, holds
        // it.
        let memory = memory.clone();
        let call = match memory.prepare() {
            Ok(call) => call,
            Err(errno) => {
                pipe.recycle();
                return Err(Status::CopyOnce(errno));
            }
        };
        let taken = retry_on_intr(|| kernel.vmsplice(pipe.writer(), memory.mapped()));
        let taken = match taken {
            Ok(taken @ 1..) => taken,
            Ok(0) => return Err(Status::Unsupported(Errno::IO)),
            Err(errno) => return Err(Status::Unsupported(errno)),
        };
        if context.acknowledgements.is_none() {
            call.gift(taken);
        } else {
            drop(call);
        }
        pipe.filled(taken);
        Ok(Self {
            pipe,
            memory: memory.first(taken),
        })
    }

    /// Whether the pipe is this process's own, and holds the first bytes of `memory`.
    fn begins(&self, memory: &Memory) -> bool {
        let held = &self.memory;
        self.pipe.is_ours() && held.address() == memory.address() && held.len() <= memory.len()
    }

    /// Moves bytes to the sink. Returns the pipe if it still holds some.
    fn drain(
        mut self,
        kernel: &impl Kernel,
        step: &MemoryStep<'_>,
        context: &LeaseContext<'_>,
    ) -> (Outcome, Option<Self>) {
        let outcome = self.pipe.drain(kernel, step.sink, false);
        let moved = outcome.moved as usize;
        if moved > 0 {
            account_for(kernel, self.memory.first(moved), step, context);
        }
        if self.pipe.held() == 0 {
            self.pipe.recycle();
            return (outcome, None);
        }
        self.memory = self.memory.after(moved);
        (outcome, Some(self))
    }
}

/// Completes what the socket has accepted: at once, or when the peer has acknowledged it.
fn account_for(
    kernel: &impl Kernel,
    accepted: Memory,
    step: &MemoryStep<'_>,
    context: &LeaseContext<'_>,
) {
    let bytes = accepted.len() as u64;
    let Some(acknowledgements) = context.acknowledgements else {
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
