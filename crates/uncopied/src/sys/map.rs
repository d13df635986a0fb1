//! Address space that is reserved once, and files mapped into it.

use std::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;

use rustix::io::{Errno, Result};
use rustix::mm::{MapFlags, ProtFlags};

use crate::arena::FileMapping;

/// A range of addresses that is this process's own, without memory behind it. It is never given
/// back, so that an address in it can be told from every other address for good.
#[derive(Debug)]
pub(crate) struct Reservation {
    base: usize,
    len: usize,
}

impl Reservation {
    /// Reserves `len` bytes of address space, aligned to `align` (a power of two, in bytes).
    pub(crate) fn new(len: usize, align: usize) -> Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let padded = len.checked_add(align).ok_or(Errno::NOMEM)?;
        // SAFETY: without MAP_FIXED the kernel chooses addresses that nothing else uses.
        let start = unsafe {
            rustix::mm::mmap_anonymous(ptr::null_mut(), padded, ProtFlags::empty(), flags)?
        };
        let base = (start as usize).next_multiple_of(align);
        Ok(Self { base, len })
    }

    /// The first address.
    pub(crate) fn base(&self) -> usize {
        self.base
    }

    /// The length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Maps `len` bytes of a file, from `offset` on, read-only and shared, at byte `at` of the
    /// reservation. What was mapped there before is gone.
    ///
    /// The caller owns that range: no reference into it may be alive.
    pub(crate) fn map_file(
        &self,
        at: usize,
        len: usize,
        file: BorrowedFd<'_>,
        offset: u64,
    ) -> Result<()> {
        let start = self.address(at, len)?;
        let flags = MapFlags::SHARED | MapFlags::FIXED | MapFlags::NORESERVE;
        // SAFETY: `address` has checked that the range lies within the reservation, which is ours
        // alone; MAP_FIXED so replaces nothing of anybody else's. The arena hands each range to one
        // owner at a time, and that owner calls this before it hands out a reference.
        unsafe { rustix::mm::mmap(start, len, ProtFlags::READ, flags, file, offset)? };
        Ok(())
    }

    /// Takes a mapping away and leaves the range reserved.
    ///
    /// The caller owns that range: no reference into it may be alive.
    pub(crate) fn clear(&self, at: usize, len: usize) -> Result<()> {
        let start = self.address(at, len)?;
        let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
        // SAFETY: as in `map_file`; the owner calls this when it is dropped, after its last
        // reference.
        unsafe { rustix::mm::mmap_anonymous(start, len, ProtFlags::empty(), flags)? };
        Ok(())
    }

    fn address(&self, at: usize, len: usize) -> Result<*mut c_void> {
        let end = at.checked_add(len).ok_or(Errno::INVAL)?;
        if end > self.len || len == 0 {
            return Err(Errno::INVAL);
        }
        Ok(ptr::with_exposed_provenance_mut(self.base + at))
    }
}

/// See [`Kernel::send_mapped`](super::Kernel::send_mapped).
pub(super) fn send_mapped(
    sink: BorrowedFd<'_>,
    mapping: &FileMapping,
    start: usize,
    count: usize,
) -> Result<usize> {
    let end = start.checked_add(count).ok_or(Errno::INVAL)?;
    if end > mapping.len() {
        return Err(Errno::INVAL);
    }
    let address = ptr::with_exposed_provenance::<c_void>(mapping.address() + start);
    // SAFETY: the range lies within the mapping, which the reference keeps alive for the call, and
    // the kernel only reads it. A page that the file no longer has makes the kernel answer EFAULT.
    let sent = unsafe { libc::send(sink.as_fd().as_raw_fd(), address, count, libc::MSG_NOSIGNAL) };
    usize::try_from(sent).map_err(|_| last_errno())
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
