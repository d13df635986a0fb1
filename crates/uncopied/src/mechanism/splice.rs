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

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::{Errno, Result};

use super::{Job, Outcome, Side, Then, again, is_unsupported};
use crate::sys::Kernel;

/// What an unprivileged pipe may be widened to (`/proc/sys/fs/pipe-max-size`), in bytes.
const PIPE_BYTES: usize = 1 << 20;

/// A pipe between the two ends, once it is needed.
#[derive(Debug, Default)]
pub(crate) struct Splice {
    pipe: Option<Pipe>,
}

#[derive(Debug)]
struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    /// Bytes in the pipe: those of the source from the job's offset on.
    held: usize,
}

impl Splice {
    pub(crate) fn step(&mut self, kernel: &impl Kernel, job: Job<'_>) -> Outcome {
        let pipe = match &mut self.pipe {
            Some(pipe) => pipe,
            none => match Pipe::new(kernel, job.want()) {
                Ok(pipe) => none.insert(pipe),
                Err(errno) => return Outcome::nothing(Then::Unsupported(errno)),
            },
        };
        if pipe.held == 0
            && let Err(then) = pipe.fill(kernel, job)
        {
            return Outcome::nothing(then);
        }
        pipe.drain(kernel, job)
    }
}

impl Pipe {
    fn new(kernel: &impl Kernel, want: usize) -> Result<Self> {
        let (reader, writer) = kernel.pipe()?;
        if want > 64 << 10 {
            // A refusal leaves the pipe as it was made, which is enough.
            let _ = kernel.resize_pipe(writer.as_fd(), PIPE_BYTES);
        }
        Ok(Self {
            reader,
            writer,
            held: 0,
        })
    }

    /// Fills the pipe until it is full or the step's share is in. The file's pages stay in the page
    /// cache; the pipe holds references.
    fn fill(&mut self, kernel: &impl Kernel, job: Job<'_>) -> std::result::Result<(), Then> {
        let want = job.want();
        while self.held < want {
            let offset = job.offset + self.held as u64;
            let writer = self.writer.as_fd();
            let count = want - self.held;
            match again(|| kernel.splice_in(job.source, offset, writer, count)) {
                Ok(0) if self.held == 0 => return Err(Then::Ended),
                Ok(0) => return Ok(()),
                Ok(taken) => self.held += taken,
                // Whatever it was: what the pipe holds goes out first. Should the cause persist, the
                // next step meets it with an empty pipe.
                Err(_) if self.held > 0 => return Ok(()),
                Err(Errno::AGAIN) => return Err(Then::Blocked(Side::Source)),
                Err(errno) if is_unsupported(errno) => return Err(Then::Unsupported(errno)),
                Err(errno) => return Err(Then::Failed(Side::Source, errno)),
            }
        }
        Ok(())
    }

    fn drain(&mut self, kernel: &impl Kernel, job: Job<'_>) -> Outcome {
        let more = job.left.is_some_and(|left| left > self.held as u64);
        let reader = self.reader.as_fd();
        match again(|| kernel.splice_out(reader, job.sink, self.held, more)) {
            // The pipe holds bytes and its writing end is ours and open: there is no end here.
            Ok(0) => Outcome::nothing(Then::Unsupported(Errno::IO)),
            Ok(moved) => {
                self.held -= moved.min(self.held);
                Outcome::moved(moved)
            }
            Err(Errno::AGAIN) => Outcome::nothing(Then::Blocked(Side::Sink)),
            Err(errno) if is_unsupported(errno) => Outcome::nothing(Then::Unsupported(errno)),
            Err(errno) => Outcome::nothing(Then::Failed(Side::Sink, errno)),
        }
    }
}
