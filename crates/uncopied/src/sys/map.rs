//! Address space that is reserved once, and the files and memory that are put into it.

use std::ffi::c_void;
use std::os::fd::BorrowedFd;
use std::ptr;

use rustix::io::{Errno, Result};
use rustix::mm::{Advice, MapFlags, MprotectFlags, MremapFlags, ProtFlags};

/// A range of addresses that belongs to this process, without memory behind it at first.
///
/// It is never released: an address in it can be told from every other address for as long as the
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

    /// The first address.
    pub(crate) fn base(&self) -> usize {
        self.base
    }

    /// The length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Moves a mapping to byte `at` of the reservation, in place of what was mapped there before.
    ///
    /// The caller must own that range, and no reference into it may be alive. After an error the
    /// range must never be used again: the kernel may have left it unmapped, and then any mapping
    /// of this process may come to lie there.
    pub(crate) fn place(&self, at: usize, mapping: UnplacedMapping) -> Result<()> {
        let start = self.address(at, mapping.len)?;
        // SAFETY: the old range is exactly that of `mapping`, and nothing refers into it. `address`
        // has checked that the new range lies within the reservation, which nothing but this type
        // maps into, so that no other mapping of the process is replaced. The arena gives each
        // range to one owner at a time, and that owner calls this before it hands out a reference.
        unsafe {
            rustix::mm::mremap_fixed(
                mapping.start,
                mapping.len,
                mapping.len,
                MremapFlags::MAYMOVE,
                start,
            )?;
        }
        // Nothing is left at the old addresses that the drop could unmap.
        std::mem::forget(mapping);
        Ok(())
    }

    /// Turns a range into zeroed memory that can be read and written. With `is_huge` it consists of
    /// huge pages, if the kernel has them (`madvise(2)`: MADV_HUGEPAGE).
    ///
    /// The caller must own that range. Whatever was placed there before must have been
    /// [reset](Self::reset).
    pub(crate) fn make_accessible(&self, at: usize, len: usize, is_huge: bool) -> Result<()> {
        let start = self.address(at, len)?;
        // SAFETY: `address` has checked that the range lies within the reservation, which nothing
        // but this type maps into. The range was inaccessible, so that no reference into it exists.
        unsafe { rustix::mm::mprotect(start, len, MprotectFlags::READ | MprotectFlags::WRITE)? };
        if is_huge {
            // SAFETY: the advice changes no content. A kernel without huge pages refuses it, which
            // leaves small pages.
            let _ = unsafe { rustix::mm::madvise(start, len, Advice::LinuxHugepage) };
        }
        Ok(())
    }

    /// Returns the page frames of an [accessible](Self::make_accessible) range to the kernel
    /// (`madvise(2)`: MADV_DONTNEED).
    ///
    /// The range stays accessible and reads as zeroes. Frames that something else refers to, such
    /// as the queue of a socket, stay there with their content.
    ///
    /// The caller must own that range, and no reference into it may be alive.
    pub(crate) fn discard_frames(&self, at: usize, len: usize) -> Result<()> {
        let start = self.address(at, len)?;
        // SAFETY: `address` has checked that the range lies within the reservation. It is private
        // anonymous memory, and its owner guarantees that no reference into it is alive.
        unsafe { rustix::mm::madvise(start, len, Advice::LinuxDontNeed) }
    }

    /// Removes what is mapped in a range, and leaves the range reserved and inaccessible.
    ///
    /// The caller must own that range, and no reference into it may be alive.
    pub(crate) fn reset(&self, at: usize, len: usize) -> Result<()> {
        let start = self.address(at, len)?;
        let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
        // SAFETY: as in `place`, the range lies within the reservation. Its owner calls this when
        // it is dropped, after its last reference.
        unsafe { rustix::mm::mmap_anonymous(start, len, ProtFlags::empty(), flags)? };
        Ok(())
    }

    /// The address of byte `at`, from which on `len` bytes must lie within the reservation.
    fn address(&self, at: usize, len: usize) -> Result<*mut c_void> {
        let end = at.checked_add(len).ok_or(Errno::INVAL)?;
        if end > self.len || len == 0 {
            return Err(Errno::INVAL);
        }
        Ok(ptr::with_exposed_provenance_mut(self.base + at))
    }
}

/// A mapped file, at addresses that the kernel chose.
///
/// Mapping the file over the reservation directly would take one call less. But if a file system
/// refuses to map, the kernel has often removed what was mapped there before and does not restore
/// it: the reservation would have a hole.
#[derive(Debug)]
pub(crate) struct UnplacedMapping {
    start: *mut c_void,
    len: usize,
}

impl UnplacedMapping {
    /// Maps `len` bytes of a file from `offset` on, read-only and shared.
    pub(crate) fn new(file: BorrowedFd<'_>, offset: u64, len: usize) -> Result<Self> {
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: without MAP_FIXED the kernel chooses addresses that nothing else uses.
        let start = unsafe {
            rustix::mm::mmap(ptr::null_mut(), len, ProtFlags::READ, flags, file, offset)?
        };
        Ok(Self { start, len })
    }
}

impl Drop for UnplacedMapping {
    fn drop(&mut self) {
        // SAFETY: the range is exactly that of this mapping, and its address was never handed out.
        // After an error it stays mapped, which leaks it.
        let _ = unsafe { rustix::mm::munmap(self.start, self.len) };
    }
}
