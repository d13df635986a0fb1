//! Moves bytes from a pipe to anything else, or from a file to a pipe, with `splice(2)`.
//!
//! # Moves
//!
//! A pipe holds references to pages. A socket or another pipe takes these references from it, and
//! `/dev/null` drops them. A file copies the bytes into its own pages. If the sink is the pipe, it
//! takes references to the pages of the file. One call does all of that.
//!
//! # Needs
//!
//! A pipe at one of the two ends. A sink that supports splicing and was not opened with `O_APPEND`.
//!
//! # Errno
//!
//! | errno | outcome |
//! |---|---|
//! | a result of 0 | `copy` makes this step, and finds out whether the source has ended |
//! | `EAGAIN` | see below |
//! | `EINTR` | the call is repeated: no byte was moved |
//! | `EINVAL`, `EOPNOTSUPP`, `ESPIPE`, `ENOSYS`, `EOVERFLOW`, `ENOMEM` | unsupported |
//! | `EPERM`, `EBADF` | copied once: `read` and `write` tell which of the two has failed |
//! | `EPIPE` | failed on the sink |
//! | any other, from a pipe (`ENOSPC`, `EDQUOT`, `EFBIG`, `ECONNRESET`, …) | failed on the sink |
//! | any other, into a pipe (`EIO`, …) | failed on the source |
//!
//! `EAGAIN` can mean that the source is empty, or that the sink is full. `poll(2)` tells which. If
//! both are ready by then, the next step repeats the call.
//!
//! `EPERM` may mean that a seccomp filter refuses the call, or that the sink is sealed or
//! immutable, which concerns no other file.
//!
//! # Caveats
//!
//! - If the pipe is the sink, later changes to the file show until the pipe has been read.
//! - A step is blocked only on an end that `poll` has found not ready, because tokio would wait
//!   forever for an end that is ready already.
//! - Without `SPLICE_F_NONBLOCK`, the call waits for the pipe. It obeys `O_NONBLOCK` of a socket
//!   whatever the flag says.
//! - [`Kernel::splice`] has to suppress SIGPIPE and SIGXFSZ.
//!
//! # References
//!
//! `splice(2)`, `pipe(7)`.

use rustix::io::Errno;

use super::CopyStep;
use crate::mechanism::{MAX_STEP_BYTES, Outcome, Side, Status, is_unsupported, retry_on_intr};
use crate::policy::DescriptorKind;
use crate::sys::Kernel;

/// Makes a step, or returns `None` if the source has to be looked at with `read`.
pub(super) fn step(kernel: &impl Kernel, step: &CopyStep<'_>) -> Option<Outcome> {
    let count = step.want(MAX_STEP_BYTES);
    let to_file = step.sink_kind == DescriptorKind::File;
    let splice = || kernel.splice(step.source, step.sink, count, step.may_wait, to_file);
    let status = match retry_on_intr(splice) {
        Ok(0) => return None,
        Ok(moved) => return Some(Outcome::moved(moved)),
        Err(Errno::AGAIN) if !kernel.is_readable(step.source) => Status::Blocked(Side::Source),
        Err(Errno::AGAIN) if !kernel.is_writable(step.sink) => Status::Blocked(Side::Sink),
        Err(Errno::AGAIN) => Status::Continue,
        Err(errno @ (Errno::PERM | Errno::BADF)) => Status::CopyOnce(errno),
        Err(errno) if is_unsupported(errno) => Status::Unsupported(errno),
        Err(Errno::PIPE) => Status::Failed(Side::Sink, Errno::PIPE),
        Err(errno) if step.source_kind == DescriptorKind::Pipe => Status::Failed(Side::Sink, errno),
        Err(errno) => Status::Failed(Side::Source, errno),
    };
    Some(status.into())
}
