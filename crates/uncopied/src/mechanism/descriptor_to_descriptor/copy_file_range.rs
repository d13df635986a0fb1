//! Moves the bytes of one file to another with `copy_file_range(2)`.
//!
//! # Moves
//!
//! The kernel copies the bytes from the pages of one file into those of the other. Some file
//! systems let both files share the blocks on the disk instead (Btrfs, XFS), or have a server copy
//! them (NFS, SMB).
//!
//! # Needs
//!
//! Two regular files, as a rule of the same file system. The sink was not opened with `O_APPEND`.
//!
//! # Errno
//!
//! | errno | outcome |
//! |---|---|
//! | a result of 0 | `copy` makes this step: see below |
//! | `EINTR` | the call is repeated: no byte was moved |
//! | `EXDEV`, `EINVAL`, `EBADF`, `EOPNOTSUPP`, `ENOSYS`, `ETXTBSY` | unsupported |
//! | any other (`ENOSPC`, `EDQUOT`, `EFBIG`, `EIO`, `EPERM`, …) | copied once |
//!
//! A result of 0 means the end of the file, or that the file system does not know where the file
//! ends, as in procfs. `read` finds out which it is.
//!
//! The errno does not tell which of the two files has failed. `read` and `write` do, so `copy`
//! makes the step. `EPERM` may mean that a seccomp filter refuses the call, or that the sink is
//! sealed or immutable, which concerns no other file.
//!
//! # Caveats
//!
//! - `EINVAL` is also the errno for two ranges of the same file that overlap.
//! - Holes of a sparse file may become blocks of zeros.
//! - [`Kernel::copy_file_range`] has to suppress SIGXFSZ.
//!
//! # References
//!
//! `copy_file_range(2)`.

use rustix::io::Errno;

use super::CopyStep;
use crate::mechanism::{Outcome, Status, retry_on_intr};
use crate::sys::Kernel;

/// The most bytes that one call copies. More than in other steps, because a call may be a request
/// to a server, and few enough for a copy on another thread to stop soon.
const MAX_CALL_BYTES: usize = 64 << 20;

/// Makes a step, or returns `None` if the source has to be looked at with `read`.
pub(super) fn step(kernel: &impl Kernel, step: &CopyStep<'_>) -> Option<Outcome> {
    let count = step.want(MAX_CALL_BYTES);
    match retry_on_intr(|| kernel.copy_file_range(step.source, step.sink, count)) {
        Ok(0) => None,
        Ok(moved) => Some(Outcome::moved(moved)),
        Err(
            errno @ (Errno::XDEV
            | Errno::INVAL
            | Errno::BADF
            | Errno::OPNOTSUPP
            | Errno::NOSYS
            | Errno::TXTBSY),
        ) => Some(Status::Unsupported(errno).into()),
        Err(errno) => Some(Status::CopyOnce(errno).into()),
    }
}
