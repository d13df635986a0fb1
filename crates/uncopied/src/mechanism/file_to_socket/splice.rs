//! Moves a file to a socket by `splice(2)`, through a pipe.
//!
//! # Moves
//!
//! The pipe takes references to the file's pages, and the socket takes them from the pipe. This is
//! what `sendfile` does inside, in two calls and with a pipe of our own, which may be larger.
//!
//! # Needs
//!
//! A source whose file system can read for splicing, any stream socket, and a pipe.
//!
//! # Errno
//!
//! Making the pipe:
//!
//! | errno | outcome |
//! |---|---|
//! | any (`EMFILE`, `ENFILE`, `ENOMEM`, …) | unsupported: copying needs no pipe |
//!
//! Widening it:
//!
//! | errno | outcome |
//! |---|---|
//! | any (`EPERM`, `EBUSY`, `ENOMEM`) | none: a narrow pipe works |
//!
//! `EPERM` means that the user's pipe pages are used up.
//!
//! From the file into the pipe:
//!
//! | errno | outcome |
//! |---|---|
//! | any, if the pipe is not empty | drains the pipe: it may be full by slots |
//! | `EAGAIN` | blocked on the source |
//! | `EINVAL`, `EOPNOTSUPP`, `ESPIPE`, `ENOSYS`, `EPERM`, `EOVERFLOW`, `ENOMEM` | unsupported |
//! | any other | failed, of the source |
//!
//! From the pipe into the socket:
//!
//! | errno | outcome |
//! |---|---|
//! | `EAGAIN` | blocked on the sink: the pipe is not empty, so the socket is full |
//! | `EINVAL`, `EOPNOTSUPP`, `ESPIPE`, `ENOSYS`, `EPERM`, `EOVERFLOW`, `ENOMEM` | unsupported |
//! | any other | failed, of the sink |
//!
//! `EINTR` repeats a call: no byte was moved.
//!
//! # Caveats
//!
//! - The peer may receive later changes of the file, as with `sendfile`.
//! - If the file is truncated while its pages are in the pipe, they still go out as they were; the
//!   next step that reads finds the end. If a page is cut in its middle, the rest of it turns to
//!   zeroes, in the pipe as in the socket's queue.
//! - A length of `usize::MAX` is `EINVAL`; counts stay below 0x7ffff000.
//! - `SPLICE_F_MORE` holds the last bytes back for up to 200 ms: it is set only if bytes of an
//!   exact length surely follow.
//! - What the pipe holds when another mechanism takes over is dropped with the pipe. A file can be
//!   read again from the last byte that the socket accepted, so nothing is lost or doubled.
//!
//! # References
//!
//! `splice(2)`, `pipe(7)`, `fcntl(2)` on `F_SETPIPE_SZ`.

use rustix::io::Errno;

use super::FileStep;
use crate::mechanism::pipe::Pipe;
use crate::mechanism::{Outcome, Side, Status, is_unsupported, retry_on_intr};
use crate::sys::Kernel;

/// A pipe between the two ends, once it is needed. It holds the bytes of the source from the offset
/// of the next step on.
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
                Err(errno) => return Status::Unsupported(errno).into(),
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

/// Fills the pipe until it is full or holds all that the step moves. The file's pages stay in the
/// page cache; the pipe holds references to them.
fn fill(pipe: &mut Pipe, kernel: &impl Kernel, step: FileStep<'_>) -> Result<(), Status> {
    let want = step.want();
    while pipe.held() < want {
        let held = pipe.held();
        let offset = step.offset + held as u64;
        let count = want - held;
        match retry_on_intr(|| kernel.splice_in(step.source, offset, pipe.writer(), count)) {
            Ok(0) if held == 0 => return Err(Status::Ended),
            Ok(0) => return Ok(()),
            Ok(taken) => pipe.filled(taken),
            // Whatever the error: what the pipe holds goes out first. If the cause persists, the
            // next step meets it with an empty pipe.
            Err(_) if held > 0 => return Ok(()),
            Err(Errno::AGAIN) => return Err(Status::Blocked(Side::Source)),
            Err(errno) if is_unsupported(errno) => return Err(Status::Unsupported(errno)),
            Err(errno) => return Err(Status::Failed(Side::Source, errno)),
        }
    }
    Ok(())
}
