//! Counts the pages of a file that are in the page cache.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::{Errno, Result};

/// `struct cachestat_range` of `linux/mman.h`.
#[repr(C)]
struct CacheRange {
    offset: u64,
    len: u64,
}

/// `struct cachestat` of `linux/mman.h`. All fields count pages.
#[repr(C)]
#[derive(Default)]
struct CacheStats {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// The number of the system call. It is the same on every architecture; libc does not define it
/// yet.
const SYS_CACHESTAT: libc::c_long = 451;

const _: () = assert!(size_of::<CacheRange>() == 16 && size_of::<CacheStats>() == 40);

/// Counts how many of a file's pages are in the page cache, among the `len` bytes that start at
/// `offset`. Uses `cachestat(2)`, which Linux has since version 6.5.
///
/// # Errors
///
/// - `ENOSYS`: the kernel is older than 6.5.
/// - `EPERM`: the process neither owns the file nor may write to it. Only newer kernels check this.
pub(crate) fn cached_pages(file: BorrowedFd<'_>, offset: u64, len: u64) -> Result<u64> {
    let range = CacheRange { offset, len };
    let mut stats = CacheStats::default();
    let no_flags: libc::c_uint = 0;
    // SAFETY: both structures have the kernel's layout (asserted above) and live until the call
    // returns. The kernel writes only to the second one, which is borrowed exclusively.
    let result = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_raw_fd(),
            &raw const range,
            &raw mut stats,
            no_flags,
        )
    };
    if result == 0 {
        return Ok(stats.cached);
    }
    let error = std::io::Error::last_os_error();
    Err(Errno::from_io_error(&error).unwrap_or(Errno::NOSYS))
}
