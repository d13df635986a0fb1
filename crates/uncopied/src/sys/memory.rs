//! Calls that read memory by its address: what is sent may be lent, or written to by others meanwhile,
//! so that no `&[u8]` of it is ever made.

use std::ffi::c_void;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use rustix::io::Result;

use super::last_errno;
use crate::lease::Memory;

/// See [`Kernel::send_memory`](super::Kernel::send_memory).
pub(super) fn send(sink: BorrowedFd<'_>, memory: &Memory, flags: libc::c_int) -> Result<usize> {
    let flags = flags | libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    let start = ptr::with_exposed_provenance::<c_void>(memory.address());
    // SAFETY: the memory is mapped for as long as `memory` is borrowed, which is longer than the call.
    // The kernel only reads it. With MSG_ZEROCOPY it goes on reading after the call, but by references
    // to the frames of its own: whoever unmaps the memory takes nothing away from it.
    let sent = unsafe { libc::send(sink.as_raw_fd(), start, memory.len(), flags) };
    usize::try_from(sent).map_err(|_| last_errno())
}

/// See [`Kernel::vmsplice`](super::Kernel::vmsplice).
pub(super) fn vmsplice(pipe: BorrowedFd<'_>, memory: &Memory) -> Result<usize> {
    let slice = libc::iovec {
        iov_base: ptr::with_exposed_provenance_mut(memory.address()),
        iov_len: memory.len(),
    };
    // SAFETY: one slice is passed, of memory that is mapped for as long as `memory` is borrowed. Into a
    // pipe the call only reads: it takes references to the frames, as in `send`.
    let taken = unsafe {
        libc::vmsplice(
            pipe.as_raw_fd(),
            &raw const slice,
            1,
            libc::SPLICE_F_NONBLOCK,
        )
    };
    usize::try_from(taken).map_err(|_| last_errno())
}
