//! Moves a TCP socket's bytes to `/dev/null` with `recv(2)` and `MSG_TRUNC`.
//!
//! # Moves
//!
//! The kernel removes the bytes from the socket's queue. Nothing reads or writes them.
//!
//! # Needs
//!
//! A TCP socket without kernel TLS (`TCP_ULP`), whose records must be decrypted even if nobody
//! reads them. A descriptor of `/dev/null` that may be written to.
//!
//! # Errno
//!
//! | step | errno | outcome |
//! |---|---|---|
//! | looking for kernel TLS | any (`EOPNOTSUPP`, …) | unsupported: not a TCP socket |
//! | receiving | `EAGAIN` | blocked on the source |
//! | receiving | `EINTR` | the call is repeated, or blocked if it may have waited |
//! | receiving | `EFAULT`, `EINVAL`, `EOPNOTSUPP`, `ENOSYS`, `EPERM` | unsupported |
//! | receiving | any other | failed on the source |
//!
//! `EFAULT` means that the socket does not know this use of `MSG_TRUNC`: it has tried to copy the
//! bytes, for which there is no buffer, and still has them.
//!
//! # Caveats
//!
//! - The device itself is not called. `/dev/null` accepts whatever is written to it.
//!
//! # References
//!
//! `tcp(7)` on `MSG_TRUNC`, `null(4)`.

use rustix::io::Errno;

use super::ReceiveStep;
use crate::mechanism::{Outcome, Side, Status};
use crate::policy::SinkKind;
use crate::sys::Kernel;

/// The mechanism's state: whether it is known that it can be used.
#[derive(Debug, Default)]
pub(super) struct Discard {
    is_checked: bool,
}

impl Discard {
    pub(super) fn step(&mut self, kernel: &impl Kernel, step: &ReceiveStep<'_>) -> Outcome {
        if step.sink_kind != SinkKind::Null {
            return Status::Unsupported(Errno::INVAL).into();
        }
        if !self.is_checked {
            let refusal = match kernel.has_upper_protocol(step.source) {
                Ok(false) => None,
                Ok(true) => Some(Errno::OPNOTSUPP),
                Err(errno) => Some(errno),
            };
            if let Some(errno) = refusal {
                return Status::Unsupported(errno).in_call("getsockopt");
            }
            self.is_checked = true;
        }
        let count = step.want();
        match step.receive(|| kernel.discard(step.source, count, step.may_wait)) {
            Ok(0) => Status::Ended.into(),
            Ok(discarded) => Outcome::moved(discarded),
            Err(Errno::AGAIN | Errno::INTR) => Status::Blocked(Side::Source).into(),
            Err(
                errno @ (Errno::FAULT
                | Errno::INVAL
                | Errno::OPNOTSUPP
                | Errno::NOSYS
                | Errno::PERM),
            ) => Status::Unsupported(errno).into(),
            Err(errno) => Status::Failed(Side::Source, errno).into(),
        }
    }
}
