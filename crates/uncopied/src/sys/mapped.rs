//! Memory that is passed to the kernel by address.
//!
//! Such memory may be written to while it is being sent: a mapped file by another process, a region
//! by another thread. So the code that sends it never creates a `&[u8]` to it: it only passes the
//! address to the kernel.

use std::ffi::c_void;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use rustix::io::{Errno, Result};
use rustix::pipe::PipeFlags;

use super::last_errno;

/// A range of bytes that stays mapped for `'a`. The bytes may change at any time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapped<'a> {
    address: usize,
    len: usize,
    owner: PhantomData<&'a ()>,
}

impl Mapped<'_> {
    /// Creates the range of the `len` bytes that start at `address`.
    ///
    /// # Safety
    ///
    /// The bytes must stay mapped for reading during all of `'a`, by a mapping that only the caller
    /// can remove. They may belong to a file that is truncated meanwhile, because user space never
    /// reads them.
    pub(crate) unsafe fn new(address: usize, len: usize) -> Self {
        Self {
            address,
            len,
            owner: PhantomData,
        }
    }

    /// Returns the length in bytes.
    pub(crate) fn len(self) -> usize {
        self.len
    }

    /// Returns the address of the first byte, to tell it from others.
    pub(crate) fn address(self) -> usize {
        self.address
    }

    /// Returns the first `len` bytes, or all bytes if there are fewer.
    pub(crate) fn first(self, len: usize) -> Self {
        Self {
            len: self.len.min(len),
            ..self
        }
    }

    /// Returns the address of the first byte. The kernel may read from it, but nothing may write to
    /// it.
    pub(super) fn as_ptr(self) -> *const c_void {
        ptr::with_exposed_provenance(self.address)
    }

    /// Returns the range as an `iovec`, which may only be passed to system calls that read from it.
    pub(super) fn as_iovec(self) -> libc::iovec {
        libc::iovec {
            iov_base: self.as_ptr().cast_mut(),
            iov_len: self.len,
        }
    }
}

/// Sends the bytes with `send(2)` and the given `flags`. Never raises SIGPIPE.
pub(super) fn send(sink: BorrowedFd<'_>, bytes: Mapped<'_>, flags: libc::c_int) -> Result<usize> {
    let flags = flags | libc::MSG_NOSIGNAL;
    // SAFETY: the bytes are mapped for as long as the `Mapped` is valid, which includes this call,
    // and the kernel only reads them. If they belong to a file that has been truncated, and one of
    // their pages no longer exists, the kernel returns EFAULT or a short count. With MSG_ZEROCOPY,
    // the kernel continues to read after the call, but through its own references to the page
    // frames, which keep the frames alive even if the pages are unmapped.
    let sent = unsafe { libc::send(sink.as_raw_fd(), bytes.as_ptr(), bytes.len(), flags) };
    usize::try_from(sent).map_err(|_| last_errno())
}

/// Writes all bytes to a file with `pwrite(2)`, starting at `offset`.
pub(crate) fn write_at(file: BorrowedFd<'_>, bytes: Mapped<'_>, offset: u64) -> io::Result<()> {
    write_all(bytes, offset, |bytes, at| {
        // SAFETY: the bytes are mapped, as in `send`, and the kernel only reads them.
        let count = unsafe { libc::pwrite(file.as_raw_fd(), bytes.as_ptr(), bytes.len(), at) };
        usize::try_from(count).map_err(|_| last_errno())
    })
}

/// Calls `write` with the rest of the bytes and its offset until all bytes are written.
fn write_all(
    bytes: Mapped<'_>,
    offset: u64,
    mut write: impl FnMut(Mapped<'_>, libc::off_t) -> Result<usize>,
) -> io::Result<()> {
    let mut written = 0;
    while written < bytes.len() {
        let rest = Mapped {
            address: bytes.address + written,
            len: bytes.len() - written,
            ..bytes
        };
        let at = offset.checked_add(written as u64);
        let at = at.and_then(|at| libc::off_t::try_from(at).ok());
        match write(rest, at.ok_or(Errno::OVERFLOW)?) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => written += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// The writing end of a pipe.
///
/// The type matters for `vmsplice(2)`: given the *reading* end, that call copies bytes out of the
/// pipe into the memory, which here belongs to a sender and must not change.
#[derive(Debug)]
pub(crate) struct PipeWriter(OwnedFd);

impl AsFd for PipeWriter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// See [`Kernel::pipe`](super::Kernel::pipe).
pub(super) fn pipe() -> Result<(OwnedFd, PipeWriter)> {
    let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
    let (reader, writer) = rustix::pipe::pipe_with(flags)?;
    Ok((reader, PipeWriter(writer)))
}

/// See [`Kernel::vmsplice`](super::Kernel::vmsplice).
pub(super) fn vmsplice(pipe: &PipeWriter, bytes: Mapped<'_>) -> Result<usize> {
    let buffer = bytes.as_iovec();
    // SAFETY: the list has one element, a local, whose bytes are mapped as in `send`. The
    // descriptor is the writing end of a pipe, because only `pipe` creates a `PipeWriter`, which
    // owns the descriptor. So the call moves bytes into the pipe: it does not write to the bytes,
    // and only takes references to their page frames.
    let taken = unsafe {
        libc::vmsplice(
            pipe.as_fd().as_raw_fd(),
            &raw const buffer,
            1,
            libc::SPLICE_F_NONBLOCK,
        )
    };
    usize::try_from(taken).map_err(|_| last_errno())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_is_cut_short_is_continued() {
        let content = *b"0123456789";
        // SAFETY: the bytes are those of a local.
        let bytes = unsafe { Mapped::new(content.as_ptr().expose_provenance(), content.len()) };
        let mut results = vec![Ok(3), Err(Errno::INTR), Ok(5), Ok(2)].into_iter();
        let mut calls = Vec::new();
        let result = write_all(bytes, 100, |rest, at| {
            calls.push((rest.address - bytes.address, rest.len, at));
            results.next().expect("not written yet")
        });
        result.expect("written");
        assert_eq!(calls, [(0, 10, 100), (3, 7, 103), (3, 7, 103), (8, 2, 108)]);
    }

    #[test]
    fn a_write_that_fails_is_not_continued() {
        let content = [0; 10];
        // SAFETY: the bytes are those of a local.
        let bytes = unsafe { Mapped::new(content.as_ptr().expose_provenance(), content.len()) };
        for (results, kind) in [
            (vec![Ok(3), Ok(0)], io::ErrorKind::WriteZero),
            (vec![Ok(3), Err(Errno::NOSPC)], io::ErrorKind::StorageFull),
        ] {
            let mut results = results.into_iter();
            let result = write_all(bytes, 0, |_, _| results.next().expect("no further call"));
            assert_eq!(result.expect_err("failed").kind(), kind);
        }
        let beyond = write_all(bytes, i64::MAX as u64 + 1, |_, _| Ok(10));
        let errno = beyond.expect_err("failed").raw_os_error();
        assert_eq!(errno, Some(libc::EOVERFLOW));
    }

    #[test]
    fn a_pipe_never_waits_and_is_not_inherited_by_other_programs() {
        let (reader, writer) = pipe().expect("created");
        for end in [reader.as_fd(), writer.as_fd()] {
            let flags = rustix::fs::fcntl_getfl(end).expect("read");
            assert!(flags.contains(rustix::fs::OFlags::NONBLOCK));
            let flags = rustix::io::fcntl_getfd(end).expect("read");
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        }
    }
}
