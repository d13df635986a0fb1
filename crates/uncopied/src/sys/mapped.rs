//! Memory that is sent by its address.
//!
//! Memory may be written to while it is sent: a mapped file by another process, a region by another
//! thread. So no `&[u8]` of it is ever made: the kernel is given the address.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use rustix::io::Result;

use super::last_errno;

/// A range of bytes that stays mapped for `'a`. The bytes may change at any time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapped<'a> {
    address: usize,
    len: usize,
    owner: PhantomData<&'a ()>,
}

impl Mapped<'_> {
    /// The `len` bytes from `address` on.
    ///
    /// # Safety
    ///
    /// The bytes must be mapped for reading for all of `'a`, by a mapping that only the caller can
    /// remove. They may be bytes of a file that is truncated meanwhile: user space never reads
    /// them.
    pub(crate) unsafe fn new(address: usize, len: usize) -> Self {
        Self {
            address,
            len,
            owner: PhantomData,
        }
    }

    /// The length in bytes.
    pub(crate) fn len(self) -> usize {
        self.len
    }

    /// The first `len` bytes, or all of them if there are fewer.
    pub(crate) fn first(self, len: usize) -> Self {
        Self {
            len: self.len.min(len),
            ..self
        }
    }

    /// The address of the first byte, for the kernel to read from.
    pub(super) fn as_ptr(self) -> *const c_void {
        ptr::with_exposed_provenance(self.address)
    }

    /// The bytes as an element of a vector of buffers that the kernel only reads.
    pub(super) fn as_iovec(self) -> libc::iovec {
        libc::iovec {
            iov_base: self.as_ptr().cast_mut(),
            iov_len: self.len,
        }
    }
}

/// Sends the bytes by `send(2)` with `flags`, without SIGPIPE.
pub(super) fn send(sink: BorrowedFd<'_>, bytes: Mapped<'_>, flags: libc::c_int) -> Result<usize> {
    let flags = flags | libc::MSG_NOSIGNAL;
    // SAFETY: the bytes are mapped for as long as the `Mapped` is valid, which includes this call,
    // and the kernel only reads them. If they belong to a file that was truncated and no longer has
    // one of their pages, the kernel returns EFAULT or a short count. With MSG_ZEROCOPY it goes on
    // reading after the call, but through references of its own to the page frames, which keep the
    // frames alive even if the pages are unmapped.
    let sent = unsafe { libc::send(sink.as_raw_fd(), bytes.as_ptr(), bytes.len(), flags) };
    usize::try_from(sent).map_err(|_| last_errno())
}

/// See [`Kernel::vmsplice`](super::Kernel::vmsplice).
pub(super) fn vmsplice(pipe: BorrowedFd<'_>, bytes: Mapped<'_>) -> Result<usize> {
    let buffer = bytes.as_iovec();
    // SAFETY: the list has one buffer, a local, whose bytes are mapped as in `send`. In the
    // direction into a pipe the call does not write to the bytes: it only takes references to
    // their page frames.
    let taken = unsafe {
        libc::vmsplice(
            pipe.as_raw_fd(),
            &raw const buffer,
            1,
            libc::SPLICE_F_NONBLOCK,
        )
    };
    usize::try_from(taken).map_err(|_| last_errno())
}
