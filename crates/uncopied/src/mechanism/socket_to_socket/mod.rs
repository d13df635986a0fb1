//! The mechanisms that move the bytes of one stream socket to another.
//!
//! A socket cannot be read again. So the bytes that a step has taken from the source and that the
//! sink has not accepted are kept, in [`HeldBytes`], until a later step passes them on, whichever
//! mechanism makes that step.

mod copy;
pub(crate) mod pipe_pool;
mod splice;

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::{MAX_STEP_BYTES, Outcome, Status};
use crate::policy::{Flow, Mechanism};
use crate::sys::Kernel;
use pipe_pool::PooledPipe;

/// The input of a step: the two ends, and how many bytes to take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RelayStep<'a> {
    pub(crate) source: BorrowedFd<'a>,
    pub(crate) sink: BorrowedFd<'a>,
    /// The number of bytes that may still be taken from the source, or `None` to take all up to the
    /// end of the stream.
    pub(crate) untaken: Option<u64>,
}

impl RelayStep<'_> {
    /// Returns how many bytes to take from the source in one call, at most `limit`. No step is made
    /// if no bytes are to be taken.
    fn want(&self, limit: usize) -> usize {
        let untaken = self.untaken.map(usize::try_from);
        untaken.map_or(limit, |bytes| bytes.map_or(limit, |bytes| bytes.min(limit)))
    }
}

/// The bytes that were taken from the source and that the sink has not accepted: those in memory,
/// followed by those in the pipe. While there are none, neither memory nor a pipe is kept.
#[derive(Debug, Default)]
pub(crate) struct HeldBytes {
    memory: Box<[u8]>,
    /// How many bytes of the memory the sink has accepted.
    sent: usize,
    pipe: Option<PooledPipe>,
    /// Whether the last step has received fewer bytes than there was room for, with `recv`.
    has_read_less: bool,
}

impl HeldBytes {
    /// Holds these bytes, which were taken from the source before.
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self {
            memory: bytes.into_boxed_slice(),
            ..Self::default()
        }
    }

    /// Returns the number of bytes.
    pub(crate) fn len(&self) -> usize {
        self.in_memory().len() + self.in_pipe()
    }

    fn in_memory(&self) -> &[u8] {
        &self.memory[self.sent..]
    }

    fn in_pipe(&self) -> usize {
        self.pipe.as_ref().map_or(0, |pipe| pipe.held())
    }

    /// Tries once to move bytes, with `bulk` if the stream carries bulk data, and with `copy`
    /// otherwise, or if it must first pass on bytes that `copy` has taken. Returns the mechanism
    /// that it has used.
    pub(crate) fn step(
        &mut self,
        kernel: &impl Kernel,
        bulk: Mechanism,
        flow: &mut Flow,
        step: &RelayStep<'_>,
    ) -> (Mechanism, Outcome) {
        self.has_read_less = false;
        if !self.in_memory().is_empty() {
            return (Mechanism::Copy, copy::pass_on(kernel, self, step));
        }
        if self.in_pipe() > 0 && bulk != Mechanism::Splice {
            return (Mechanism::Copy, copy::empty_pipe(kernel, self, step));
        }
        if self.in_pipe() == 0 && (bulk == Mechanism::Copy || !flow.is_bulk()) {
            return (Mechanism::Copy, copy::step(kernel, self, flow, step));
        }
        if bulk != Mechanism::Splice {
            // A mechanism that does not move bytes between sockets.
            return (bulk, Status::Unsupported(Errno::INVAL).into());
        }
        match splice::step(kernel, &mut self.pipe, flow, step) {
            Some(outcome) => (Mechanism::Splice, outcome),
            None => (Mechanism::Copy, copy::step(kernel, self, flow, step)),
        }
    }

    /// Whether the last step has received fewer bytes with `recv` than there was room for. Then the
    /// source had no more of them, unless it is a socket that ends a read for other reasons.
    pub(crate) fn has_read_less(&self) -> bool {
        self.has_read_less
    }

    /// Keeps bytes that the sink has not accepted.
    fn keep(&mut self, bytes: &[u8]) {
        self.memory = bytes.into();
        self.sent = 0;
    }

    /// Records that the sink has accepted bytes of the memory, which is freed once it has accepted
    /// all of them.
    fn accepted(&mut self, bytes: usize) {
        self.sent = self.memory.len().min(self.sent + bytes);
        if self.sent == self.memory.len() {
            *self = Self {
                pipe: self.pipe.take(),
                ..Self::default()
            };
        }
    }
}
