//! What the mechanisms for memory have in common.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::again;
use crate::acknowledgements::Acknowledgements;
use crate::completion::{Account, Rule, Sending};
use crate::lease::{Memory, Quota};
use crate::sys::Kernel;

/// For whom something is lent, and how much more may be.
pub(crate) struct Terms<'a> {
    pub(crate) quota: &'a Arc<Quota>,
    pub(crate) account: &'a Arc<Account>,
    pub(crate) sending: &'a Sending,
    /// What the peer acknowledges comes back: it is known to be on another machine.
    pub(crate) acknowledgements: Option<&'a Arc<Acknowledgements>>,
}

/// What came of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemoryOutcome {
    /// The socket took so many bytes, at least one.
    Moved(usize),
    /// Nothing moves until the socket is writable.
    Blocked,
    /// Nothing more can be lent until some of what is lent has come back.
    OverQuota,
    /// This send cannot be lent, for a reason that passes: it is copied.
    CopyThis(Errno),
    /// This mechanism does not work for this socket, or in this process.
    Unsupported(Errno),
    /// No mechanism would work.
    Failed(Errno),
}

/// Moves memory by `send(2)`: the last resort of every plan, under the same errno table as
/// [`Copy`](super::Copy).
pub(crate) fn copy(
    kernel: &impl Kernel,
    sink: BorrowedFd<'_>,
    memory: &Memory,
    sending: &Sending,
) -> MemoryOutcome {
    match again(|| kernel.send_memory(sink, memory)) {
        Ok(0) | Err(Errno::AGAIN) => MemoryOutcome::Blocked,
        Ok(moved) => {
            sending.count(moved as u64, moved as u64, Rule::Copied);
            MemoryOutcome::Moved(moved)
        }
        Err(errno) => MemoryOutcome::Failed(errno),
    }
}
