//! Address space that is reserved once, and files mapped into it.

use std::ffi::c_void;
use std::os::fd::BorrowedFd;
use std::ptr;

use rustix::io::{Errno, Result};
use rustix::mm::{Advice, MapFlags, MprotectFlags, MremapFlags, ProtFlags};

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

    /// Moves a mapping to byte `at` of the reservation. What was mapped there before is gone.
    ///
    /// The caller owns that range: no reference into it may be alive. After an error it must never be
    /// used again, because the kernel may have left it unmapped, for mappings of anybody else.
    pub(crate) fn place(&self, at: usize, mapping: UnplacedMapping) -> Result<()> {
        let start = self.address(at, mapping.len)?;
        // SAFETY: the old range is that of `mapping`, whole, and nothing refers into it. `address`
        // has checked that the new one lies within the reservation, which is ours alone, so that
        // nothing of anybody else's is replaced. The arena hands each range to one owner at a time,
        // and that owner calls this before it hands out a reference.
        unsafe {
            rustix::mm::mremap_fixed(
                mapping.start,
                mapping.len,
                mapping.len,
                MremapFlags::MAYMOVE,
                start,
            )?;
        }
        // Nothing is left where it was.
        std::mem::forget(mapping);
        Ok(())
    }

    /// Makes a range memory that can be read and written, all zeroes; of huge pages where that is asked
    /// for and the kernel has them (`madvise(2)`: MADV_HUGEPAGE).
    ///
    /// The caller owns that range, and nothing was ever placed there that is not cleared.
    pub(crate) fn open(&self, at: usize, len: usize, is_huge: bool) -> Result<()> {
        let start = self.address(at, len)?;
        // SAFETY: `address` has checked that the range lies within the reservation, which is ours
        // alone. It was inaccessible, so that nothing can refer into it.
        unsafe { rustix::mm::mprotect(start, len, MprotectFlags::READ | MprotectFlags::WRITE)? };
        if is_huge {
            // SAFETY: the advice changes no content. A kernel without huge pages refuses it.
            let _ = unsafe { rustix::mm::madvise(start, len, Advice::LinuxHugepage) };
        }
        Ok(())
    }

    /// Gives the frames of an [open](Self::open) range back (`madvise(2)`: MADV_DONTNEED). Whoever else
    /// refers to them, as a socket's queue does, keeps them as they are; the range is zeroes from now on.
    ///
    /// The caller owns that range: no reference into it may be alive.
    pub(crate) fn discard(&self, at: usize, len: usize) -> Result<()> {
        let start = self.address(at, len)?;
        // SAFETY: the range lies within the reservation, is private anonymous memory, and its owner
        // says that nothing refers to what is in it.
        unsafe { rustix::mm::madvise(start, len, Advice::LinuxDontNeed) }
    }

    /// Takes a mapping away and leaves the range reserved.
    ///
    /// The caller owns that range: no reference into it may be alive.
    pub(crate) fn clear(&self, at: usize, len: usize) -> Result<()> {
        let start = self.address(at, len)?;
        let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
        // SAFETY: as in `place`; the owner calls this when it is dropped, after its last
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

/// A file, mapped wherever the kernel likes.
///
/// Mapping it over the reservation at once would be one call less. But where a file system refuses to
/// map, the kernel has often taken away what was there before, and does not put it back: the
/// reservation would have a hole.
#[derive(Debug)]
pub(crate) struct UnplacedMapping {
    start: *mut c_void,
    len: usize,
}

impl UnplacedMapping {
    /// Maps `len` bytes of a file, from `offset` on, read-only and shared.
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
        // SAFETY: the range is that of this mapping, whole, and its address was never handed out. An
        // error leaves it mapped: leaked.
        let _ = unsafe { rustix::mm::munmap(self.start, self.len) };
    }
}
