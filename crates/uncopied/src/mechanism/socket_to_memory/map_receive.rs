//! Moves a TCP socket's bytes to memory by mapping the pages that hold them, with
//! `getsockopt(TCP_ZEROCOPY_RECEIVE)`.
//!
//! # Moves
//!
//! The kernel maps the pages of received packets into a window of this process: no copy. It can map
//! a page only if the payload of a packet fills it, from its first byte to its last, and if it is
//! not a page of a file or of a process, nor a part of a larger page. The bytes between such pages
//! are copied with `recv(2)`.
//!
//! # Needs
//!
//! A TCP socket without kernel TLS (`TCP_ULP`): otherwise, the call would take the encrypted bytes.
//!
//! Packets whose payload lies in whole pages. So the payload must be a multiple of the page size
//! ([`PagePayload`](crate::PagePayload)), and the network card must put it into pages of its own,
//! without the headers ([`interface`](crate::interface)).
//!
//! # Errno
//!
//! | errno | outcome | because |
//! |---|---|---|
//! | `EIO` | `recv(2)` decides | the stream has ended, or urgent data comes next |
//! | `EINTR` | the call is repeated | no byte was moved |
//! | `EINVAL`, `EOPNOTSUPP`, `ENOPROTOOPT` | unsupported | not TCP, or an old kernel |
//! | `ENODEV`, `EACCES` | unsupported | the socket cannot be mapped |
//! | `ENOSYS`, `EPERM` | unsupported in the process | refused by a seccomp filter |
//! | `ENOMEM`, `ENOBUFS`, `EBUSY`, `EFAULT` | copied once | no memory for a window or page tables |
//! | any other | failed on the source | |
//!
//! The same holds for the `mmap(2)` that creates a window. If all windows of the socket are in use
//! by chunks that the program holds, the bytes are copied, and the errno is `ENOBUFS`.
//!
//! # Caveats
//!
//! - A process on the same machine may write to pages that it has sent with `vmsplice(2)`, even
//!   after they have been mapped here: see [`ReceivedPages`](crate::arena::ReceivedPages).
//! - A window keeps the socket open. The peer sees the end of the stream only after the last window
//!   is unmapped, unless the socket is shut down.
//! - The call could also copy up to a buffer of bytes that it cannot map (`copybuf`). This is not
//!   used: it copies urgent data as if it belonged to the stream, and, if the window becomes full
//!   within a packet, a page that could be mapped into the next window.
//! - The call takes bytes up to urgent data (`MSG_OOB`), and then nothing, as at the end of the
//!   stream. `recv(2)` skips the urgent byte.
//! - If the peer fills the receive window, the last packet that fits is shorter, and does not fill
//!   its pages. A receiver that keeps up does not have these.
//! - Timestamps that the program has asked for (`SO_TIMESTAMPING`) are not delivered.
//! - The call removes the pending error of the socket, even if bytes are queued that arrived before
//!   the error. So the error is kept until these have been received.
//!
//! # References
//!
//! The kernel's `net/ipv4/tcp.c` (`tcp_zerocopy_receive`) and
//! `tools/testing/selftests/net/tcp_mmap.c`.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::chunk::ChunkBuffer;
use super::copy;
use crate::mechanism::{Outcome, Side, Status, retry_on_intr};
use crate::sys::{Kernel, MapReceived, SocketWindow};

/// What a step has done.
pub(super) struct MapStep {
    /// Counts the bytes that were mapped.
    pub(super) outcome: Outcome,
    /// The number of bytes that were copied.
    pub(super) copied: usize,
    /// The number of bytes that were left in the socket's queue.
    pub(super) queued: usize,
    /// An error of the socket, to be reported after the last byte.
    pub(super) pending: Option<Errno>,
}

impl From<Outcome> for MapStep {
    fn from(outcome: Outcome) -> Self {
        Self {
            outcome,
            copied: 0,
            queued: 0,
            pending: None,
        }
    }
}

/// Maps received pages into the window of the chunk, and copies the bytes that follow and cannot be
/// mapped. The chunk must have [room](ChunkBuffer::has_room).
pub(super) fn step(
    kernel: &impl Kernel,
    source: BorrowedFd<'_>,
    chunk: &mut ChunkBuffer,
) -> MapStep {
    let Some(window) = chunk.window() else {
        return Outcome::from(Status::CopyOnce(Errno::NOBUFS)).into();
    };
    let received = match retry_on_intr(|| kernel.map_receive(source, window)) {
        Ok(received) => received,
        Err(Errno::IO) => MapReceived::default(),
        Err(errno) => return Outcome::from(failure(errno)).into(),
    };
    chunk.add_mapped(received.mapped);
    let is_nothing = received.mapped == 0;
    let mut step = MapStep {
        outcome: Outcome::moved(received.mapped),
        copied: 0,
        queued: received.queued,
        pending: received.error,
    };
    // If the kernel has found nothing, the queue may be empty, the stream may have ended, or urgent
    // data may come next. `recv` finds out which.
    let wanted = match received.unmappable {
        0 if is_nothing => usize::MAX,
        unmappable => unmappable,
    };
    let spare = chunk.spare();
    let wanted = wanted.min(spare.len());
    if wanted > 0 {
        let rest = copy::step(kernel, source, &mut spare[..wanted], false);
        let moved = rest.moved as usize;
        chunk.add_copied(moved);
        step.copied = moved;
        step.queued = step.queued.saturating_sub(moved);
        match rest.status {
            Status::Continue => {}
            status if is_nothing => step.outcome = status.in_call(copy::CALL),
            Status::Failed(_, errno) => step.pending = step.pending.or(Some(errno)),
            // There is less than the kernel said. The next step reports why.
            _ => {}
        }
    }
    step
}

/// Creates a window of `len` bytes, unless the bytes of the socket must not be mapped:
/// `TCP_ZEROCOPY_RECEIVE` ignores kernel TLS, and would take the encrypted bytes.
pub(super) fn create_window(
    kernel: &impl Kernel,
    source: BorrowedFd<'_>,
    len: usize,
) -> Result<SocketWindow, Outcome> {
    match kernel.has_upper_protocol(source) {
        Ok(false) => {}
        Ok(true) => return Err(Status::Unsupported(Errno::OPNOTSUPP).into()),
        Err(errno) => return Err(failure(errno).into()),
    }
    kernel
        .map_window(source, len)
        .map_err(|errno| failure(errno).in_call("mmap"))
}

fn failure(errno: Errno) -> Status {
    match errno {
        Errno::INVAL
        | Errno::OPNOTSUPP
        | Errno::NOPROTOOPT
        | Errno::NODEV
        | Errno::ACCESS
        | Errno::NOSYS
        | Errno::PERM => Status::Unsupported(errno),
        Errno::NOMEM | Errno::NOBUFS | Errno::BUSY | Errno::FAULT => Status::CopyOnce(errno),
        errno => Status::Failed(Side::Source, errno),
    }
}
