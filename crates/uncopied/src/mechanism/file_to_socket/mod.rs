//! The mechanisms that move a file to a stream socket.

mod copy;
mod mmap_write;
mod sendfile;
mod splice;

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::{MAX_STEP_BYTES, Outcome, Status};
use crate::policy::Mechanism;
use crate::sys::Kernel;
use copy::Copy;
use mmap_write::MmapWrite;
use sendfile::Sendfile;
use splice::Splice;

/// The size of the largest possible file. If a call asks for bytes past this offset, the kernel
/// rejects the call as invalid instead of reporting the end of the file.
pub(crate) const MAX_FILE_OFFSET: u64 = i64::MAX as u64;

/// The input of a step: the two ends, and which bytes to move.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileStep<'a> {
    pub(crate) source: BorrowedFd<'a>,
    pub(crate) sink: BorrowedFd<'a>,
    /// The offset in the source of the first byte that the sink has not accepted.
    pub(crate) offset: u64,
    /// The number of bytes that are still to be sent, or `None` to send up to the end of the file.
    pub(crate) remaining: Option<u64>,
}

impl FileStep<'_> {
    /// Returns how many bytes to ask for in one call, from 1 to [`MAX_STEP_BYTES`]. The result is
    /// never 0, because no step is made if no bytes remain or if the offset has reached
    /// [`MAX_FILE_OFFSET`].
    fn want(&self) -> usize {
        let room = MAX_FILE_OFFSET.saturating_sub(self.offset);
        let remaining = self.remaining.map_or(room, |remaining| remaining.min(room));
        usize::try_from(remaining).map_or(MAX_STEP_BYTES, |bytes| bytes.min(MAX_STEP_BYTES))
    }
}

/// The mechanism that a transfer currently uses, and the state that it keeps between steps.
#[derive(Debug)]
pub(crate) enum ActiveMechanism {
    Sendfile(Sendfile),
    Splice(Splice),
    MmapWrite(MmapWrite),
    Copy(Copy),
    /// A mechanism that does not move files.
    Unsupported,
}

impl ActiveMechanism {
    /// Starts `mechanism`.
    pub(crate) fn new(mechanism: Mechanism) -> Self {
        match mechanism {
            Mechanism::Sendfile => Self::Sendfile(Sendfile),
            Mechanism::Splice => Self::Splice(Splice::default()),
            Mechanism::MmapWrite => Self::MmapWrite(MmapWrite::default()),
            Mechanism::Copy => Self::Copy(Copy::default()),
            _ => Self::Unsupported,
        }
    }

    pub(crate) fn step(&mut self, kernel: &impl Kernel, step: FileStep<'_>) -> Outcome {
        match self {
            Self::Sendfile(active) => active.step(kernel, step),
            Self::Splice(active) => active.step(kernel, step),
            Self::MmapWrite(active) => active.step(kernel, step),
            Self::Copy(active) => active.step(kernel, step),
            Self::Unsupported => Status::Unsupported(Errno::INVAL).into(),
        }
    }
}
