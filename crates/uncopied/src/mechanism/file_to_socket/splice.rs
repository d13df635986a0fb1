//! Moves a file to a socket with `splice(2)`, through a pipe.
//!
//! # Moves
//!
//! The pipe takes references to the file's pages, and the socket takes them from the pipe.
//! `sendfile` does the same internally. This mechanism makes two calls and needs its own pipe,
//! which may be larger than the pipe inside `sendfile`.
//!
//! # Needs
//!
//! A source on a file system that supports splicing from its files, any stream socket, and a pipe.
//!
//! # Errno
//!
//! Creating the pipe:
//!
//! | errno | outcome |
//! |---|---|
//! | any (`EMFILE`, `ENFILE`, `ENOMEM`, …) | unsupported: fall back to a mechanism without a pipe |
//!
//! Enlarging the pipe:
//!
//! | errno | outcome |
//! |---|---|
//! | any (`EPERM`, `EBUSY`, `ENOMEM`) | ignored: the transfer works with a smaller pipe |
//!
//! `EPERM` means that the user's limit on pipe pages is reached.
//!
//! From the file into the pipe:
//!
//! | errno | outcome |
//! |---|---|
//! | any, if the pipe is not empty | ignored: the pipe is drained instead |
//! | `EAGAIN` | blocked on the source |
//! | `EINVAL`, `EOPNOTSUPP`, `ESPIPE`, `ENOSYS`, `EPERM`, `EOVERFLOW`, `ENOMEM` | unsupported |
//! | any other | failed on the source |
//!
//! While the pipe holds bytes, the error may only mean that the pipe has no free slot. So these
//! bytes are sent first. If the error has another cause, the next call finds the pipe empty and
//! fails with the same error.
//!
//! From the pipe into the socket:
//!
//! | errno | outcome |
//! |---|---|
//! | `EAGAIN` | blocked on the sink: the pipe is not empty, so the socket is full |
//! | `EINVAL`, `EOPNOTSUPP`, `ESPIPE`, `ENOSYS`, `EPERM`, `EOVERFLOW`, `ENOMEM` | unsupported |
//! | any other | failed on the sink |
//!
//! If a call fails with `EINTR`, it has moved no byte and is repeated.
//!
//! # Caveats
//!
//! - Later changes to the file may reach the peer, as with `sendfile`.
//! - If the file is truncated while its pages are in the pipe, they are still sent with the
//!   contents that they had, and the next step that reads finds the new end. But if the new end is
//!   in the middle of a page, the rest of that page becomes zeros, in the pipe as well as in the
//!   socket's queue.
//! - A call with a length of `usize::MAX` would fail with `EINVAL`, so each step limits the length
//!   to less than 0x7ffff000 bytes.
//! - `SPLICE_F_MORE` tells the socket that more bytes follow. If none do, the socket holds the last
//!   bytes back for up to 200 ms. So the flag is set only if the length is exact and more bytes are
//!   certain to follow.
//! - Bytes that are in the pipe when another mechanism takes over are dropped with the pipe. No
//!   byte is lost or sent twice, because the file can be read again from the first byte that the
//!   socket has not accepted.
//!
//! # References
//!
//! `splice(2)`, `pipe(7)`, `fcntl(2)` on `F_SETPIPE_SZ`.

use std::os::fd::AsFd;

use rustix::io::Errno;

use super::FileStep;
use crate::mechanism::pipe::Pipe;
use crate::mechanism::{Outcome, Side, Status, is_unsupported, retry_on_intr};
use crate::sys::Kernel;

/// The mechanism's state: the pipe, once it has been created. The first byte in the pipe is the
/// source's byte at the next step's offset.
#[derive(Debug, Default)]
pub(crate) struct Splice {
    pipe: Option<Pipe>,
}

impl Splice {
    pub(crate) fn step(&mut self, kernel: &impl Kernel, step: FileStep<'_>) -> Outcome {
        let pipe = match &mut self.pipe {
            Some(pipe) => pipe,
            none => match Pipe::new(kernel, step.want()) {
                Ok(pipe) => none.insert(pipe),
                Err(errno) => return Status::Unsupported(errno).in_call("pipe2"),
            },
        };
        if pipe.held() == 0
            && let Err(status) = fill(pipe, kernel, step)
        {
            return status.into();
        }
        let held = pipe.held() as u64;
        let more = step.remaining.is_some_and(|remaining| remaining > held);
        pipe.drain(kernel, step.sink, more)
    }
}

/// Fills the pipe until it is full or holds as many bytes as the step may move. The file's pages
/// stay in the page cache, and the pipe holds references to them.
fn fill(pipe: &mut Pipe, kernel: &impl Kernel, step: FileStep<'_>) -> Result<(), Status> {
    let want = step.want();
    while pipe.held() < want {
        let held = pipe.held();
        let offset = step.offset + held as u64;
        let count = want - held;
        match retry_on_intr(|| kernel.splice_in(step.source, offset, pipe.writer().as_fd(), count))
        {
            Ok(0) if held == 0 => return Err(Status::Ended),
            Ok(0) => return Ok(()),
            Ok(taken) => pipe.filled(taken),
            // Ignore the error for now, so that the bytes in the pipe are sent first. If the cause
            // persists, the next call to fill the empty pipe fails in the same way.
            Err(_) if held > 0 => return Ok(()),
            Err(Errno::AGAIN) => return Err(Status::Blocked(Side::Source)),
            Err(errno) if is_unsupported(errno) => return Err(Status::Unsupported(errno)),
            Err(errno) => return Err(Status::Failed(Side::Source, errno)),
        }
    }
    Ok(())
}
