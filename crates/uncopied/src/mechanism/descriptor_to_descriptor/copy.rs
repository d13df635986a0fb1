//! Moves bytes between two descriptors with `read(2)` and `write(2)`: the baseline, and the last
//! fallback of every plan.
//!
//! # Moves
//!
//! The kernel copies the bytes into a buffer of this process, and from there to the sink: two
//! copies.
//!
//! # Needs
//!
//! A source that can be read from, and a sink that can be written to.
//!
//! # Errno
//!
//! | step | errno | outcome |
//! |---|---|---|
//! | reading | `EAGAIN` | blocked on the source |
//! | reading | any other (`EIO`, `EISDIR`, `EBADF`, …) | failed on the source |
//! | writing | `EAGAIN` | blocked on the sink |
//! | writing | any other (`ENOSPC`, `EDQUOT`, `EFBIG`, `EIO`, `EPIPE`, …) | failed on the sink |
//! | either | `EINTR` | the call is repeated: no byte was moved |
//!
//! # Caveats
//!
//! - At most 256 KiB are read ahead of what the sink has accepted. They stay in the buffer until
//!   the sink accepts them.
//! - If a descriptor is blocking, a call waits for it.
//! - [`Kernel::write`] has to suppress SIGPIPE and SIGXFSZ.
//!
//! # References
//!
//! `read(2)`, `write(2)`.

use rustix::io::Errno;

use super::CopyStep;
use crate::mechanism::buffer::{BUFFER_BYTES, Buffer};
use crate::mechanism::{Outcome, Side, Status, retry_on_intr};
use crate::sys::Kernel;

pub(super) fn step(kernel: &impl Kernel, buffer: &mut Buffer, step: &CopyStep<'_>) -> Outcome {
    if buffer.len() == 0 {
        let spare = buffer.spare(step.want(BUFFER_BYTES), 0);
        let status = match retry_on_intr(|| kernel.read(step.source, spare)) {
            Ok(0) => Status::Ended,
            Ok(read) => {
                buffer.filled(read);
                Status::Continue
            }
            Err(Errno::AGAIN) => Status::Blocked(Side::Source),
            Err(errno) => Status::Failed(Side::Source, errno),
        };
        if status != Status::Continue {
            return status.in_call("read");
        }
    }
    match retry_on_intr(|| kernel.write(step.sink, buffer.bytes(), None)) {
        Ok(0) => Status::Failed(Side::Sink, Errno::IO).in_call("write"),
        Ok(moved) => {
            let moved = moved.min(buffer.len());
            buffer.remove_first(moved);
            Outcome::moved(moved)
        }
        Err(Errno::AGAIN) => Status::Blocked(Side::Sink).in_call("write"),
        Err(errno) => Status::Failed(Side::Sink, errno).in_call("write"),
    }
}
