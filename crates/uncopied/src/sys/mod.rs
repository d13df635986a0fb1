//! The kernel, behind types that make its calls safe. The only unsafe code of the library besides
//! the table of the [arena](crate::arena).
//!
//! [`Kernel`] lists the calls that the mechanisms make, so that a test can put a scripted kernel
//! under the same state machine; [`Linux`] makes them.

mod error_queue;
mod flights;
pub(crate) mod fork;
mod map;
mod memory;
mod page_cache;
pub(crate) mod ring;
mod signal;
mod tcp;
mod userfault;

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, Result};
use rustix::net::{SendAncillaryBuffer, SendFlags};
use rustix::pipe::{PipeFlags, SpliceFlags};

pub(crate) use error_queue::{Notice, Queued};
pub(crate) use flights::Leases;
pub(crate) use map::{LooseMapping, Reservation};
pub(crate) use page_cache::cached_pages;
pub(crate) use signal::without_sigpipe;
pub(crate) use tcp::Acknowledged;
pub(crate) use userfault::{
    Userfault, populate, replace_page, seal, wipe_on_fork, without_signals,
};

use crate::arena::FileMapping;
use crate::lease::{Lease, Memory};

/// The calls that the mechanisms make. Every one is a single system call unless it says otherwise,
/// and none is repeated after `EINTR`: that is the mechanism's business.
pub(crate) trait Kernel {
    /// `sendfile(2)` from an explicit offset.
    fn sendfile(
        &self,
        sink: BorrowedFd<'_>,
        source: BorrowedFd<'_>,
        offset: u64,
        count: usize,
    ) -> Result<usize>;

    /// `pipe2(2)`: the reading and the writing end, both non-blocking.
    fn pipe(&self) -> Result<(OwnedFd, OwnedFd)>;

