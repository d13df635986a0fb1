//! The mechanisms that move bytes between two descriptors of any kind, from and to where the
//! descriptors themselves stand.
//!
//! A pipe or a terminal cannot be read again. So the bytes that `copy` has read and that the sink
//! has not accepted are kept, in [`ReadBytes`], until a later step passes them on. The other
//! mechanisms take no more than the sink accepts.

mod copy;
mod copy_file_range;
mod sendfile;
mod splice;

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::buffer::Buffer;
use super::{Outcome, Status};
use crate::policy::{DescriptorKind, Mechanism};
use crate::sys::Kernel;

/// The input of a step: the two ends, and how many bytes to take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CopyStep<'a> {
    pub(crate) source: BorrowedFd<'a>,
    pub(crate) sink: BorrowedFd<'a>,
    pub(crate) source_kind: DescriptorKind,
    pub(crate) sink_kind: DescriptorKind,
    /// The number of bytes that may still be taken from the source, or `None` to take all up to its
    /// end.
    pub(crate) untaken: Option<u64>,
    /// Whether a system call may wait for either of the two.
    pub(crate) may_wait: bool,
}

impl CopyStep<'_> {
    /// Returns how many bytes to take from the source in one call, at most `limit`. No step is made
    /// if no bytes are to be taken.
    fn want(&self, limit: usize) -> usize {
        let untaken = self.untaken.map(usize::try_from);
        untaken.map_or(limit, |bytes| bytes.map_or(limit, |bytes| bytes.min(limit)))
    }
}

/// The bytes that were read from the source and that the sink has not accepted.
#[derive(Debug, Default)]
pub(crate) struct ReadBytes(Buffer);

impl ReadBytes {
    /// Returns the number of bytes.
    pub(crate) fn len(&self) -> u64 {
        self.0.len() as u64
    }

    /// Tries once to move bytes with `mechanism`, or with `copy` if it must first pass on bytes
    /// that were read, or if the mechanism has found the end of the source. Returns the mechanism
    /// that it has used.
    pub(crate) fn step(
        &mut self,
        kernel: &impl Kernel,
        mechanism: Mechanism,
        step: &CopyStep<'_>,
    ) -> (Mechanism, Outcome) {
        let moved = match mechanism {
            _ if self.len() > 0 => None,
            Mechanism::CopyFileRange => copy_file_range::step(kernel, step),
            Mechanism::Sendfile => sendfile::step(kernel, step),
            Mechanism::Splice => splice::step(kernel, step),
            Mechanism::Copy => None,
            // A mechanism that does not move bytes between descriptors.
            _ => Some(Status::Unsupported(Errno::INVAL).into()),
        };
        if let Some(outcome) = moved {
            return (mechanism, outcome);
        }
        let outcome = copy::step(kernel, &mut self.0, step);
        // A transfer that waits keeps no memory.
        self.0.release_if_empty();
        (Mechanism::Copy, outcome)
    }
}
