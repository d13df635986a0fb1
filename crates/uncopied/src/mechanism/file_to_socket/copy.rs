//! Moves a file to a socket with `pread(2)` and `send(2)`: the baseline, and the last fallback of
//! every plan.
//!
//! # Moves
//!
//! The kernel copies the file's bytes into a buffer of this process, and from there into the
//! socket: two copies.
//!
//! # Needs
//!
//! A source that can be read at an offset, and any stream socket.
//!
//! # Errno
//!
//! | step | errno | outcome |
//! |---|---|---|
//! | reading | `EAGAIN` | blocked on the source |
//! | reading | any other (`EIO`, `ESPIPE`, `EISDIR`, …) | failed on the source |
//! | sending | `EAGAIN` | blocked on the sink |
//! | sending | any other | failed on the sink |
//! | either | `EINTR` | the call is repeated: no byte was moved |
//!
//! # Caveats
//!
//! - The peer receives the bytes as they were when they were read from the file. At most 128 KiB
//!   are read ahead of what the socket has accepted.
//! - A read that returns 0 bytes means the end of the file.
//!
//! # References
//!
//! `pread(2)`, `send(2)`.

use rustix::io::Errno;

use super::FileStep;
use crate::mechanism::{Outcome, Side, Status, retry_on_intr, sink_failure};
use crate::sys::Kernel;

/// The size of the buffer: large enough that the system calls cost little compared with the copies,
/// and small enough that the bytes stay in a core's cache between the read and the send.
const BUFFER_BYTES: usize = 128 << 10;

/// The bytes that were read but not yet sent: `buffer[start..end]`. The first of them is the
/// source's byte at the next step's offset.
#[derive(Debug, Default)]
pub(crate) struct Copy {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Copy {
    pub(crate) fn step(&mut self, kernel: &impl Kernel, step: FileStep<'_>) -> Outcome {
        if self.start == self.end
            && let Err(status) = self.fill(kernel, step)
        {
            return status.in_call("pread");
        }
        let bytes = &self.buffer[self.start..self.end];
        match retry_on_intr(|| kernel.send(step.sink, bytes, false)) {
            Ok(0) => Status::Failed(Side::Sink, Errno::IO).into(),
            Ok(moved) => {
                self.start += moved.min(bytes.len());
                Outcome::moved(moved)
            }
            Err(errno) => sink_failure(errno).into(),
        }
    }

    fn fill(&mut self, kernel: &impl Kernel, step: FileStep<'_>) -> Result<(), Status> {
        let want = step.want().min(BUFFER_BYTES);
        if self.buffer.len() < want {
            self.buffer.resize(want, 0);
        }
        let buffer = &mut self.buffer[..want];
        match retry_on_intr(|| kernel.read_at(step.source, buffer, step.offset)) {
            Ok(0) => Err(Status::Ended),
            Ok(read) => {
                (self.start, self.end) = (0, read.min(want));
                Ok(())
            }
            Err(Errno::AGAIN) => Err(Status::Blocked(Side::Source)),
            Err(errno) => Err(Status::Failed(Side::Source, errno)),
        }
    }
}
