//! The kernel paths, one file each, all with the same headings.
//!
//! A mechanism makes one non-blocking try, a *step*, and says what came of it. It never decides
//! whether it is a good idea: that is [`plan`](crate::plan). Its state is what it must keep between
//! steps; dropping it loses nothing, because the source can be read again from the last byte that
//! the sink took.

mod copy;
mod memory;
mod mmap_write;
mod msg_zerocopy;
pub(crate) mod send_zc;
mod sendfile;
mod splice;
mod vmsplice;

use std::os::fd::BorrowedFd;

use rustix::io::{Errno, Result};

pub(crate) use copy::Copy;
pub(crate) use memory::{MemoryOutcome, Terms, copy as copy_memory};
pub(crate) use mmap_write::MmapWrite;
pub(crate) use msg_zerocopy::MsgZerocopy;
pub(crate) use sendfile::Sendfile;
pub(crate) use splice::Splice;
pub(crate) use vmsplice::Vmsplice;

/// The most that one step moves, in bytes, so that one fast peer cannot hold an event loop. nginx
/// takes the same (`sendfile_max_chunk 2m`). It is also below the 0x7ffff000 bytes at which every
/// one of these calls is cut short.
pub(crate) const STEP: usize = 2 << 20;

/// No file has a byte at this offset. The kernel takes a range that reaches beyond for a wrong
/// argument instead of the end of the file.
pub(crate) const END_OF_FILES: u64 = i64::MAX as u64;

/// What a step is asked to move.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job<'a> {
    pub(crate) source: BorrowedFd<'a>,
    pub(crate) sink: BorrowedFd<'a>,
    /// Of the source, in bytes: the first byte that the sink has not taken.
    pub(crate) offset: u64,
    /// How many bytes are left of an exact length; `None` until the end of the file.
    pub(crate) left: Option<u64>,
}

impl Job<'_> {
    /// How many bytes to ask for in one call: 1 to [`STEP`]. A transfer with nothing left makes no
    /// job, nor does one at [`END_OF_FILES`].
    fn want(&self) -> usize {
        let room = END_OF_FILES.saturating_sub(self.offset);
        let left = self.left.map_or(room, |left| left.min(room));
        usize::try_from(left).map_or(STEP, |left| left.min(STEP))
    }
}

/// One of the two ends of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where the bytes come from.
    Source,
    /// Where they go.
    Sink,
}

/// What came of a step: how many bytes the sink took, and how it stands then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) moved: u64,
    pub(crate) then: Then,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// There may be more: step again.
    Going,
    /// Nothing moves until this side is ready.
    Blocked(Side),
    /// The source has no more bytes.
    Ended,
    /// This mechanism does not work for this pair, or in this process.
    Unsupported(Errno),
    /// No mechanism would work.
    Failed(Side, Errno),
}

impl Outcome {
    fn moved(bytes: usize) -> Self {
        Self {
            moved: bytes as u64,
            then: Then::Going,
        }
    }

    pub(crate) fn nothing(then: Then) -> Self {
        Self { moved: 0, then }
    }
}

/// Repeats a call that a signal interrupted before it had moved a byte (`signal(7)`).
fn again<T>(mut call: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// What an errno of a call that only *writes to the sink* means: `send(2)`, as every mechanism's last
/// resort has it.
fn sink_failure(errno: Errno) -> Then {
    match errno {
        Errno::AGAIN => Then::Blocked(Side::Sink),
        errno => Then::Failed(Side::Sink, errno),
    }
}

/// Whether an errno tells of a connection that is gone, whichever call answers it.
pub(crate) fn is_peer_gone(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::PIPE | Errno::CONNRESET | Errno::CONNABORTED | Errno::NOTCONN
    )
}

/// Whether an errno of `sendfile(2)` or `splice(2)`, which share their path in the kernel, says that this
/// pair or this process cannot have it.
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
