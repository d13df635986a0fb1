//! Moves a file to another file, or to `/dev/null`, with `sendfile(2)`.
//!
//! # Moves
//!
//! The kernel copies the bytes from the pages of one file into those of the other, without passing
//! them through this process: one copy. `/dev/null` needs none.
//!
//! # Needs
//!
//! A source on a file system that supports splicing from its files. A sink that supports splicing
//! and was not opened with `O_APPEND`.
//!
//! # Errno
//!
//! | errno | outcome |
//! |---|---|
//! | a result of 0 | `copy` makes this step, and finds out whether the file has ended |
//! | `EINTR` | the call is repeated: no byte was moved |
//! | `EINVAL`, `EOPNOTSUPP`, `ESPIPE`, `ENOSYS`, `EOVERFLOW`, `ENOMEM` | unsupported |
//! | any other (`ENOSPC`, `EDQUOT`, `EFBIG`, `EIO`, `EPERM`, …) | copied once |
//!
//! The errno does not tell which of the two has failed. `read` and `write` do, so `copy` makes the
//! step.
//!
//! # Caveats
//!
//! - [`Kernel::sendfile_here`] has to suppress SIGXFSZ.
//!
//! # References
//!
//! `sendfile(2)`.

use rustix::io::Errno;

use super::CopyStep;
use crate::mechanism::{MAX_STEP_BYTES, Outcome, Status, is_unsupported, retry_on_intr};
use crate::sys::Kernel;

/// Makes a step, or returns `None` if the source has to be looked at with `read`.
pub(super) fn step(kernel: &impl Kernel, step: &CopyStep<'_>) -> Option<Outcome> {
    let count = step.want(MAX_STEP_BYTES);
    match retry_on_intr(|| kernel.sendfile_here(step.source, step.sink, count)) {
        Ok(0) => None,
        Ok(moved) => Some(Outcome::moved(moved)),
        Err(errno) if errno != Errno::PERM && is_unsupported(errno) => {
            Some(Status::Unsupported(errno).into())
        }
        Err(errno) => Some(Status::CopyOnce(errno).into()),
    }
}
