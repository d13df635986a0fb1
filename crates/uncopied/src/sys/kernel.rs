//! The system calls that the mechanisms make, behind a trait, so that tests can make chosen calls
//! fail.
//!
//! [`Kernel`] declares the calls, and [`Linux`] makes them. A test can run the same mechanisms with
//! its own implementation of [`Kernel`].

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FallocateFlags, FlockOperation, OFlags};
use rustix::io::{Errno, Result};
use rustix::net::{RecvFlags, SendFlags};
use rustix::pipe::SpliceFlags;

use super::error_queue::{self, ErrorQueueEntry};
use super::map::MappedWindow;
use super::mapped::{self, Mapped, PipeWriter};
use super::signal::{without_sigpipe, without_sigxfsz};
use super::socket_window::{self, MapReceived, SocketWindow};
use super::tcp::{self, Acknowledged};

/// The calls that the mechanisms make.
///
/// Each method makes a single system call, unless its documentation says otherwise. No method
/// repeats a call after `EINTR`: the mechanisms do that.
pub(crate) trait Kernel {
    /// `sendfile(2)`, starting at `offset` of the source.
    fn sendfile(
        &self,
        sink: BorrowedFd<'_>,
        source: BorrowedFd<'_>,
        offset: u64,
        count: usize,
    ) -> Result<usize>;

    /// `pipe2(2)`: returns the reading and the writing end, both non-blocking.
    fn pipe(&self) -> Result<(OwnedFd, PipeWriter)>;

