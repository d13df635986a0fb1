//! Memory by its address.
//!
//! What is sent may be written to meanwhile: by another process if it is a mapped file, by another
//! thread if it is a region. So no `&[u8]` of it is ever made; the kernel is given the address.

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
    /// For the lifetime of the result they must be mapped for reading, by a mapping that only the
    /// caller can take away. They may be bytes of a file, and the file may be truncated meanwhile:
    /// nothing in user space reads them.
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

    /// The first byte, for the kernel to read.
    pub(super) fn as_ptr(self) -> *const c_void {
        ptr::with_exposed_provenance(self.address)
    }

    /// The bytes as an element of a vector of buffers, of which the kernel only reads.
    pub(super) fn as_iovec(self) -> libc::iovec {
        libc::iovec {
            iov_base: self.as_ptr().cast_mut(),
            iov_len: self.len,
        }
    }
}

/// `send(2)` with `flags` and without SIGPIPE.
pub(super) fn send(sink: BorrowedFd<'_>, bytes: Mapped<'_>, flags: libc::c_int) -> Result<usize> {
    let flags = flags | libc::MSG_NOSIGNAL;
    // SAFETY: the bytes are mapped for as long as `Mapped` may be used, which includes the call, and
    // the kernel only reads them. If a truncated file no longer has a page of them, the kernel
    // reports EFAULT or a short count. With MSG_ZEROCOPY it goes on reading after the call, but
    // through its own references to the page frames, which unmapping does not take away.
    let sent = unsafe { libc::send(sink.as_raw_fd(), bytes.as_ptr(), bytes.len(), flags) };
    usize::try_from(sent).map_err(|_| last_errno())
}

/// See [`Kernel::vmsplice`](super::Kernel::vmsplice).
pub(super) fn vmsplice(pipe: BorrowedFd<'_>, bytes: Mapped<'_>) -> Result<usize> {
    let buffer = bytes.as_iovec();
    // SAFETY: one buffer is passed, which is mapped as in `send`. Into a pipe the call only reads:
    // it takes references to the page frames.
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
