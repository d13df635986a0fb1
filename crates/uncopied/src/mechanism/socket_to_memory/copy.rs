//! Moves a socket's bytes to memory with `recv(2)`: the baseline, and the last fallback of every
//! plan.
//!
//! # Moves
//!
//! The kernel copies the bytes to the memory: one copy.
//!
//! # Needs
//!
//! Any stream socket.
//!
//! # Errno
//!
//! | errno | outcome | because |
//! |---|---|---|
//! | `EAGAIN` | blocked on the source | |
//! | `EINTR` | the call is repeated, or blocked if it may have waited | no byte was moved |
//! | any other | failed on the source | |
//!
//! # Caveats
//!
//! - A call that does not wait ignores `SO_RCVLOWAT` and `SO_RCVTIMEO`.
//! - With `may_wait`, the call waits if the socket is blocking. If `SO_RCVTIMEO` has passed, it
//!   fails with `EAGAIN`. After a signal it would wait for that time again, so it is not repeated.
//!
//! # References
//!
//! `recv(2)`, `socket(7)`.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use crate::mechanism::{Outcome, Side, Status, retry_on_intr};
use crate::sys::Kernel;

/// The name of the system call.
pub(super) const CALL: &str = "recv";

pub(super) fn step(
    kernel: &impl Kernel,
    source: BorrowedFd<'_>,
    buffer: &mut [u8],
    may_wait: bool,
) -> Outcome {
    let received = match may_wait {
        true => kernel.recv(source, buffer, true),
        false => retry_on_intr(|| kernel.recv(source, buffer, false)),
    };
    match received {
        Ok(0) => Status::Ended.in_call(CALL),
        Ok(received) => Outcome::moved(received),
        Err(Errno::AGAIN | Errno::INTR) => Status::Blocked(Side::Source).in_call(CALL),
        Err(errno) => Status::Failed(Side::Source, errno).in_call(CALL),
    }
}
