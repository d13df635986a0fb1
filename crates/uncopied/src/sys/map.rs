//! A range of addresses that is reserved once, and mappings of files outside of it.

use std::ffi::c_void;
use std::os::fd::BorrowedFd;
use std::ptr;

use rustix::io::{Errno, Result};
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};

use super::mapped::Mapped;

/// A range of addresses that is reserved for this library. At first, there is no memory behind it.
///
/// The range is never released, so an address within it belongs to this library for as long as the
/// process runs.
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

    /// Returns the first address.
    pub(crate) fn base(&self) -> usize {
        self.base
    }

    /// Returns the length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Turns a range into zeroed memory that can be read and written. With `is_huge`, the memory
    /// consists of huge pages, if the kernel provides them (`MADV_HUGEPAGE` of `madvise(2)`).
    ///
    /// # Safety
    ///
    /// The caller must own the range. If anything was mapped there before, the range must have been
    /// [reset](Self::reset) since. If this fails, the range must be reset before it is used again.
    pub(crate) unsafe fn make_accessible(
        &self,
        at: usize,
        len: usize,
        is_huge: bool,
    ) -> Result<()> {
        let start = self.address(at, len)?;
        // SAFETY: `address` has checked that the range lies within the reservation, into which only
        // this type maps anything. The caller guarantees that nothing has been mapped into the
        // range since it was reserved or reset, so no memory is there to which a reference could
        // exist or that must not be written to.
        unsafe { rustix::mm::mprotect(start, len, MprotectFlags::READ | MprotectFlags::WRITE)? };
        if is_huge {
            // SAFETY: the advice changes no content. If the kernel has no huge pages, it refuses
            // the advice, and the range consists of small pages.
            let _ = unsafe { rustix::mm::madvise(start, len, Advice::LinuxHugepage) };
        }
        Ok(())
    }

    /// Turns a range into zeroed memory that can be read but not written.
    ///
    /// # Safety
    ///
    /// The same as for [`make_accessible`](Self::make_accessible).
    pub(crate) unsafe fn make_readable(&self, at: usize, len: usize) -> Result<()> {
        let start = self.address(at, len)?;
        // SAFETY: as in `make_accessible`.
        unsafe { rustix::mm::mprotect(start, len, MprotectFlags::READ) }
    }

    /// Returns the page frames of an [accessible](Self::make_accessible) range to the kernel
    /// (`MADV_DONTNEED` of `madvise(2)`), even if the range is locked in memory (`mlock(2)`).
    ///
    /// The range stays accessible and then reads as zeroes. A frame that is also used elsewhere,
    /// such as in a socket's queue, keeps its content there.
    ///
    /// # Safety
    ///
    /// The caller must own the range, and no reference into it may exist. If this fails, the range
    /// must never be used again: it may still have its old frames, or be unmapped.
    pub(crate) unsafe fn discard_frames(&self, at: usize, len: usize) -> Result<()> {
        let start = self.address(at, len)?;
        // The kernel refuses the first advice for locked memory. The second is for that case; Linux
        // has it since 5.18.
        for advice in [Advice::LinuxDontNeed, Advice::LinuxDontneedLocked] {
            // SAFETY: `address` has checked that the range lies within the reservation. The caller
            // owns the range, which is private anonymous memory, and guarantees that no reference
            // into it exists.
            match unsafe { rustix::mm::madvise(start, len, advice) } {
                Err(Errno::INVAL) => {}
                result => return result,
            }
        }
        // SAFETY: as above.
        unsafe { map_new_frames(start, len) }
    }

    /// Unmaps whatever is mapped in a range. The range stays reserved, and becomes inaccessible.
    ///
    /// # Safety
    ///
    /// The caller must own the range, and no reference into it may exist. If this fails, the range
    /// must never be used again.
    pub(crate) unsafe fn reset(&self, at: usize, len: usize) -> Result<()> {
        let start = self.address(at, len)?;
        let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
        // SAFETY: `address` has checked that the range lies within the reservation, into which only
        // this type maps anything. So what the call replaces belongs to the caller, who guarantees
        // that nothing refers into it.
        unsafe { rustix::mm::mmap_anonymous(start, len, ProtFlags::empty(), flags)? };
        Ok(())
    }

    /// Returns the address at offset `at`. The `len` bytes that start there must lie within the
    /// reservation: otherwise, or if `len` is 0, returns `EINVAL`.
    fn address(&self, at: usize, len: usize) -> Result<*mut c_void> {
        let end = at.checked_add(len).ok_or(Errno::INVAL)?;
        if end > self.len || len == 0 {
            return Err(Errno::INVAL);
        }
        Ok(ptr::with_exposed_provenance_mut(self.base + at))
    }
}

