//! What the page cache holds.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::{Errno, Result};

/// `struct cachestat_range` of `linux/mman.h`.
#[repr(C)]
struct Range {
    offset: u64,
    len: u64,
}

/// `struct cachestat` of `linux/mman.h`. All figures are pages.
#[repr(C)]
#[derive(Default)]
struct Figures {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// The call's number, which Linux gives to every architecture alike; libc does not list it yet.
const CACHESTAT: libc::c_long = 451;

const _: () = assert!(size_of::<Range>() == 16 && size_of::<Figures>() == 40);

/// How many pages of `len` bytes of a file, from `offset` on, are in the page cache:
/// `cachestat(2)`, Linux 6.5. Newer kernels answer `EPERM` to those who neither own nor may write
/// the file.
pub(crate) fn cached_pages(file: BorrowedFd<'_>, offset: u64, len: u64) -> Result<u64> {
    let range = Range { offset, len };
    let mut figures = Figures::default();
    let no_flags: libc::c_uint = 0;
    // SAFETY: both structures have the kernel's layout (asserted above), live until the call
    // returns, and the second may be written.
    let answer = unsafe {
        libc::syscall(
            CACHESTAT,
            file.as_raw_fd(),
            &raw const range,
            &raw mut figures,
            no_flags,
        )
    };
    if answer == 0 {
        return Ok(figures.cached);
    }
    let error = std::io::Error::last_os_error();
    Err(Errno::from_io_error(&error).unwrap_or(Errno::NOSYS))
}
