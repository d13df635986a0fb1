//! The kernel paths: one folder for each direction, one file for each path.
//!
//! A mechanism makes one non-blocking try, a *step*, and returns its [`Outcome`]. It never decides
//! whether it is a good idea: that is [`policy`](crate::policy). Its state is what it must keep
//! between steps; dropping it loses nothing, because its source can be read again from the last
//! byte that the sink accepted.

pub(crate) mod file_to_socket;
pub(crate) mod memory_to_socket;
mod pipe;

use rustix::io::{Errno, Result};

/// The most that one step moves, in bytes, so that one fast peer cannot hold an event loop. nginx
/// uses the same limit (`sendfile_max_chunk 2m`). It is also below the 0x7ffff000 bytes at which
/// each of these calls is cut short.
pub(crate) const MAX_STEP_BYTES: usize = 2 << 20;

/// One of the two ends of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where the bytes come from.
    Source,
    /// Where they go.
    Sink,
}

/// The result of a step: how many bytes the sink accepted, and what can be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) moved: u64,
    pub(crate) status: Status,
}

/// What can be done after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// There may be more to move: step again.
    Continue,
    /// Nothing moves until this side is ready.
    Blocked(Side),
    /// Nothing moves until some of the memory in flight is free again.
    AtLimit,
    /// The source has no more bytes.
    Ended,
    /// This step cannot be made, for a reason that passes: it is copied instead.
    CopyOnce(Errno),
    /// This mechanism does not work for this pair of descriptors, or in this process.
    Unsupported(Errno),
    /// No mechanism would work.
    Failed(Side, Errno),
}

impl Outcome {
    pub(crate) fn moved(bytes: usize) -> Self {
        Self {
            moved: bytes as u64,
            status: Status::Continue,
        }
    }
}

impl From<Status> for Outcome {
    /// No byte was moved.
    fn from(status: Status) -> Self {
        Self { moved: 0, status }
    }
}

/// Repeats a call that a signal interrupted before it had moved a byte (`signal(7)`).
fn retry_on_intr<T>(mut call: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// What an errno of a call that only *writes to the sink* means: `send(2)`, as in the last resort
/// of every plan.
fn sink_failure(errno: Errno) -> Status {
    match errno {
        Errno::AGAIN => Status::Blocked(Side::Sink),
        errno => Status::Failed(Side::Sink, errno),
    }
}

/// Whether an errno of `sendfile(2)` or `splice(2)`, which share their path in the kernel, means
/// that this pair or this process cannot use the call.
fn is_unsupported(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::INVAL
            | Errno::OPNOTSUPP
            | Errno::SPIPE
            | Errno::NOSYS
            | Errno::PERM
            | Errno::OVERFLOW
            | Errno::NOMEM
    )
}