    /// `fcntl(F_SETPIPE_SZ)`.
    fn resize_pipe(&self, pipe: BorrowedFd<'_>, bytes: usize) -> Result<()>;

    /// `splice(2)` from an offset of a file into a pipe.
    fn splice_in(
        &self,
        source: BorrowedFd<'_>,
        offset: u64,
        pipe: BorrowedFd<'_>,
        count: usize,
    ) -> Result<usize>;

    /// `splice(2)` from a pipe into a socket. `more` says that more bytes surely follow.
    fn splice_out(
        &self,
        pipe: BorrowedFd<'_>,
        sink: BorrowedFd<'_>,
        count: usize,
        more: bool,
    ) -> Result<usize>;

    /// The size of a file in bytes, by `fstat(2)`.
    fn size(&self, source: BorrowedFd<'_>) -> Result<u64>;

    /// Maps a range of a file into the arena: `mmap(2)`.
    fn map(&self, source: BorrowedFd<'_>, offset: u64, len: usize) -> Result<FileMapping>;

    /// `send(2)` straight from a mapping, from byte `start` of it. Where the file has been cut
    /// short the kernel answers with fewer bytes or `EFAULT`; nobody gets a SIGBUS.
    fn send_mapped(
        &self,
        sink: BorrowedFd<'_>,
        mapping: &FileMapping,
        start: usize,
        count: usize,
    ) -> Result<usize>;

    /// `pread(2)`.
    fn read_at(&self, source: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> Result<usize>;

    /// `send(2)`.
    fn send(&self, sink: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize>;

    /// `send(2)` of memory, without waiting: the kernel copies it.
    fn send_memory(&self, sink: BorrowedFd<'_>, memory: &Memory) -> Result<usize>;

    /// Whether `MSG_ZEROCOPY` has an effect: `getsockopt(SO_ZEROCOPY)`.
    fn allows_zerocopy(&self, sink: BorrowedFd<'_>) -> Result<bool>;

    /// Lets `MSG_ZEROCOPY` have an effect: `setsockopt(SO_ZEROCOPY)`.
    fn allow_zerocopy(&self, sink: BorrowedFd<'_>) -> Result<()>;

    /// `send(2)` with `MSG_ZEROCOPY`, without waiting. The kernel reads what is lent until its notice.
    fn send_lent(&self, sink: BorrowedFd<'_>, lease: &Lease) -> Result<usize>;

    /// What stands at the head of the socket's error queue, taken off: `recvmsg(MSG_ERRQUEUE)`.
    fn take_queued(&self, sink: BorrowedFd<'_>) -> Result<Option<Queued>>;

    /// `vmsplice(2)` into a pipe, without waiting. The pipe, and the socket that takes the pages from
    /// there, refer to the frames as they are; nobody says until when.
    fn vmsplice(&self, pipe: BorrowedFd<'_>, memory: &Memory) -> Result<usize>;

    /// How far the peer has acknowledged: `ioctl(SIOCOUTQ)`, then `getsockopt(TCP_INFO)`.
    fn acknowledged(&self, sink: BorrowedFd<'_>) -> Result<Acknowledged>;
}

/// The real kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Linux;

impl Kernel for Linux {
    fn sendfile(
        &self,
        sink: BorrowedFd<'_>,
        source: BorrowedFd<'_>,
        mut offset: u64,
        count: usize,
    ) -> Result<usize> {
        without_sigpipe(|| rustix::fs::sendfile(sink, source, Some(&mut offset), count))
    }

    fn pipe(&self) -> Result<(OwnedFd, OwnedFd)> {
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
    }

    fn resize_pipe(&self, pipe: BorrowedFd<'_>, bytes: usize) -> Result<()> {
        rustix::pipe::fcntl_setpipe_size(pipe, bytes).map(|_| ())
    }

    fn splice_in(
        &self,
        source: BorrowedFd<'_>,
        mut offset: u64,
        pipe: BorrowedFd<'_>,
        count: usize,
    ) -> Result<usize> {
        let flags = SpliceFlags::NONBLOCK;
        rustix::pipe::splice(source, Some(&mut offset), pipe, None, count, flags)
    }

    fn splice_out(
        &self,
        pipe: BorrowedFd<'_>,
        sink: BorrowedFd<'_>,
        count: usize,
        more: bool,
    ) -> Result<usize> {
        let mut flags = SpliceFlags::NONBLOCK;
        flags.set(SpliceFlags::MORE, more);
        without_sigpipe(|| rustix::pipe::splice(pipe, None, sink, None, count, flags))
    }

    fn size(&self, source: BorrowedFd<'_>) -> Result<u64> {
        let stat = rustix::fs::fstat(source)?;
        u64::try_from(stat.st_size).map_err(|_| Errno::OVERFLOW)
    }

    fn map(&self, source: BorrowedFd<'_>, offset: u64, len: usize) -> Result<FileMapping> {
        let file = std::fs::File::from(rustix::io::fcntl_dupfd_cloexec(source, 3)?);
        FileMapping::map(file.into(), offset, len)
    }

    fn send_mapped(
        &self,
        sink: BorrowedFd<'_>,
        mapping: &FileMapping,
        start: usize,
        count: usize,
    ) -> Result<usize> {
        map::send_mapped(sink, mapping, start, count)
    }

    fn read_at(&self, source: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> Result<usize> {
        rustix::io::pread(source, buffer, offset)
    }

    fn send(&self, sink: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize> {
        rustix::net::send(sink, bytes, SendFlags::NOSIGNAL)
    }

    fn send_memory(&self, sink: BorrowedFd<'_>, memory: &Memory) -> Result<usize> {
        memory::send(sink, memory, 0)
    }

    fn allows_zerocopy(&self, sink: BorrowedFd<'_>) -> Result<bool> {
        error_queue::is_allowed(sink)
    }

    fn allow_zerocopy(&self, sink: BorrowedFd<'_>) -> Result<()> {
        error_queue::allow(sink)
    }

    fn send_lent(&self, sink: BorrowedFd<'_>, lease: &Lease) -> Result<usize> {
        memory::send(sink, lease.memory(), libc::MSG_ZEROCOPY)
    }

    fn take_queued(&self, sink: BorrowedFd<'_>) -> Result<Option<Queued>> {
        error_queue::take(sink)
    }

    fn vmsplice(&self, pipe: BorrowedFd<'_>, memory: &Memory) -> Result<usize> {
        memory::vmsplice(pipe, memory)
    }

    fn acknowledged(&self, sink: BorrowedFd<'_>) -> Result<Acknowledged> {
        tcp::acknowledged(sink)
    }
}

/// `sendmsg(2)` of several buffers, or `send(2)` of one. Never raises SIGPIPE. `more` says that more bytes
/// surely follow at once: without that the kernel would hold the tail back for up to 200 ms.
///
/// # Errors
///
/// Whatever the kernel answers; `EINTR` is not repeated.
pub fn send_vectored(sink: impl AsFd, buffers: &[IoSlice<'_>], more: bool) -> Result<usize> {
    let mut flags = SendFlags::NOSIGNAL;
    flags.set(SendFlags::MORE, more);
    // One buffer needs no list for the kernel to read.
    if let [buffer] = buffers {
        return rustix::net::send(sink, buffer, flags);
    }
    let mut no_control = SendAncillaryBuffer::default();
    rustix::net::sendmsg(sink, buffers, &mut no_control, flags)
}

/// Milliseconds since the machine's start, by a clock that ticks every few of them and costs next to
/// nothing to read.
pub(crate) fn coarse_millis() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
