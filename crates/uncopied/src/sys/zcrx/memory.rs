//! Anonymous memory of whole pages, which is unmapped when it is dropped.

use std::ptr::{self, NonNull};

use rustix::io::{Errno, Result};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};

/// Private anonymous memory of whole pages. It starts with zeroes, and can be read and written,
/// until it is [made read-only](Self::make_read_only).
///
/// This type makes no references to the memory: those who have the address do, and argue why they
/// may.
#[derive(Debug)]
pub(super) struct PageMemory {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is not bound to a thread. This type itself neither reads nor writes it, it
// only passes the address on, and all its methods may be called from any thread.
unsafe impl Send for PageMemory {}
// SAFETY: as above.
unsafe impl Sync for PageMemory {}

impl PageMemory {
    /// Maps `len` bytes, rounded up to whole pages.
    pub(super) fn new(len: usize) -> Result<Self> {
        let page = rustix::param::page_size();
        let len = len.checked_next_multiple_of(page).ok_or(Errno::NOMEM)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: without MAP_FIXED the kernel chooses addresses that nothing else uses.
        let start =
            unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), len, access, MapFlags::PRIVATE)? };
        let start = NonNull::new(start.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self { start, len })
    }

    /// Returns the address of the first byte.
    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Returns the address of the byte at `offset`.
    ///
    /// # Safety
    ///
    /// The offset must not be larger than the length.
    pub(super) unsafe fn at(&self, offset: usize) -> NonNull<u8> {
        // SAFETY: the caller guarantees that the address is within the mapping, or at its end.
        unsafe { self.start.add(offset) }
    }

    /// Returns the length in bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Makes the memory read-only for this process. The kernel can still write to pages that it has
    /// pinned.
    pub(super) fn make_read_only(&self) -> Result<()> {
        let start = self.start.as_ptr().cast();
        // SAFETY: the range is exactly that of this mapping, and this process writes to it neither
        // now nor later: the area is written to by the kernel and the network card only.
        unsafe { rustix::mm::mprotect(start, self.len, MprotectFlags::READ) }
    }
}

impl Drop for PageMemory {
    fn drop(&mut self) {
        let start = self.start.as_ptr().cast();
        // SAFETY: the range is exactly that of this mapping. Code that makes references to the
        // memory borrows or owns this value meanwhile. If the call fails, the memory is leaked.
        let _ = unsafe { rustix::mm::munmap(start, self.len) };
    }
}