    /// `fcntl(F_SETPIPE_SZ)`.
    fn resize_pipe(&self, pipe: BorrowedFd<'_>, bytes: usize) -> Result<()>;

    /// `splice(2)` from a file, starting at `offset`, into a pipe.
    fn splice_in(
        &self,
        source: BorrowedFd<'_>,
        offset: u64,
        pipe: BorrowedFd<'_>,
        count: usize,
    ) -> Result<usize>;

    /// `splice(2)` from a pipe into a socket. Set `more` only if more bytes follow immediately.
    fn splice_out(
        &self,
        pipe: BorrowedFd<'_>,
        sink: BorrowedFd<'_>,
        count: usize,
        more: bool,
    ) -> Result<usize>;

    /// Returns the size of a file in bytes, using `fstat(2)`.
    fn file_size(&self, source: BorrowedFd<'_>) -> Result<u64>;

    /// `mmap(2)` of a range of a file.
    fn map_file(&self, source: BorrowedFd<'_>, offset: u64, len: usize) -> Result<MappedWindow>;

    /// `send(2)` of bytes of a mapped file. If the file has been truncated, the call sends fewer
    /// bytes or fails with `EFAULT`; it does not raise SIGBUS.
    fn send_mapped(&self, sink: BorrowedFd<'_>, bytes: Mapped<'_>) -> Result<usize>;

    /// `pread(2)`.
    fn read_at(&self, source: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> Result<usize>;

    /// `send(2)` of a slice. With `more` (`MSG_MORE`), the kernel holds back a partly filled
    /// packet, so that bytes that follow can fill it.
    fn send(&self, sink: BorrowedFd<'_>, bytes: &[u8], more: bool) -> Result<usize>;

    /// Sends the partly filled packet that a [`send`](Self::send) with `more` has held back, unless
    /// the program has corked the socket (`TCP_CORK`).
    fn push(&self, sink: BorrowedFd<'_>) -> Result<()>;

    /// `send(2)` of bytes that are given by address, without blocking. The kernel copies the bytes.
    fn send_memory(&self, sink: BorrowedFd<'_>, bytes: Mapped<'_>) -> Result<usize>;

    /// Returns the number that identifies a socket: `getsockopt(SO_COOKIE)`. All descriptors of a
    /// socket return the same number, and the kernel never gives it to another socket.
    fn socket_cookie(&self, sink: BorrowedFd<'_>) -> Result<u64>;

    /// Takes this process's lock on a socket, without waiting: `fcntl(F_SETLK)`. Fails with
    /// `EAGAIN` or `EACCES` while another process holds its lock on the socket. Does not exclude
    /// other threads of this process. When this process closes any of its descriptors of the
    /// socket, the lock is released.
    fn lock_socket(&self, sink: BorrowedFd<'_>) -> Result<()>;

    /// Whether `MSG_ZEROCOPY` has an effect on this socket: `getsockopt(SO_ZEROCOPY)`.
    fn allows_zerocopy(&self, sink: BorrowedFd<'_>) -> Result<bool>;

    /// Lets `MSG_ZEROCOPY` have an effect on this socket: `setsockopt(SO_ZEROCOPY)` (`socket(7)`).
    fn allow_zerocopy(&self, sink: BorrowedFd<'_>) -> Result<()>;

    /// `send(2)` with `MSG_ZEROCOPY`, without blocking. The kernel may read the bytes until it
    /// sends a notification, and the caller must keep them unchanged until then.
    fn send_zerocopy(&self, sink: BorrowedFd<'_>, bytes: Mapped<'_>) -> Result<usize>;

    /// Removes the first entry from the socket's error queue: `recvmsg(MSG_ERRQUEUE)`. Returns
    /// `None` if the queue is empty.
    fn read_error_queue(&self, sink: BorrowedFd<'_>) -> Result<Option<ErrorQueueEntry>>;

    /// `vmsplice(2)` into a pipe, without blocking. No bytes are copied: the pipe, and later a
    /// socket that gets the pages from the pipe, refer to the page frames for an unknown time.
    fn vmsplice(&self, pipe: &PipeWriter, bytes: Mapped<'_>) -> Result<usize>;

    /// Returns how many bytes are in the socket's queue: `ioctl(SIOCOUTQ)`. For TCP, these are the
    /// bytes that the peer has not acknowledged. For a Unix socket, they are the bytes that the
    /// peer has not read, and some bytes more, for the kernel's own data.
    fn queued_bytes(&self, sink: BorrowedFd<'_>) -> Result<u64>;

    /// Whether the socket is readable, or its stream has ended: `poll(2)`, without waiting. True if
    /// the call fails.
    fn is_readable(&self, source: BorrowedFd<'_>) -> bool;

    /// `recv(2)`. Without `may_wait`, or if the socket is non-blocking, the call does not block.
    fn recv(&self, source: BorrowedFd<'_>, buffer: &mut [u8], may_wait: bool) -> Result<usize>;

    /// Receives up to `count` bytes of a TCP socket and discards them: `recv(2)` with `MSG_TRUNC`
    /// (`tcp(7)`) and without a buffer, so no byte can be copied. A socket that does not know this
    /// use of the flag fails with `EFAULT`. Waits like [`recv`](Self::recv).
    fn discard(&self, source: BorrowedFd<'_>, count: usize, may_wait: bool) -> Result<usize>;

    /// Returns 1 if the next byte of the stream can be received without waiting, and 0 at the end
    /// of the stream: `recv(2)` with `MSG_PEEK`. Fails with `EAGAIN` if nothing has arrived.
    fn peek(&self, source: BorrowedFd<'_>) -> Result<usize>;

    /// `splice(2)` from a socket into a pipe. If the socket is blocking and has no bytes, the call
    /// waits. It does not wait for the pipe.
    fn splice_receive(
        &self,
        source: BorrowedFd<'_>,
        pipe: BorrowedFd<'_>,
        count: usize,
    ) -> Result<usize>;

    /// `splice(2)` from a pipe into a file: at this offset, or where the descriptor itself stands.
    fn splice_to_file(
        &self,
        pipe: BorrowedFd<'_>,
        sink: BorrowedFd<'_>,
        offset: Option<u64>,
        count: usize,
    ) -> Result<usize>;

    /// `read(2)`, where the descriptor itself stands.
    fn read(&self, source: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize>;

    /// `copy_file_range(2)` between two files, from and to where the descriptors themselves stand.
    fn copy_file_range(
        &self,
        source: BorrowedFd<'_>,
        sink: BorrowedFd<'_>,
        count: usize,
    ) -> Result<usize>;

    /// `sendfile(2)` into a file, from and to where the descriptors themselves stand.
    fn sendfile_here(
        &self,
        source: BorrowedFd<'_>,
        sink: BorrowedFd<'_>,
        count: usize,
    ) -> Result<usize>;

    /// `splice(2)` between a pipe and another descriptor, from and to where the descriptors
    /// themselves stand. Without `may_wait`, the call does not wait for a pipe. `to_file` says that
    /// the sink is a file: the call may then raise SIGXFSZ, and otherwise SIGPIPE.
    fn splice(
        &self,
        source: BorrowedFd<'_>,
        sink: BorrowedFd<'_>,
        count: usize,
        may_wait: bool,
        to_file: bool,
    ) -> Result<usize>;

    /// `pwrite(2)` at this offset, or `write(2)` where the descriptor itself stands.
    fn write(&self, sink: BorrowedFd<'_>, bytes: &[u8], offset: Option<u64>) -> Result<usize>;

    /// Opens the file of a descriptor again, for writing and without `O_DIRECT`: `open(2)` of its
    /// entry in `/proc`.
    fn reopen_buffered(&self, sink: BorrowedFd<'_>) -> Result<OwnedFd>;

    /// Reserves space for `len` bytes of a file, without changing its size: `fallocate(2)` with
    /// `FALLOC_FL_KEEP_SIZE`.
    fn reserve(&self, sink: BorrowedFd<'_>, offset: u64, len: u64) -> Result<()>;

    /// Whether the sink accepts bytes, or has failed: `poll(2)`, without waiting. True if the call
    /// fails.
    fn is_writable(&self, sink: BorrowedFd<'_>) -> bool;

    /// Whether a protocol on top of TCP, such as kernel TLS, processes the bytes of the socket:
    /// `getsockopt(TCP_ULP)`.
    fn has_upper_protocol(&self, source: BorrowedFd<'_>) -> Result<bool>;

    /// Whether urgent data comes next in the stream: `sockatmark(3)`.
    fn is_at_mark(&self, source: BorrowedFd<'_>) -> Result<bool>;

    /// Creates a window of `len` bytes for [`map_receive`](Self::map_receive): `mmap(2)` of a TCP
    /// socket.
    fn map_window(&self, source: BorrowedFd<'_>, len: usize) -> Result<SocketWindow>;

    /// Maps received pages into the window, after those that are mapped there:
    /// `getsockopt(TCP_ZEROCOPY_RECEIVE)`. Does not block: if nothing has been received, the result
    /// is zeroes.
    fn map_receive(&self, source: BorrowedFd<'_>, window: &mut SocketWindow)
    -> Result<MapReceived>;

    /// Returns how many bytes the peer has acknowledged. Makes two calls: `ioctl(SIOCOUTQ)`, and
    /// then `getsockopt(TCP_INFO)` (`tcp(7)`).
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

    fn pipe(&self) -> Result<(OwnedFd, PipeWriter)> {
        mapped::pipe()
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

    fn file_size(&self, source: BorrowedFd<'_>) -> Result<u64> {
        let stat = rustix::fs::fstat(source)?;
        u64::try_from(stat.st_size).map_err(|_| Errno::OVERFLOW)
    }

    fn map_file(&self, source: BorrowedFd<'_>, offset: u64, len: usize) -> Result<MappedWindow> {
        MappedWindow::new(source, offset, len)
    }

    fn send_mapped(&self, sink: BorrowedFd<'_>, bytes: Mapped<'_>) -> Result<usize> {
        mapped::send(sink, bytes, 0)
    }

    fn read_at(&self, source: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> Result<usize> {
        rustix::io::pread(source, buffer, offset)
    }

    fn send(&self, sink: BorrowedFd<'_>, bytes: &[u8], more: bool) -> Result<usize> {
        let mut flags = SendFlags::NOSIGNAL;
        flags.set(SendFlags::MORE, more);
        rustix::net::send(sink, bytes, flags)
    }

    fn push(&self, sink: BorrowedFd<'_>) -> Result<()> {
        // Removing the cork sends what is held back, even if the socket is not corked (`tcp(7)`).
        match rustix::net::sockopt::tcp_cork(sink)? {
            true => Ok(()),
            false => rustix::net::sockopt::set_tcp_cork(sink, false),
        }
    }

    fn send_memory(&self, sink: BorrowedFd<'_>, bytes: Mapped<'_>) -> Result<usize> {
        mapped::send(sink, bytes, libc::MSG_DONTWAIT)
    }

    fn socket_cookie(&self, sink: BorrowedFd<'_>) -> Result<u64> {
        rustix::net::sockopt::socket_cookie(sink)
    }

    fn lock_socket(&self, sink: BorrowedFd<'_>) -> Result<()> {
        rustix::fs::fcntl_lock(sink, FlockOperation::NonBlockingLockExclusive)
    }

    fn allows_zerocopy(&self, sink: BorrowedFd<'_>) -> Result<bool> {
        error_queue::is_allowed(sink)
    }

    fn allow_zerocopy(&self, sink: BorrowedFd<'_>) -> Result<()> {
        error_queue::allow(sink)
    }

    fn send_zerocopy(&self, sink: BorrowedFd<'_>, bytes: Mapped<'_>) -> Result<usize> {
        mapped::send(sink, bytes, libc::MSG_DONTWAIT | libc::MSG_ZEROCOPY)
    }

    fn read_error_queue(&self, sink: BorrowedFd<'_>) -> Result<Option<ErrorQueueEntry>> {
        error_queue::read(sink)
    }

    fn vmsplice(&self, pipe: &PipeWriter, bytes: Mapped<'_>) -> Result<usize> {
        mapped::vmsplice(pipe, bytes)
    }

    fn queued_bytes(&self, sink: BorrowedFd<'_>) -> Result<u64> {
        tcp::queued_bytes(sink)
    }

    fn is_readable(&self, source: BorrowedFd<'_>) -> bool {
        let mut ready = [PollFd::from_borrowed_fd(source, PollFlags::IN)];
        let polled = poll(&mut ready, Some(&Timespec::default()));
        // The event `ERR` alone means that the error queue has entries.
        polled.is_err()
            || ready[0]
                .revents()
                .intersects(PollFlags::IN | PollFlags::HUP)
    }

    fn recv(&self, source: BorrowedFd<'_>, buffer: &mut [u8], may_wait: bool) -> Result<usize> {
        let mut flags = RecvFlags::empty();
        flags.set(RecvFlags::DONTWAIT, !may_wait);
        let (received, _) = rustix::net::recv(source, buffer, flags)?;
        Ok(received)
    }

    fn discard(&self, source: BorrowedFd<'_>, count: usize, may_wait: bool) -> Result<usize> {
        tcp::discard(source, count, may_wait)
    }

    fn peek(&self, source: BorrowedFd<'_>) -> Result<usize> {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let (received, _) = rustix::net::recv(source, &mut [0; 1], flags)?;
        Ok(received)
    }

    fn splice_receive(
        &self,
        source: BorrowedFd<'_>,
        pipe: BorrowedFd<'_>,
        count: usize,
    ) -> Result<usize> {
        let flags = SpliceFlags::NONBLOCK;
        without_sigpipe(|| rustix::pipe::splice(source, None, pipe, None, count, flags))
    }

    fn splice_to_file(
        &self,
        pipe: BorrowedFd<'_>,
        sink: BorrowedFd<'_>,
        mut offset: Option<u64>,
        count: usize,
    ) -> Result<usize> {
        let flags = SpliceFlags::NONBLOCK;
        let is_seekable = offset.is_some();
        let mut splice = || {
            without_sigxfsz(|| {
                rustix::pipe::splice(pipe, None, sink, offset.as_mut(), count, flags)
            })
        };
        match is_seekable {
            true => splice(),
            false => without_sigpipe(splice),
        }
    }

    fn read(&self, source: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize> {
        rustix::io::read(source, buffer)
    }

    fn copy_file_range(
        &self,
        source: BorrowedFd<'_>,
        sink: BorrowedFd<'_>,
        count: usize,
    ) -> Result<usize> {
        without_sigxfsz(|| rustix::fs::copy_file_range(source, None, sink, None, count))
    }

    fn sendfile_here(
        &self,
        source: BorrowedFd<'_>,
        sink: BorrowedFd<'_>,
        count: usize,
    ) -> Result<usize> {
        without_sigxfsz(|| rustix::fs::sendfile(sink, source, None, count))
    }

    fn splice(
        &self,
        source: BorrowedFd<'_>,
        sink: BorrowedFd<'_>,
        count: usize,
        may_wait: bool,
        to_file: bool,
    ) -> Result<usize> {
        let mut flags = SpliceFlags::empty();
        flags.set(SpliceFlags::NONBLOCK, !may_wait);
        let splice = || rustix::pipe::splice(source, None, sink, None, count, flags);
        // Looking up whether a signal has to be suppressed takes a system call.
        match to_file {
            true => without_sigxfsz(splice),
            false => without_sigpipe(splice),
        }
    }

    fn write(&self, sink: BorrowedFd<'_>, bytes: &[u8], offset: Option<u64>) -> Result<usize> {
        match offset {
            Some(offset) => without_sigxfsz(|| rustix::io::pwrite(sink, bytes, offset)),
            None => without_sigpipe(|| without_sigxfsz(|| rustix::io::write(sink, bytes))),
        }
    }

    fn reopen_buffered(&self, sink: BorrowedFd<'_>) -> Result<OwnedFd> {
        let path = format!("/proc/thread-self/fd/{}", sink.as_raw_fd());
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, rustix::fs::Mode::empty())
    }

    fn reserve(&self, sink: BorrowedFd<'_>, offset: u64, len: u64) -> Result<()> {
        let mode = FallocateFlags::KEEP_SIZE;
        without_sigxfsz(|| rustix::fs::fallocate(sink, mode, offset, len))
    }

    fn is_writable(&self, sink: BorrowedFd<'_>) -> bool {
        let mut ready = [PollFd::from_borrowed_fd(sink, PollFlags::OUT)];
        let polled = poll(&mut ready, Some(&Timespec::default()));
        polled.is_err() || !ready[0].revents().is_empty()
    }

    fn has_upper_protocol(&self, source: BorrowedFd<'_>) -> Result<bool> {
        tcp::has_upper_protocol(source)
    }

    fn is_at_mark(&self, source: BorrowedFd<'_>) -> Result<bool> {
        tcp::is_at_mark(source)
    }

    fn map_window(&self, source: BorrowedFd<'_>, len: usize) -> Result<SocketWindow> {
        SocketWindow::new(source, len)
    }

    fn map_receive(
        &self,
        source: BorrowedFd<'_>,
        window: &mut SocketWindow,
    ) -> Result<MapReceived> {
        socket_window::map_receive(source, window)
    }

    fn acknowledged(&self, sink: BorrowedFd<'_>) -> Result<Acknowledged> {
        tcp::acknowledged(sink)
    }
}
