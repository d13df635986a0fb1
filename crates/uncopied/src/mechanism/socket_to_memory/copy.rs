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
//! | `EINTR` | the call is repeated | no byte was moved |
//! | any other | failed on the source | |
//!
//! # Caveats
//!
//! - As the call does not wait, it ignores `SO_RCVLOWAT` and `SO_RCVTIMEO`.
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

pub(super) fn step(kernel: &impl Kernel, source: BorrowedFd<'_>, buffer: &mut [u8]) -> Outcome {
    match retry_on_intr(|| kernel.recv(source, buffer)) {
        Ok(0) => Status::Ended.in_call(CALL),
        Ok(received) => Outcome::moved(received),
        Err(Errno::AGAIN) => Status::Blocked(Side::Source).in_call(CALL),
        Err(errno) => Status::Failed(Side::Source, errno).in_call(CALL),
    }
}
