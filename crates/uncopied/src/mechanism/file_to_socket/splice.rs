//! Moves a file to a socket by `splice(2)`, through a pipe.
//!
//! # Moves
//!
//! The pipe takes references to the file's pages, and the socket takes them from the pipe: what
//! `sendfile` does inside, in two calls and with a pipe of our own, which may be larger.
//!
//! # Needs
//!
//! A source whose file system can read for splicing, any stream socket, and a pipe.
//!
//! # Errno
//!
//! | step | errno | outcome | because |
//! |---|---|---|---|
//! | making the pipe | any (`EMFILE`, `ENFILE`, `ENOMEM`, …) | unsupported | copying needs no pipe |
//! | widening it | any (`EPERM`: the user's pipe pages are used up; `EBUSY`, `ENOMEM`) | none | a narrow pipe works too |
//! | into the pipe | `EAGAIN`, pipe not empty | drains the pipe | it is full by slots, however few its bytes |
//! | into the pipe | `EAGAIN`, pipe empty | blocked on the source | |
//! | into the pipe | `EINVAL`, `EOPNOTSUPP`, `ESPIPE`, `ENOSYS`, `EPERM`, `EOVERFLOW`, `ENOMEM` | unsupported | as for `sendfile` |
//! | into the pipe | any other | failed, of the source | |
//! | out of it | `EAGAIN` | blocked on the sink | the pipe is not empty, so it can only be the socket |
//! | out of it | `EINVAL`, `EOPNOTSUPP`, `ENOSYS`, `EPERM`, `ENOMEM` | unsupported | a socket that cannot take pages |
//! | out of it | any other | failed, of the sink | |
//! | both | `EINTR` | again | no byte had moved |
//!
//! # Caveats
//!
//! - The bytes may change until the peer has them, as with `sendfile`.
//! - What the pipe holds when the file is cut short still goes out, whole pages as they were: the end
//!   is found by the next step that reads. Of a page cut in its middle the rest turns to zeroes, in
//!   the pipe as in the socket's queue.
//! - A length of `usize::MAX` is `EINVAL`; counts stay below 0x7ffff000.
//! - `SPLICE_F_MORE` holds the tail back up to 200 ms: it is set only when bytes of an exact length
//!   surely follow.
//! - A pipe holds slots, not bytes. What went into it and did not come out is dropped with the pipe
//!   when another mechanism takes over: a file can be read again from the last byte that the socket
//!   took, so nothing is lost or doubled. A pipe that holds bytes is never used for anything else.
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
