//! The pipe through which `splice` and `vmsplice` move pages to a socket or a file.
//!
//! A pipe has a limited number of slots, each of which refers to one page or a part of it. So it
//! can be full although it holds few bytes. Bytes that are still in the pipe when it is dropped are
//! discarded. If they came from a file or from memory, nothing is lost, because these can be read
//! again from the first byte that the sink has not accepted. If they came from a socket, they have
//! to be [read](Pipe::read) from the pipe first.

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::LocalKey;

use rustix::io::{Errno, Result};

use super::{Outcome, Side, Status, is_unsupported, retry_on_intr};
use crate::sys::fork::OwnerProcess;
use crate::sys::{Kernel, PipeWriter};

/// The capacity of a wide pipe, in bytes: the most that an unprivileged process may ask for by
/// default (`/proc/sys/fs/pipe-max-size`).
pub(crate) const WIDE_PIPE_BYTES: usize = 1 << 20;

/// The capacity of a new pipe, in bytes (`pipe(7)`).
const DEFAULT_PIPE_BYTES: usize = 64 << 10;

/// The most idle pipes that each thread caches.
///
/// All pipes of a user together may hold 64 MiB (`/proc/sys/fs/pipe-user-pages-soft`), which is 64
/// wide pipes. Beyond that, a new pipe holds only two pages. If every connection kept its pipe
/// after using it, 64 connections would reach this limit, and all further pipes would be too small
/// to be useful.
const MAX_IDLE_PIPES: usize = 8;

thread_local! {
    static WIDE_PIPES: IdlePipes = const { IdlePipes::new(MAX_IDLE_PIPES) };
}

/// Pipes of one capacity that no transfer of this thread uses.
pub(super) struct IdlePipes {
    pipes: RefCell<Vec<Pipe>>,
    max: usize,
}

impl IdlePipes {
    /// Keeps at most `max` pipes.
    pub(super) const fn new(max: usize) -> Self {
        Self {
            pipes: RefCell::new(Vec::new()),
            max,
        }
    }

    /// Returns a pipe, if there is one. Pipes that were inherited in a fork are closed.
    pub(super) fn take(of_thread: &'static LocalKey<Self>) -> Option<Pipe> {
        let pipe = of_thread.try_with(|idle| idle.pipes.borrow_mut().pop());
        pipe.ok().flatten().filter(Pipe::is_ours)
    }

    /// Keeps a pipe. If it holds bytes, it is closed instead, because the next transfer would send
    /// these bytes as its own. So is a pipe that was inherited from the parent process, which may
    /// still be using it.
    pub(super) fn keep(of_thread: &'static LocalKey<Self>, pipe: Pipe) {
        if pipe.held > 0 || !pipe.is_ours() {
            return;
        }
        // Ignore a failure, which means that the thread is ending and has already destroyed its
        // pipes.
        let _ = of_thread.try_with(|idle| {
            let mut pipes = idle.pipes.borrow_mut();
            if pipes.len() < idle.max {
                pipes.push(pipe);
            }
        });
    }
}

/// Both ends of a pipe, and the number of bytes in it.
#[derive(Debug)]
pub(crate) struct Pipe {
    owner_process: OwnerProcess,
    reader: OwnedFd,
    writer: PipeWriter,
    /// Whether the capacity is [`WIDE_PIPE_BYTES`].
    is_wide: bool,
    held: usize,
}

impl Pipe {
    /// Creates a pipe for transfers of `bytes` bytes. If these do not fit into a pipe of the
    /// default capacity, tries to enlarge the pipe. If the user's limit on pipe pages is reached,
    /// the pipe may hold as little as one page.
    ///
    /// # Errors
    ///
    /// The errors of `pipe2(2)`.
    pub(crate) fn new(kernel: &impl Kernel, bytes: usize) -> Result<Self> {
        let mut pipe = Self::of_default_size(kernel)?;
        if bytes > DEFAULT_PIPE_BYTES {
            // Ignore a failure, because the transfer also works with a smaller pipe.
            let _ = pipe.widen(kernel);
        }
        Ok(pipe)
    }

    /// Returns an idle pipe of this thread or creates one, with a capacity of [`WIDE_PIPE_BYTES`].
    ///
    /// # Errors
    ///
    /// The [`WidePipeError`] says whether the pipe could not be created or could not be enlarged.
    pub(crate) fn wide(kernel: &impl Kernel) -> std::result::Result<Self, WidePipeError> {
        if let Some(pipe) = IdlePipes::take(&WIDE_PIPES) {
            return Ok(pipe);
        }
        let mut pipe = Self::of_default_size(kernel).map_err(WidePipeError::NoPipe)?;
        retry_on_intr(|| pipe.widen(kernel)).map_err(WidePipeError::TooNarrow)?;
        Ok(pipe)
    }

