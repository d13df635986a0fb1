//! Whether a file's bytes are in the page cache, and bringing them in.
//!
//! `sendfile` of a file that is not in the page cache waits for the disk inside the call, socket
//! non-blocking or not. An event loop asks [`is_resident`] first and lets a thread that may block
//! [`load`] the pages.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::io::{Errno, ReadWriteFlags};

use crate::arena::FileMapping;
use crate::sys::cached_pages;

/// The kernel reads ahead in units of 128 KiB by default, so a page in each is a fair sample.
const SAMPLE: u64 = 128 << 10;

/// Whether reading `len` bytes of `file`, from `offset` on, would find all of them in the page cache.
/// What lies past the end of the file does not count against it.
///
/// By `cachestat(2)` (Linux 6.5), one call. Where the kernel has none, or withholds it from those who
/// may not write the file, a byte in every 128 KiB is read with `RWF_NOWAIT` (`preadv2(2)`): a
/// sample, and one call each. The same where it finds no page at all, because it finds none where the
/// pages belong to another file beneath (overlayfs), nor in the holes of a file in memory. A file
/// system that knows neither is taken as resident, because nobody can tell.
///
/// The answer can be stale the moment it is given, a page that is just being read counts as there,
/// and asking may start reading ahead; a wrong answer costs time only.
#[must_use]
pub fn is_resident(file: impl AsFd, offset: u64, len: u64) -> bool {
    let file = file.as_fd();
    let page = rustix::param::page_size() as u64;
    let first = offset / page * page;
    let Ok(stat) = rustix::fs::fstat(file) else {
        return true;
    };
    let end = offset
        .saturating_add(len)
        .min(u64::try_from(stat.st_size).unwrap_or(0));
    if first >= end {
        return true;
    }
    match cached_pages(file, first, end - first) {
        Ok(cached @ 1..) => cached >= (end - first).div_ceil(page),
        Ok(0) | Err(_) => (first..end)
            .step_by(SAMPLE as usize)
            .all(|at| is_byte_resident(file, at)),
    }
}

fn is_byte_resident(file: std::os::fd::BorrowedFd<'_>, at: u64) -> bool {
    let mut byte = [0];
    let mut buffers = [std::io::IoSliceMut::new(&mut byte)];
    let answer = rustix::io::preadv2(file, &mut buffers, at, ReadWriteFlags::NOWAIT);
    !matches!(answer, Err(Errno::AGAIN))
}

/// Brings `len` bytes of `file`, from `offset` on, into the page cache, and waits until they are
/// there. It blocks: call it from a thread that may.
///
/// It reads the bytes and forgets them, because the calls that only ask for read-ahead do not wait.
/// Errors are not told: whoever sends the bytes meets them again.
pub fn load(file: impl AsFd, offset: u64, len: u64) {
    let file = file.as_fd();
    let end = offset.saturating_add(len);
    let _ = rustix::fs::fadvise(
        file,
        offset,
        std::num::NonZeroU64::new(len),
        rustix::fs::Advice::WillNeed,
    );
    let mut buffer = vec![0; 64 << 10];
    let mut at = offset;
    while at < end {
        let want = usize::try_from(end - at).map_or(buffer.len(), |left| left.min(buffer.len()));
        match rustix::io::pread(file, &mut buffer[..want], at) {
            Ok(0) | Err(_) => return,
            Ok(read) => at += read as u64,
        }
    }
}

/// As [`is_resident`], for a mapped file that many transfers share. A file of up to 2 MiB that was
/// found resident is taken to be so for another half second: pages that were just in use are the last
/// to be reclaimed, and a file that is sent a thousand times a second need not be asked about each
/// time.
#[must_use]
pub fn is_mapping_resident(mapping: &FileMapping, offset: u64, len: u64) -> bool {
    if mapping.len() as u64 > REMEMBERED {
        return is_resident(&**mapping.file(), offset, len);
    }
    if mapping.was_resident_within(TRUST) {
        return true;
    }
    let whole = mapping.offset()..mapping.offset() + mapping.len() as u64;
    let resident = is_resident(&**mapping.file(), whole.start, whole.end - whole.start);
    if resident {
        mapping.note_resident();
    }
    resident
}

const REMEMBERED: u64 = 2 << 20;
const TRUST: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    /// A file in memory never waits for a disk. `cachestat` finds no page in its holes; without the
    /// second look each step of a transfer would load them again, on another thread, and in vain.
    #[test]
    fn holes_of_a_file_in_memory_are_resident() {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = rustix::fs::memfd_create("holes", flags).expect("made");
        rustix::fs::ftruncate(&file, 1 << 20).expect("grown");
        assert!(is_resident(&file, 0, 1 << 20));
        assert!(is_resident(&file, 4097, 2));
    }

    #[test]
    fn what_lies_past_the_end_does_not_count() {
        let file = tempfile::tempfile().expect("a temporary file");
        assert!(is_resident(&file, 0, u64::MAX));
        file.set_len(10).expect("grown");
        assert!(is_resident(&file, 10, 1));
        assert!(is_resident(&file, u64::MAX, u64::MAX));
        load(&file, 0, u64::MAX);
        load(&file, u64::MAX, u64::MAX);
        assert!(is_resident(&file, 0, u64::MAX));
    }
}
