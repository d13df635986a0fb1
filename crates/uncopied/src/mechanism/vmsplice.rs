//! Moves memory to a socket by `vmsplice(2)` into a pipe and `splice(2)` out of it.
//!
//! # Moves
//!
//! The pipe takes references to the pages, and the socket takes them from the pipe. No byte is copied on
//! the way to the peer's queue, also where the peer is on the same machine.
//!
//! # Needs
//!
//! Any stream socket, and a pipe.
//!
//! # Errno
//!
//! | step | errno | outcome | because |
//! |---|---|---|---|
//! | protecting a region | any | this send is copied | see [`Region::protection`](crate::arena::Region::protection) |
//! | making the pipe | any (`EMFILE`, `ENFILE`, `ENOMEM`, …) | unsupported | copying needs no pipe |
//! | widening it | any (`EPERM`, `EBUSY`, `ENOMEM`) | none | a narrow pipe works too |
//! | into the pipe | any (`EAGAIN`: not even one slot; `EFAULT`, `ENOMEM`, `ENOSYS`, `EPERM`) | unsupported | the pipe is empty: it should have taken a page |
//! | out of it | `EAGAIN` | blocked on the sink | the pipe is not empty, so it can only be the socket |
//! | out of it | `EINVAL`, `EOPNOTSUPP`, `ESPIPE`, `ENOSYS`, `EPERM`, `EOVERFLOW`, `ENOMEM` | unsupported | a socket that cannot take pages |
//! | out of it | any other | failed, of the sink | |
//! | both | `EINTR` | again | no byte had moved |
//!
//! # Caveats
//!
//! - Nobody says when the pages are free. On one machine the peer's queue holds *the same pages*, also
//!   after it has acknowledged them. So pages that went this way are given away: nobody writes to them
//!   again, and their frames go back to the kernel with the last handle. Where the caller
//!   [vouches](crate::SendOptions::peer_is_remote) for a peer on another machine, they come back when it
//!   has acknowledged them.
//! - What the pipe holds and the socket did not take is dropped with the pipe when another mechanism, or
//!   other memory, has its turn: the memory is still there, and is sent from the last byte that the socket
//!   took.
//! - A pipe holds slots, of a page or less each: memory that does not begin on a page fills it early.
//!
//! # References
//!
//! `vmsplice(2)`, `splice(2)`, `pipe(7)`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

use super::memory::{Lending, MemoryOutcome};
use super::{again, is_unsupported};
use crate::completion::Rule;
use crate::lease::{Lease, Memory};
use crate::sys::Kernel;

/// What a pipe is asked to hold, in bytes: the most that needs no privilege
/// (`/proc/sys/fs/pipe-max-size`).
const PIPE_BYTES: usize = 1 << 20;

#[derive(Debug, Default)]
pub(crate) struct Vmsplice {
    pipe: Option<Pipe>,
}

#[derive(Debug)]
struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    /// What the pipe holds. The handle also keeps other memory from getting the same address.
    held: Option<Memory>,
}

impl Vmsplice {
    pub(crate) fn step(
        &mut self,
        kernel: &impl Kernel,
        sink: BorrowedFd<'_>,
        memory: &Memory,
        lending: &Lending<'_>,
    ) -> MemoryOutcome {
        if self
            .pipe
            .as_ref()
            .is_some_and(|pipe| !pipe.goes_on_with(memory))
        {
            self.pipe = None;
        }
        let pipe = match &mut self.pipe {
            Some(pipe) => pipe,
            none => match Pipe::new(kernel) {
                Ok(pipe) => none.insert(pipe),
                Err(errno) => return MemoryOutcome::Unsupported(errno),
            },
        };
        let is_given_away = lending.acknowledgements.is_none();
        if pipe.held.is_none()
            && let Err(outcome) = pipe.fill(kernel, memory, is_given_away)
        {
            return outcome;
        }
        pipe.drain(kernel, sink, lending)
    }

    /// Forgets what the pipe holds: other bytes go out next.
    pub(crate) fn forget(&mut self) {
        self.pipe.take_if(|pipe| pipe.held.is_some());
    }
}

/// Settles what the socket has taken: at once, or when it is acknowledged.
fn account_for(kernel: &impl Kernel, taken: Memory, lending: &Lending<'_>) {
    let bytes = taken.len() as u64;
    let Some(acknowledgements) = lending.acknowledgements else {
        lending.sending.count(bytes, 0, Rule::GivenAway);
        return;
    };
    if let Some(lease) = Lease::take(taken.clone(), lending.quota) {
        let notices = Arc::clone(acknowledgements);
        let part = lending.sending.part(lending.account, Some(notices));
        acknowledgements.push(kernel, lease, part);
    } else {
        taken.give_away();
        lending.sending.count(bytes, 0, Rule::GivenAway);
    }
}

impl Pipe {
    fn new(kernel: &impl Kernel) -> Result<Self, Errno> {
        let (reader, writer) = kernel.pipe()?;
        // A refusal leaves the pipe as it was made, which is enough.
        let _ = kernel.resize_pipe(writer.as_fd(), PIPE_BYTES);
        Ok(Self {
            reader,
            writer,
            held: None,
        })
    }

    /// Whether what the pipe holds is what is to be sent next.
    fn goes_on_with(&self, memory: &Memory) -> bool {
        self.held
            .as_ref()
            .is_none_or(|held| held.address() == memory.address() && held.len() <= memory.len())
    }

    fn fill(
        &mut self,
        kernel: &impl Kernel,
        memory: &Memory,
        is_given_away: bool,
    ) -> Result<(), MemoryOutcome> {
        // A handle of its own: what is lent of it stays so while the pipe, or a lease, holds it.
        let memory = memory.clone();
        let loan = memory.lend().map_err(MemoryOutcome::CopyThis)?;
        let taken = again(|| kernel.vmsplice(self.writer.as_fd(), &memory));
        let taken = match taken {
            Ok(taken @ 1..) => taken,
            Ok(0) => return Err(MemoryOutcome::Unsupported(Errno::IO)),
            Err(errno) => return Err(MemoryOutcome::Unsupported(errno)),
        };
        if is_given_away {
            loan.give_away(taken);
        } else {
            drop(loan);
        }
        self.held = Some(memory.first(taken));
        Ok(())
    }

    fn drain(
        &mut self,
        kernel: &impl Kernel,
        sink: BorrowedFd<'_>,
        lending: &Lending<'_>,
    ) -> MemoryOutcome {
        let Some(held) = self.held.take() else {
            return MemoryOutcome::Unsupported(Errno::IO);
        };
        let reader = self.reader.as_fd();
        let spliced = again(|| kernel.splice_out(reader, sink, held.len(), false));
        let outcome = match spliced {
            // The pipe holds bytes and its writing end is ours and open: there is no end here.
            Ok(0) => MemoryOutcome::Unsupported(Errno::IO),
            Ok(moved) => MemoryOutcome::Moved(moved.min(held.len())),
            Err(Errno::AGAIN) => MemoryOutcome::Blocked,
            Err(errno) if is_unsupported(errno) => MemoryOutcome::Unsupported(errno),
            Err(errno) => MemoryOutcome::Failed(errno),
        };
        let moved = match outcome {
            MemoryOutcome::Moved(moved) => moved,
            _ => 0,
        };
        if moved > 0 {
            account_for(kernel, held.first(moved), lending);
        }
        self.held = (moved < held.len()).then(|| held.after(moved));
        outcome
    }
}