    /// Creates a pipe with a capacity of `bytes`.
    ///
    /// # Errors
    ///
    /// The errors of `pipe2(2)`, and those of `fcntl(2)` with `F_SETPIPE_SZ`: `EPERM` if the user's
    /// limit on pipe pages is reached.
    pub(crate) fn of_capacity(kernel: &impl Kernel, bytes: usize) -> Result<Self> {
        let pipe = Self::of_default_size(kernel)?;
        retry_on_intr(|| kernel.resize_pipe(pipe.writer.as_fd(), bytes))?;
        Ok(pipe)
    }

    fn widen(&mut self, kernel: &impl Kernel) -> Result<()> {
        kernel.resize_pipe(self.writer.as_fd(), WIDE_PIPE_BYTES)?;
        self.is_wide = true;
        Ok(())
    }

    fn of_default_size(kernel: &impl Kernel) -> Result<Self> {
        let (reader, writer) = kernel.pipe()?;
        Ok(Self {
            owner_process: OwnerProcess::current(),
            reader,
            writer,
            is_wide: false,
            held: 0,
        })
    }

    /// Keeps a [wide](Self::wide) pipe for another transfer of this thread, if it is empty. If the
    /// pipe is narrow, it is closed, because the next transfer may be able to have a wide one.
    pub(crate) fn recycle(self) {
        if self.is_wide {
            IdlePipes::keep(&WIDE_PIPES, self);
        }
    }

    /// Whether this process created the pipe. Otherwise the pipe was inherited in a fork, and the
    /// parent process may still be using it.
    pub(crate) fn is_ours(&self) -> bool {
        self.owner_process.is_current()
    }

    /// Returns the number of bytes in the pipe.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Returns the end to write into.
    pub(crate) fn writer(&self) -> &PipeWriter {
        &self.writer
    }

    /// Records that `bytes` were written into the pipe.
    pub(crate) fn filled(&mut self, bytes: usize) {
        self.held += bytes;
    }

    /// Moves bytes from the pipe, which must not be empty, to `sink` with `splice(2)`. Set `more`
    /// only if more bytes are certain to follow: `more` lets the socket wait for them in order to
    /// fill a packet (`SPLICE_F_MORE`).
    pub(crate) fn drain(
        &mut self,
        kernel: &impl Kernel,
        sink: BorrowedFd<'_>,
        more: bool,
    ) -> Outcome {
        let reader = self.reader.as_fd();
        match retry_on_intr(|| kernel.splice_out(reader, sink, self.held, more)) {
            // Report the mechanism as unsupported, because retrying could go on forever. A result
            // of 0 is not expected: it cannot mean end of file, because the pipe holds bytes and
            // its write end is open.
            Ok(0) => Status::Unsupported(Errno::IO).into(),
            Ok(moved) => {
                let moved = moved.min(self.held);
                self.held -= moved;
                Outcome::moved(moved)
            }
            // The pipe is not empty, so it is the sink that is not ready.
            Err(Errno::AGAIN) => Status::Blocked(Side::Sink).into(),
            Err(errno) if is_unsupported(errno) => Status::Unsupported(errno).into(),
            Err(errno) => Status::Failed(Side::Sink, errno).into(),
        }
    }
}

impl Pipe {
    /// Moves bytes from the pipe, which must not be empty, to a file or a device with `splice(2)`:
    /// at this offset, or where the descriptor itself stands.
    pub(crate) fn drain_to_file(
        &mut self,
        kernel: &impl Kernel,
        sink: BorrowedFd<'_>,
        offset: Option<u64>,
    ) -> Outcome {
        let reader = self.reader.as_fd();
        match retry_on_intr(|| kernel.splice_to_file(reader, sink, offset, self.held)) {
            // As in `drain`, a result of 0 is not expected.
            Ok(0) => Status::Unsupported(Errno::IO).into(),
            Ok(moved) => {
                let moved = moved.min(self.held);
                self.held -= moved;
                Outcome::moved(moved)
            }
            // The pipe is not empty, so it is the sink that is not ready.
            Err(Errno::AGAIN) => Status::Blocked(Side::Sink).into(),
            // A seccomp filter would have refused the call that filled the pipe. So it is the file
            // that does not allow the write, which concerns no other file of the process.
            Err(Errno::PERM) => Status::Failed(Side::Sink, Errno::PERM).into(),
            Err(errno) if is_unsupported(errno) => Status::Unsupported(errno).into(),
            Err(errno) => Status::Failed(Side::Sink, errno).into(),
        }
    }

    /// Reads bytes out of the pipe, for a mechanism that cannot use it. The call is not repeated
    /// after `EINTR`.
    pub(crate) fn read(&mut self, kernel: &impl Kernel, buffer: &mut [u8]) -> Result<usize> {
        let read = kernel.read(self.reader.as_fd(), buffer)?;
        let read = read.min(self.held);
        self.held -= read;
        Ok(read)
    }
}

/// The reason why no wide pipe is available.
pub(crate) enum WidePipeError {
    /// The pipe could not be created.
    NoPipe(Errno),
    /// The pipe was created, but could not be enlarged.
    TooNarrow(Errno),
}