/// Replaces the memory of a range by new zeroed memory that can be read and written, of pages of
/// the ordinary size. This is the way to get rid of the frames of locked memory before Linux 5.18.
///
/// # Safety
///
/// The range must be private anonymous memory that belongs to the caller, and no reference into it
/// may exist. If this fails, the range must never be used again: it may be unmapped.
unsafe fn map_new_frames(start: *mut c_void, len: usize) -> Result<()> {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
    // SAFETY: the memory that the call replaces belongs to the caller, and nothing refers into it.
    unsafe { rustix::mm::mmap_anonymous(start, len, access, flags)? };
    Ok(())
}

/// A part of a file that is mapped read-only, to be sent by address. No code can make a reference
/// to its bytes.
#[derive(Debug)]
pub(crate) struct MappedWindow {
    address: usize,
    len: usize,
}

impl MappedWindow {
    /// Maps `len` bytes of a file, starting at `offset`.
    pub(crate) fn new(file: BorrowedFd<'_>, offset: u64, len: usize) -> Result<Self> {
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: without MAP_FIXED the kernel chooses addresses that nothing else uses.
        let start = unsafe {
            rustix::mm::mmap(ptr::null_mut(), len, ProtFlags::READ, flags, file, offset)?
        };
        let address = start.expose_provenance();
        Ok(Self { address, len })
    }

    /// Returns the length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Returns the address range of at most `count` bytes, starting at byte `start` of the window.
    pub(crate) fn bytes(&self, start: usize, count: usize) -> Mapped<'_> {
        let start = start.min(self.len);
        let count = count.min(self.len - start);
        // SAFETY: the range lies within the mapping, which only `drop` removes. `self` is borrowed
        // for as long as the result is used.
        unsafe { Mapped::new(self.address + start, count) }
    }
}

impl Drop for MappedWindow {
    fn drop(&mut self) {
        let start = ptr::with_exposed_provenance_mut(self.address);
        // SAFETY: the range is exactly that of this mapping. No reference into it was ever made,
        // and no `Mapped` of it exists any longer, because these borrow `self`. If the call fails,
        // the range stays mapped and is leaked.
        let _ = unsafe { rustix::mm::munmap(start, self.len) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    /// Memory beyond the reservation belongs to other code, and must not be remapped. Fails if
    /// `address` checks no bounds.
    #[test]
    fn a_range_outside_of_the_reservation_is_refused() {
        const LEN: usize = 2 << 20;
        let reservation = Reservation::new(LEN, 2 << 20).expect("reserved");
        for (at, len) in [
            (0, LEN + 1),
            (LEN, 4096),
            (LEN - 4096, 8192),
            (usize::MAX - 4095, 8192),
            (0, 0),
        ] {
            assert_eq!(
                reservation.address(at, len),
                Err(Errno::INVAL),
                "{at} {len}"
            );
        }
        let last_page = reservation.address(LEN - 4096, 4096).expect("in bounds");
        assert_eq!(last_page.addr(), reservation.base() + LEN - 4096);
    }

    /// Otherwise a system call that is given the range could send whatever memory follows the
    /// window.
    #[test]
    fn no_address_range_extends_beyond_the_window() {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(10).expect("grown");
        let window = MappedWindow::new(file.as_fd(), 0, 10).expect("mapped");
        assert_eq!(window.len(), 10);
        for (start, count, expected) in [(0, 10, 10), (8, 100, 2), (10, 1, 0), (50, 1, 0)] {
            assert_eq!(window.bytes(start, count).len(), expected, "{start}");
        }
    }
}
