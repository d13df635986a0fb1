//! Moves a file to a socket with `sendfile(2)`.
//!
//! # Moves
//!
//! The socket's send queue takes references to the file's pages in the page cache. No byte passes
//! through user space. If the network device supports scatter-gather (`ethtool -k`), the CPU copies
//! nothing at all. Otherwise the kernel copies the bytes once, and does not report this.
//!
//! # Needs
//!
//! A source that can be read at an offset, and that either has pages in the page cache or is on a
//! file system that supports splicing from its files. Any stream socket.
//!
//! # Errno
//!
//! | errno | outcome |
//! |---|---|
//! | `EAGAIN` | blocked on the sink: a file is always ready, so the socket is full |
//! | `EINTR` | the call is repeated: no byte was moved |
//! | `EINVAL`, `EOPNOTSUPP`, `ESPIPE` | unsupported by the file system or for these descriptors |
//! | `ENOSYS`, `EPERM` | unsupported in the whole process: refused by a seccomp filter |
//! | `EOVERFLOW` | unsupported: the offset is beyond what the call accepts |
//! | `ENOMEM` | unsupported: no pages for the call's internal pipe; copying needs fewer pages |
//! | `EIO`, `EBADF`, `EISDIR`, `ESTALE` | failed on the source: only files report these |
//! | any other | failed on the sink: the connection is gone, or the socket has no buffers |
//!
//! procfs and some FUSE file systems do not support splicing, so `sendfile` fails with `EINVAL`
//! there.
//!
//! # Caveats
//!
//! - Later changes to the file may reach the peer: until the peer has acknowledged the bytes (or,
//!   on the same host, has read them), a write to the file changes what the peer receives.
//! - If the call returns 0, the file has ended. If more bytes were promised, the transfer fails.
//!   Reporting success would be wrong: on a keep-alive connection, the peer would take the next
//!   response for the rest of this one.
//! - One call moves at most 0x7ffff000 bytes. It may also move fewer bytes than requested because
//!   of a signal, or for any other reason.
//! - If a call asks for more bytes than the file has, Linux before 6.5 assumes that more bytes
//!   follow and holds the last ones back for up to 200 ms (the kernel sets `SPLICE_F_MORE`
//!   internally). So a transfer up to the end of the file first gets the file's size, and asks for
//!   no more than that.
//! - The call has no flag like `MSG_NOSIGNAL`, so [`Kernel::sendfile`] has to suppress SIGPIPE.
//! - On a blocking socket, the call blocks until all requested bytes have been read from the disk
//!   and accepted by the socket.
//!
//! # References
//!
//! `sendfile(2)`; the kernel's `fs/splice.c`.

use rustix::io::Errno;

use super::FileStep;
use crate::mechanism::{Outcome, Side, Status, is_unsupported, retry_on_intr};
use crate::sys::Kernel;

/// The mechanism, which keeps no state between steps.
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

/// Returns how many bytes to ask for. In a transfer up to the end of the file, this is no more than
/// the file has left according to its reported size. Once the offset has reached that size, the
/// full count is requested, because the size may be wrong (procfs reports 0) and only the call
/// itself can find the end.
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
        // Blame the source. The errno does not say which of the two descriptors failed, but only
        // files report these errnos.
        Errno::IO | Errno::BADF | Errno::ISDIR | Errno::STALE => {
            Status::Failed(Side::Source, errno)
        }
        errno => Status::Failed(Side::Sink, errno),
    }
}
