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
//! | widening it | any (`EPERM`: the user's pipe pages are used up; `ENOMEM`) | this send is copied | by a narrow pipe it would cost more than the copy |
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

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

use super::memory::{MemoryOutcome, Terms};
use super::{again, is_unsupported};
use crate::completion::Rule;
use crate::lease::{Lease, Memory};
use crate::sys::{Kernel, fork};

/// What a pipe is asked to hold, in bytes: the most that needs no privilege
/// (`/proc/sys/fs/pipe-max-size`).
const PIPE_BYTES: usize = 1 << 20;

/// So many empty pipes a thread keeps. A user's pipes together may hold 64 MiB
/// (`/proc/sys/fs/pipe-user-pages-soft`), beyond which new ones hold two pages each: a pipe that is kept
/// by every connection that once needed one would soon be worth nothing.
const SPARE: usize = 8;

thread_local! {
    static SPARE_PIPES: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug, Default)]
pub(crate) struct Vmsplice {
    pipe: Option<Pipe>,
}

#[derive(Debug)]
struct Pipe {
    fork_generation: u64,
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
        terms: &Terms<'_>,
    ) -> MemoryOutcome {
        self.pipe.take_if(|pipe| !pipe.goes_on_with(memory));
        let pipe = match &mut self.pipe {
            Some(pipe) => pipe,
            none => match spare_pipe().map_or_else(|| Pipe::new(kernel), Ok) {
                Ok(pipe) => none.insert(pipe),
                Err(outcome) => return outcome,
            },
        };
        let is_given_away = terms.acknowledgements.is_none();
        if pipe.held.is_none()
            && let Err(outcome) = pipe.fill(kernel, memory, is_given_away)
        {
            return outcome;
        }
        pipe.drain(kernel, sink, terms)
    }

    /// Leaves an empty pipe to others: nothing is under way.
    pub(crate) fn rest(&mut self) {
        if let Some(pipe) = self.pipe.take_if(|pipe| pipe.held.is_none()) {
            // A thread that ends keeps none; neither does one that has enough.
            let _ = SPARE_PIPES.try_with(|spare| {
                let mut spare = spare.borrow_mut();
                if spare.len() < SPARE {
                    spare.push(pipe);
                }
            });
        }
    }

    /// Forgets what the pipe holds: other bytes go out next.
    pub(crate) fn forget(&mut self) {
        self.pipe.take_if(|pipe| pipe.held.is_some());
    }
}

/// Settles what the socket has taken: at once, or when it is acknowledged.
fn account_for(kernel: &impl Kernel, taken: Memory, terms: &Terms<'_>) {
    let bytes = taken.len() as u64;
    let Some(acknowledgements) = terms.acknowledgements else {
        terms.sending.count(bytes, 0, Rule::GivenAway);
        return;
    };
    if let Some(lease) = Lease::take(taken.clone(), terms.quota) {
        let notices = Arc::clone(acknowledgements);
        let part = terms.sending.part(terms.account, Some(notices));
        acknowledgements.push(kernel, lease, part);
    } else {
        taken.give_away();
        terms.sending.count(bytes, 0, Rule::GivenAway);
    }
}

fn spare_pipe() -> Option<Pipe> {
    let spare = SPARE_PIPES.try_with(|spare| spare.borrow_mut().pop());
    spare.ok().flatten().filter(Pipe::is_ours)
}

impl Pipe {
    fn new(kernel: &impl Kernel) -> Result<Self, MemoryOutcome> {
        let (reader, writer) = kernel.pipe().map_err(MemoryOutcome::Unsupported)?;
        again(|| kernel.resize_pipe(writer.as_fd(), PIPE_BYTES))
            .map_err(MemoryOutcome::CopyThis)?;
        Ok(Self {
            fork_generation: fork::generation(),
            reader,
            writer,
            held: None,
        })
    }

    /// Whether the pipe is this process's own, and what it holds is what is to be sent next.
    fn goes_on_with(&self, memory: &Memory) -> bool {
        let is_next =
            |held: &Memory| held.address() == memory.address() && held.len() <= memory.len();
        self.is_ours() && self.held.as_ref().is_none_or(is_next)
    }

    /// Whether it was not inherited by a fork, to be used by both processes.
    fn is_ours(&self) -> bool {
        self.fork_generation == fork::generation()
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
        terms: &Terms<'_>,
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
            account_for(kernel, held.first(moved), terms);
        }
        self.held = (moved < held.len()).then(|| held.after(moved));
        outcome
    }
}
