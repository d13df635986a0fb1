//! Moves a file to a socket by `sendfile(2)`.
//!
//! # Moves
//!
//! The socket's send queue takes references to the file's pages in the page cache. No byte passes
//! through user space. If the network device supports scatter-gather (`ethtool -k`), the CPU copies
//! nothing at all; otherwise the kernel copies the bytes once, without reporting it.
//!
//! # Needs
//!
//! A source that can be read at an offset, and that has pages in the page cache or a file system
//! that can read for splicing. Any stream socket.
//!
//! # Errno
//!
//! | errno | outcome |
//! |---|---|
//! | `EAGAIN` | blocked on the sink: a file is always ready, so the socket is full |
//! | `EINTR` | again: no byte was moved |
//! | `EINVAL`, `EOPNOTSUPP`, `ESPIPE` | unsupported by the file system or by the pair |
//! | `ENOSYS`, `EPERM` | unsupported in the whole process: a seccomp filter |
//! | `EOVERFLOW` | unsupported: the offset is beyond what the call accepts |
//! | `ENOMEM` | unsupported: no pages for the inner pipe; copying needs fewer |
//! | `EIO`, `EBADF`, `EISDIR`, `ESTALE` | failed, of the source: only files report these |
//! | any other | failed, of the sink: the connection is gone, or the socket has no buffers |
//!
//! procfs and some FUSE file systems cannot splice.
//!
//! # Caveats
//!
//! - The peer may receive later changes: until it has acknowledged the bytes (on the same host: has
//!   read them), a write to the file changes what it gets.
//! - 0 means the end of the file. If more bytes were promised, that is an error and never success:
//!   on a kept-alive connection the next response would land inside this one.
//! - One call moves at most 0x7ffff000 bytes, and may be cut short by a signal or for any other
//!   reason.
//! - If asked for more than the file has, Linux before 6.5 assumes that more bytes follow, and
//!   holds the last ones back for up to 200 ms (`SPLICE_F_MORE` inside). So a transfer to the end
//!   of the file asks for the file's size first.
//! - There is no `MSG_NOSIGNAL`: the caller of the system call suppresses SIGPIPE.
//! - On a blocking socket the call blocks, also on the disk, for the whole count.
//!
//! # References
//!
//! `sendfile(2)`; the kernel's `fs/splice.c`.

use rustix::io::Errno;

use super::FileStep;
use crate::mechanism::{Outcome, Side, Status, is_unsupported, retry_on_intr};
use crate::sys::Kernel;

/// It keeps nothing between steps.
#[derive(Debug, Default)]
pub(crate) struct Sendfile;

impl Sendfile {
    pub(crate) fn step(&mut self, kernel: &impl Kernel, step: FileStep<'_>) -> Outcome {
        let count = count(kernel, step);
        match retry_on_intr(|| kernel.sendfile(step.sink, step.source, step.offset, count)) {
            Ok(0) => Status::Ended.into(),
            Ok(moved) => Outcome::moved(moved),
            Err(errno) => failure(errno).into(),
        }
    }
}

/// How many bytes to ask for: no more than the file has, if it has any.
fn count(kernel: &impl Kernel, step: FileStep<'_>) -> usize {
    let want = step.want();
    if step.remaining.is_some() {
        return want;
    }
    match kernel.file_size(step.source) {
        Ok(size) if size > step.offset => {
            usize::try_from(size - step.offset).map_or(want, |left| left.min(want))
        }
        _ => want,
    }
}

fn failure(errno: Errno) -> Status {
    match errno {
        Errno::AGAIN => Status::Blocked(Side::Sink),
        errno if is_unsupported(errno) => Status::Unsupported(errno),
        // The errno does not say which end it is about. Only files report these.
        Errno::IO | Errno::BADF | Errno::ISDIR | Errno::STALE => {
            Status::Failed(Side::Source, errno)
        }
        errno => Status::Failed(Side::Sink, errno),
    }
}
