//! The system calls that a region needs for its huge pages, except those of `userfaultfd(2)`.

use std::ffi::c_void;
use std::ptr;

use rustix::io::{Errno, Result};
use rustix::mm::{Advice, MprotectFlags, MremapFlags};

/// Replaces the frame of the huge page at address `page` with a fresh frame that has the same
/// content. Everything else that refers to the old frame, such as a socket's queue, keeps the old
/// frame unchanged.
///
/// The fresh frame is first filled at `spare`, whose addresses stay accessible. Afterwards, `page`
/// is no longer registered with the userfaultfd. `page` is mapped all the time: any reader, even
/// the kernel, finds either the old frame or the fresh one.
///
/// # Errors
///
/// `ENOMEM`: there is no memory, or the process has too many mappings (`vm.max_map_count`). The
/// page is unchanged.
///
/// # Safety
///
/// - `page` and `spare` must each be the address of `len` bytes of private anonymous memory that
///   can be read and written and that belongs to the caller. The two ranges must not overlap.
/// - No reference into the spare range may exist, and no other thread may use it until this
///   returns.
/// - `page` must be [protected](super::Userfault::protect), and stay so until this returns. So
///   references into it may exist, but nothing is written through them.
pub(crate) unsafe fn replace_page(page: usize, spare: usize, len: usize) -> Result<()> {
    let from = ptr::with_exposed_provenance_mut::<c_void>(spare);
    let to = ptr::with_exposed_provenance_mut::<c_void>(page);
    // If there is no memory for the fresh frame, this returns an error. Without this call, the copy
    // below would kill the process in that case.
    //
    // SAFETY: the spare range is accessible memory that belongs to the caller.
    unsafe { populate(spare, len)? };
    // SAFETY: both ranges are `len` bytes of accessible memory, and do not overlap. Nothing else
    // uses the spare range. User code may have an exclusive reference into the page, but cannot
    // write through it: the hardware stops each store until its fault has been handled. Everything
    // that was stored before the protection was set is visible here, because setting the protection
    // synchronised with every CPU. The kernel does the same when it copies a page on a write.
    unsafe { ptr::copy_nonoverlapping(to.cast::<u8>().cast_const(), from.cast::<u8>(), len) };
    let flags = MremapFlags::MAYMOVE | MremapFlags::DONTUNMAP;
    // SAFETY: both ranges belong to the caller, and nothing has a reference into the spare range.
    // The content at the addresses of the page stays the same, because it was copied, and nothing
    // could write to the page since. So references into the page see no change.
    let moved = unsafe { rustix::mm::mremap_fixed(from, len, len, flags, to) };
    let Err(errno) = moved else { return Ok(()) };
    if !is_mapped(page, len) {
        // User code may still have references into the page, and another thread's memory could now
        // be mapped at the same addresses, so the process must not continue.
        eprintln!("uncopied: the kernel unmapped a page without replacing it ({errno}); aborting");
        std::process::abort();
    }
    Err(errno)
}

/// Whether the whole range is mapped.
pub(super) fn is_mapped(address: usize, len: usize) -> bool {
    let mut residency = vec![0_u8; len / rustix::param::page_size()];
    let start = ptr::with_exposed_provenance_mut::<c_void>(address);
    // SAFETY: the kernel only looks up the addresses, and writes one byte per page to the vector,
    // which has room for these bytes.
    unsafe { libc::mincore(start, len, residency.as_mut_ptr()) == 0 }
}

/// Allocates a page frame for each page of a range that has none yet. The frames are zeroed, and
/// huge if that was requested and is possible. Other pages keep their content.
///
/// # Safety
///
/// The range must be accessible memory that belongs to the caller.
pub(crate) unsafe fn populate(address: usize, len: usize) -> Result<()> {
    let start = ptr::with_exposed_provenance_mut::<c_void>(address);
    // SAFETY: the memory belongs to the caller, and the advice changes no content: a page that has
    // no frame yet reads as zeroes before the call and after it.
    match unsafe { rustix::mm::madvise(start, len, Advice::LinuxPopulateWrite) } {
        // Linux has this advice since 5.14. On older kernels, each page gets its frame at the first
        // write.
        Err(Errno::INVAL) => Ok(()),
        result => result,
    }
}

/// Makes a range read as zeroes in every forked child, so that no child shares its page frames
/// (`MADV_WIPEONFORK` of `madvise(2)`).
///
/// # Safety
///
/// The range must be private anonymous memory that belongs to the caller, and may only ever hold
/// plain bytes, for which zeroes are a valid value.
pub(crate) unsafe fn wipe_on_fork(address: usize, len: usize) -> Result<()> {
    let start = ptr::with_exposed_provenance_mut::<c_void>(address);
    // SAFETY: the advice changes nothing in this process. In a child, references into the range
    // then refer to zeroes. That is a valid value, and the child, which has a single thread, cannot
    // observe the change: it happens before `fork(2)` returns there.
    unsafe { rustix::mm::madvise(start, len, Advice::LinuxWipeOnFork) }
}

/// Makes a range inaccessible.
///
/// # Safety
///
/// The range must belong to the caller. No reference into it may exist, or be made as long as the
/// range is inaccessible.
pub(crate) unsafe fn make_inaccessible(address: usize, len: usize) -> Result<()> {
    let start = ptr::with_exposed_provenance_mut::<c_void>(address);
    // SAFETY: the caller owns the range, and no reference into it exists.
    unsafe { rustix::mm::mprotect(start, len, MprotectFlags::empty()) }
}

#[cfg(test)]
mod tests {
    use super::super::Reservation;
    use super::*;

    #[test]
    fn reserved_memory_is_mapped_and_address_0_is_not() {
        let page = rustix::param::page_size();
        let reserved = Reservation::new(2 * page, page).expect("reserved");
        assert!(is_mapped(reserved.base(), 2 * page));
        // Linux maps nothing at the first addresses (`vm.mmap_min_addr`).
        assert!(!is_mapped(0, page));
    }
}
