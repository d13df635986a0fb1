//! The pipe between two calls of `splice(2)`.
//!
//! A pipe holds slots, not bytes. What went into it and did not come out is dropped with it: the
//! mechanisms that use it have a source that can be read again from the last byte that the sink
//! accepted.

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, Result};

use super::{Outcome, Side, Status, is_unsupported, retry_on_intr};
use crate::sys::Kernel;
use crate::sys::fork::OwnerProcess;

/// The size asked for, in bytes: the most that needs no privilege (`/proc/sys/fs/pipe-max-size`).
const WIDE_PIPE_BYTES: usize = 1 << 20;

/// What a pipe holds when it is made, in bytes (`pipe(7)`).
const DEFAULT_PIPE_BYTES: usize = 64 << 10;

/// Idle pipes cached per thread.
///
/// All pipes of a user together may hold 64 MiB (`/proc/sys/fs/pipe-user-pages-soft`), beyond which
/// new ones hold two pages each. If every connection kept the pipe that it once needed, new pipes
/// would soon be useless.
const MAX_IDLE_PIPES: usize = 8;

thread_local! {
    static IDLE_PIPES: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// Both ends of a pipe, and how many bytes are in it.
#[derive(Debug)]
pub(crate) struct Pipe {
    owner_process: OwnerProcess,
    reader: OwnedFd,
    writer: OwnedFd,
    held: usize,
}

impl Pipe {
    /// A pipe for transfers of `bytes`. It is as wide as the kernel allows, which may be one page.
    ///
    /// # Errors
    ///
    /// Those of `pipe2(2)`.
    pub(crate) fn new(kernel: &impl Kernel, bytes: usize) -> Result<Self> {
        let pipe = Self::of_default_size(kernel)?;
        if bytes > DEFAULT_PIPE_BYTES {
            // If this fails, the pipe works as it is.
            let _ = kernel.resize_pipe(pipe.writer(), WIDE_PIPE_BYTES);
        }
        Ok(pipe)
    }

    /// An idle pipe of this thread, or a new one, that holds [`WIDE_PIPE_BYTES`].
    ///
    /// # Errors
    ///
    /// Whether the pipe could not be made, or not be widened.
    pub(crate) fn wide(kernel: &impl Kernel) -> std::result::Result<Self, WidePipeError> {
        if let Some(pipe) = take_idle() {
            return Ok(pipe);
        }
        let pipe = Self::of_default_size(kernel).map_err(WidePipeError::NoPipe)?;
        retry_on_intr(|| kernel.resize_pipe(pipe.writer(), WIDE_PIPE_BYTES))
            .map_err(WidePipeError::TooNarrow)?;
        Ok(pipe)
    }

    fn of_default_size(kernel: &impl Kernel) -> Result<Self> {
        let (reader, writer) = kernel.pipe()?;
        Ok(Self {
            owner_process: OwnerProcess::current(),
            reader,
            writer,
            held: 0,
        })
    }

    /// Caches a [wide](Self::wide) pipe for another transfer of this thread. A pipe that holds
    /// bytes is closed instead: it must never be used for anything else.
    pub(crate) fn recycle(self) {
        if self.held > 0 || !self.is_ours() {
            return;
        }
        // A thread that is ending has no cache any more.
        let _ = IDLE_PIPES.try_with(|idle| {
            let mut idle = idle.borrow_mut();
            if idle.len() < MAX_IDLE_PIPES {
                idle.push(self);
            }
        });
    }

    /// Whether this process made the pipe. Otherwise its parent did, and may be using it.
    pub(crate) fn is_ours(&self) -> bool {
        self.owner_process.is_current()
    }

    /// How many bytes are in the pipe.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// The end to write into.
    pub(crate) fn writer(&self) -> BorrowedFd<'_> {
        self.writer.as_fd()
    }

    /// Records that `bytes` were written into the pipe.
    pub(crate) fn filled(&mut self, bytes: usize) {
        self.held += bytes;
    }

    /// Moves bytes from the pipe, which must hold some, to `sink`: `splice(2)`. `more` says that
    /// more bytes surely follow.
    pub(crate) fn drain(
        &mut self,
        kernel: &impl Kernel,
        sink: BorrowedFd<'_>,
        more: bool,
    ) -> Outcome {
        let reader = self.reader.as_fd();
        match retry_on_intr(|| kernel.splice_out(reader, sink, self.held, more)) {
            // The pipe holds bytes and its writing end is open, so this is not an end of file.
            Ok(0) => Status::Unsupported(Errno::IO).into(),
            Ok(moved) => {
                let moved = moved.min(self.held);
                self.held -= moved;
                Outcome::moved(moved)
            }
            // The pipe is not empty, so it is the sink that is full.
            Err(Errno::AGAIN) => Status::Blocked(Side::Sink).into(),
            Err(errno) if is_unsupported(errno) => Status::Unsupported(errno).into(),
            Err(errno) => Status::Failed(Side::Sink, errno).into(),
        }
    }
}

/// Why there is no wide pipe.
pub(crate) enum WidePipeError {
    /// No pipe could be made.
    NoPipe(Errno),
    /// It could not be widened.
    TooNarrow(Errno),
}

fn take_idle() -> Option<Pipe> {
    let idle = IDLE_PIPES.try_with(|idle| idle.borrow_mut().pop());
    idle.ok().flatten().filter(Pipe::is_ours)
}
