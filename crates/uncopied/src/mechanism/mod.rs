//! The mechanisms: the ways to have the kernel move bytes. There is one folder for each direction,
//! with one file for each mechanism.
//!
//! In one *step*, a mechanism tries once to move bytes, without blocking, and returns the
//! [`Outcome`]. It does not decide whether it is worth using: [`policy`](crate::policy) does.
//! Between steps it keeps only the state that it needs. Dropping this state loses no bytes, because
//! the source can be read again from the first byte that the sink has not accepted. The exceptions
//! are [`socket_to_file`], [`socket_to_socket`] and [`descriptor_to_descriptor`], because a socket
//! or a pipe cannot be read again.

mod buffer;
pub(crate) mod descriptor_to_descriptor;
pub(crate) mod file_to_socket;
pub(crate) mod memory_to_socket;
mod pipe;
pub(crate) mod socket_to_file;
pub(crate) mod socket_to_memory;
pub(crate) mod socket_to_socket;

use std::os::fd::BorrowedFd;

use rustix::io::{Errno, Result};

pub(crate) use crate::endpoint::Side;
use crate::sys::Kernel;

/// The most bytes that one step moves, so that one fast peer cannot monopolise an event loop. nginx
/// uses the same limit (`sendfile_max_chunk 2m`). The limit is also below 0x7ffff000 bytes, the
/// most that the kernel moves in one call of `read`, `send`, `sendfile` or `splice`.
pub(crate) const MAX_STEP_BYTES: usize = 2 << 20;

/// The result of a step: how many bytes the sink accepted, and what can be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) moved: u64,
    pub(crate) status: Status,
    /// The name of the system call that led to the status, if it is not the mechanism's
    /// [main one](crate::policy::Mechanism::system_call).
    pub(crate) call: Option<&'static str>,
}

/// What to do after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// There may be more to move: step again.
    Continue,
    /// No bytes can be moved until this side is ready.
    Blocked(Side),
    /// A limit on the memory in flight is reached: no bytes can be moved until some of that memory
    /// can be reused.
    AtLimit,
    /// The source has no more bytes.
    Ended,
    /// The step failed for a temporary reason. Its bytes must be sent with `copy` instead, and the
    /// next step tries the mechanism again.
    CopyOnce(Errno),
    /// This mechanism does not work for this pair of descriptors, or does not work anywhere in this
    /// process.
    Unsupported(Errno),
    /// This side has failed in a way that affects every mechanism.
    Failed(Side, Errno),
}

impl Outcome {
    pub(crate) fn moved(bytes: usize) -> Self {
        Self {
            moved: bytes as u64,
            status: Status::Continue,
            call: None,
        }
    }
}

impl Status {
    /// Returns an outcome with this status and no bytes moved. `call` is the name of the system
    /// call that led to the status.
    fn in_call(self, call: &'static str) -> Outcome {
        Outcome {
            call: Some(call),
            ..self.into()
        }
    }
}

impl From<Status> for Outcome {
    /// Returns an outcome with this status and no bytes moved.
    fn from(status: Status) -> Self {
        Self {
            moved: 0,
            status,
            call: None,
        }
    }
}

/// Repeats `call` as long as a signal interrupts it. A call fails with `EINTR` only if it has moved
/// no byte (`signal(7)`), so nothing is sent twice.
fn retry_on_intr<T>(mut call: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Moves bytes of this process to a socket with `send(2)`, which copies them. With `more`, the
/// kernel holds back a partly filled packet.
pub(crate) fn send_slice(
    kernel: &impl Kernel,
    sink: BorrowedFd<'_>,
    bytes: &[u8],
    more: bool,
) -> Outcome {
    match retry_on_intr(|| kernel.send(sink, bytes, more)) {
        Ok(sent) => Outcome::moved(sent),
        Err(errno) => sink_failure(errno).into(),
    }
}

/// Returns the status for an errno of `send(2)`. It is never [`Status::Unsupported`], because every
/// stream socket supports this call.
fn sink_failure(errno: Errno) -> Status {
    match errno {
        Errno::AGAIN => Status::Blocked(Side::Sink),
        errno => Status::Failed(Side::Sink, errno),
    }
}

/// Whether an errno of `sendfile(2)` or `splice(2)` means that the call does not work for this pair
/// of descriptors or in this process. One function serves both calls, because they share their
/// implementation in the kernel and so fail with the same errnos.
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
