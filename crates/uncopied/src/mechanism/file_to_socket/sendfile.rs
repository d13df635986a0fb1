//! Moves a file to a socket by `sendfile(2)`.
//!
//! # Moves
//!
//! The socket's send queue takes references to the file's pages in the page cache. No byte passes
//! through user space. With a network device that gathers (`ethtool -k`: scatter-gather) the CPU
//! copies none at all; without, the kernel copies them once, silently.
//!
//! # Needs
//!
//! A source with a page cache behind it, or one whose file system can at least read for splicing,
//! and that can be read at an offset. Any stream socket.
//!
//! # Errno
//!
//! | errno | outcome | because |
//! |---|---|---|
//! | `EAGAIN` | blocked on the sink | a file is always ready; the socket's buffer is full |
//! | `EINTR` | again | no byte had moved |
//! | `EINVAL`, `EOPNOTSUPP`, `ESPIPE` | unsupported | the file system cannot splice (procfs, some FUSE), or the pair cannot |
//! | `ENOSYS`, `EPERM` | unsupported, in the whole process | a seccomp filter |
//! | `EOVERFLOW` | unsupported | an offset beyond what the call takes |
//! | `ENOMEM` | unsupported | no pages for the inner pipe: copying needs fewer |
//! | any other | failed | of the sink if the connection is gone or out of buffers (`ENOBUFS`, `ETIMEDOUT`, …), else of the source (`EIO`, …) |
//!
//! # Caveats
//!
//! - The bytes are not those of the call: until the peer has acknowledged them (on the same host:
//!   has read them), whoever writes to the file changes them.
//! - 0 means the end of the file. With bytes owed that is an error, never success: on a connection
//!   that is kept, the next response would land inside this one.
//! - One call moves at most 0x7ffff000 bytes, and may be cut short by a signal or by anything else.
//! - Asked for more than the file has, Linux before 6.5 takes it that more will follow, and holds the
//!   last bytes back for up to 200 ms (`SPLICE_F_MORE` inside). Until the end of the file the size is
//!   asked for first.
//! - There is no `MSG_NOSIGNAL`: the caller of the call keeps SIGPIPE away.
//! - On a blocking socket the call blocks, also on the disk, for the whole count.
//!
//! # References
//!
//! `sendfile(2)`; `Documentation/networking/scaling.rst` is silent on it, `fs/splice.c` is not.

use rustix::io::Errno;

use super::FileStep;
use crate::mechanism::{Outcome, Side, Status, is_unsupported, retry_on_intr};
use crate::sys::Kernel;

/// Nothing is kept between steps.
#[derive(Debug, Default)]
pub(crate) struct Sendfile;

impl Sendfile {
    pub(crate) fn step(&mut self, kernel: &impl Kernel, step: FileStep<'_>) -> Outcome {
        let count = count(kernel, step);
        match retry_on_intr(|| kernel.sendfile(step.sink, step.source, step.offset, count)) {
            Ok(0) => Status::Ended.into(),
            Ok(moved) => Outcome::moved(moved),
            Err(errno) => refusal(errno).into(),
        }
    }
}

/// How many bytes to ask for: not more than the file has, if it has any.
fn count(kernel: &impl Kernel, step: FileStep<'_>) -> usize {
    let want = step.want();
    if step.remaining.is_some() {
        return want;
    }
    match kernel.size(step.source) {
        Ok(size) if size > step.offset => {
            usize::try_from(size - step.offset).map_or(want, |left| left.min(want))
        }
        _ => want,
    }
}

fn refusal(errno: Errno) -> Status {
    match errno {
        Errno::AGAIN => Status::Blocked(Side::Sink),
        errno if is_unsupported(errno) => Status::Unsupported(errno),
        // The errno does not say which end it speaks of. These are the ones only a file answers.
        Errno::IO | Errno::BADF | Errno::ISDIR | Errno::STALE => {
            Status::Failed(Side::Source, errno)
        }
        errno => Status::Failed(Side::Sink, errno),
    }
}
