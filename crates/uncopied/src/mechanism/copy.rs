//! Moves a file to a socket by `pread(2)` and `send(2)`: the baseline, and the fallback of every path.
//!
//! # Moves
//!
//! The kernel copies the file's bytes into a buffer of ours, and from there into the socket: two
//! copies.
//!
//! # Needs
//!
//! A source that can be read at an offset, and any stream socket.
//!
//! # Errno
//!
//! | step | errno | outcome | because |
//! |---|---|---|---|
//! | reading | `EAGAIN` | blocked on the source | |
//! | reading | any other (`EIO`, `ESPIPE`, `EISDIR`, …) | failed, of the source | nothing is left to try |
//! | sending | `EAGAIN` | blocked on the sink | |
//! | sending | any other | failed, of the sink | |
//! | both | `EINTR` | again | no byte had moved |
//!
//! # Caveats
//!
//! - Bytes are as they were when they were read, and cannot change any more: this is the mode for
//!   whoever needs that. They are read at most 128 KiB ahead of the socket.
//! - A read of 0 is the end of the file.
//!
//! # References
//!
//! `pread(2)`, `send(2)`.

use rustix::io::Errno;

use super::{Job, Outcome, Side, Then, again, sink_failure};
use crate::sys::Kernel;

/// The buffer's size in bytes: large enough that the calls cost little beside the copies, small
/// enough to stay in a core's cache between the two.
const BUFFER: usize = 128 << 10;

/// What was read and not yet sent: `buffer[start..end]`, the source's bytes from the job's offset on.
#[derive(Debug, Default)]
pub(crate) struct Copy {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Copy {
    pub(crate) fn step(&mut self, kernel: &impl Kernel, job: Job<'_>) -> Outcome {
        if self.start == self.end
            && let Err(then) = self.fill(kernel, job)
        {
            return Outcome::nothing(then);
        }
        let bytes = &self.buffer[self.start..self.end];
        match again(|| kernel.send(job.sink, bytes)) {
            Ok(0) => Outcome::nothing(Then::Failed(Side::Sink, Errno::IO)),
            Ok(moved) => {
                self.start += moved.min(bytes.len());
                Outcome::moved(moved)
            }
            Err(errno) => Outcome::nothing(sink_failure(errno)),
        }
    }

    fn fill(&mut self, kernel: &impl Kernel, job: Job<'_>) -> Result<(), Then> {
        let want = job.want().min(BUFFER);
        if self.buffer.len() < want {
            self.buffer.resize(want, 0);
        }
        let buffer = &mut self.buffer[..want];
        match again(|| kernel.read_at(job.source, buffer, job.offset)) {
            Ok(0) => Err(Then::Ended),
            Ok(read) => {
                (self.start, self.end) = (0, read.min(want));
                Ok(())
            }
            Err(Errno::AGAIN) => Err(Then::Blocked(Side::Source)),
            Err(errno) => Err(Then::Failed(Side::Source, errno)),
        }
    }
}
