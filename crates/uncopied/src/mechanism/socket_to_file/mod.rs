//! The mechanisms that move a stream socket's bytes to a file, a pipe or a device.
//!
//! A socket cannot be read again. So the bytes that a step has taken from it and that the sink has
//! not accepted are kept, in [`TakenBytes`], until a later step passes them on, whichever mechanism
//! makes that step.

mod copy;
mod discard;
mod splice;

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::buffer::Buffer;
use super::file_to_socket::MAX_FILE_OFFSET;
use super::pipe::Pipe;
use super::{MAX_STEP_BYTES, Outcome, Side, Status};
use crate::policy::{Mechanism, SinkKind};
use crate::sys::Kernel;
use discard::Discard;

/// The input of a step: the two ends, and which bytes to move.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReceiveStep<'a> {
    pub(crate) source: BorrowedFd<'a>,
    pub(crate) sink: BorrowedFd<'a>,
    pub(crate) sink_kind: SinkKind,
    /// The offset in the sink of the first byte that it has not accepted, or `None` to write where
    /// the descriptor itself stands.
    pub(crate) offset: Option<u64>,
    /// The number of bytes that may still be taken from the socket, or `None` to take all up to the
    /// end of the stream.
    pub(crate) untaken: Option<u64>,
    /// Whether a system call may wait for the socket, if the socket is blocking.
    pub(crate) may_wait: bool,
}

impl ReceiveStep<'_> {
    /// Returns how many bytes to take from the socket in one call, from 1 to [`MAX_STEP_BYTES`].
    /// Only called while no bytes are held. No step is made then if no bytes are to be taken, or if
    /// the offset has reached [`MAX_FILE_OFFSET`].
    fn want(&self) -> usize {
        let room = MAX_FILE_OFFSET.saturating_sub(self.offset.unwrap_or(0));
        let want = self.untaken.map_or(room, |untaken| untaken.min(room));
        usize::try_from(want).map_or(MAX_STEP_BYTES, |bytes| bytes.min(MAX_STEP_BYTES))
    }

    /// Makes a call that receives. After a signal, repeats it, unless it may have waited: it would
    /// then wait for the receive timeout of the socket again.
    fn receive(
        &self,
        mut call: impl FnMut() -> rustix::io::Result<usize>,
    ) -> rustix::io::Result<usize> {
        match self.may_wait {
            true => call(),
            false => super::retry_on_intr(call),
        }
    }
}

/// The bytes that were taken from the socket and that the sink has not accepted: those in the
/// buffer, followed by those in the pipe.
#[derive(Debug, Default)]
pub(crate) struct TakenBytes {
    buffer: Buffer,
    pipe: Option<Pipe>,
    discard: Discard,
    /// A second descriptor of a sink that was opened with `O_DIRECT`, without that flag.
    buffered: Option<OwnedFd>,
}

impl TakenBytes {
    /// Returns the number of bytes.
    pub(crate) fn len(&self) -> u64 {
        (self.buffer.len() + self.in_pipe()) as u64
    }

    fn in_pipe(&self) -> usize {
        self.pipe.as_ref().map_or(0, Pipe::held)
    }

    /// Tries once to move bytes with `mechanism`, or with `copy` if it must first pass on bytes
    /// that another mechanism has taken. Returns the mechanism that it has used.
    pub(crate) fn step(
        &mut self,
        kernel: &impl Kernel,
        mechanism: Mechanism,
        step: &ReceiveStep<'_>,
    ) -> (Mechanism, Outcome) {
        let must_copy =
            self.buffer.len() > 0 || (mechanism != Mechanism::Splice && self.in_pipe() > 0);
        let mechanism = match must_copy {
            true => Mechanism::Copy,
            false => mechanism,
        };
        let outcome = match mechanism {
            Mechanism::Splice => splice::step(kernel, &mut self.pipe, step),
            Mechanism::Discard => self.discard.step(kernel, step),
            Mechanism::Copy => {
                let (buffer, buffered) = (&mut self.buffer, &mut self.buffered);
                copy::step(kernel, buffer, self.pipe.as_mut(), buffered, step)
            }
            // A mechanism that does not write to files.
            _ => Status::Unsupported(Errno::INVAL).into(),
        };
        // A transfer that waits for its socket keeps no memory and no pipe.
        self.buffer.release_if_empty();
        if outcome.status == Status::Blocked(Side::Source) {
            self.release_pipe();
        }
        (mechanism, outcome)
    }

    /// Caches the pipe for other transfers of this thread, if it is empty.
    fn release_pipe(&mut self) {
        if let Some(pipe) = self.pipe.take_if(|pipe| pipe.held() == 0) {
            pipe.recycle();
        }
    }
}

impl Drop for TakenBytes {
    fn drop(&mut self) {
        self.release_pipe();
    }
}
