//! Whether a file's bytes are in the page cache, and bringing them in.
//!
//! `sendfile` of a file that is not in the page cache waits for the disk inside the call, socket
//! non-blocking or not. An event loop asks [`is_resident`] first and lets a thread that may block
//! [`prefetch_blocking`] the pages.

use std::ops::Range;
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
pub fn prefetch_blocking(file: impl AsFd, offset: u64, len: u64) {
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

/// The stretch of a mapped file that must be [loaded](prefetch_mapping_blocking) before the next 2 MiB of `wanted`
/// can be sent without waiting for the disk; `None` if there is none. Both in bytes of the file.
///
/// What was found in the page cache is remembered with the mapping, 2 MiB by 2 MiB, and taken to be
/// there for another half second: pages that were just in use are the last to be reclaimed, and a
/// file that is sent a thousand times a second need not be asked about each time. Whoever wants half of
/// such a unit or more asks about all of it.
#[must_use]
pub fn first_uncached(mapping: &FileMapping, wanted: Range<u64>) -> Option<Range<u64>> {
    let mut cold: Option<Range<u64>> = None;
    let ahead = wanted.end.min(wanted.start.saturating_add(UNIT));
    for (unit, whole) in units(mapping, wanted.start..ahead) {
        let part = whole.start.max(wanted.start)..whole.end.min(wanted.end);
        let is_most = 2 * (part.end - part.start) >= whole.end - whole.start;
        let asked = if is_most { whole.clone() } else { part };
        match &mut cold {
            // What follows cold bytes is loaded with them: one trip to a thread that may block.
            Some(cold) => cold.end = asked.end,
            None if mapping.was_resident_within(unit, TRUST) => {}
            None if is_resident(mapping.file(), asked.start, asked.end - asked.start) => {
                if asked == whole {
                    mapping.note_resident(unit);
                }
            }
            None => cold = Some(asked),
        }
    }
    cold
}

/// As [`prefetch_blocking`], for a stretch of a mapped file. What it has brought in is remembered.
pub fn prefetch_mapping_blocking(mapping: &FileMapping, stretch: Range<u64>) {
    let len = stretch.end.saturating_sub(stretch.start);
    prefetch_blocking(mapping.file(), stretch.start, len);
    for (unit, whole) in units(mapping, stretch.clone()) {
        if stretch.start <= whole.start && whole.end <= stretch.end {
            mapping.note_resident(unit);
        }
    }
}

/// The units that hold these bytes of the file, and which bytes each of them is.
fn units(mapping: &FileMapping, bytes: Range<u64>) -> impl Iterator<Item = (usize, Range<u64>)> {
    let (base, end) = (mapping.offset(), mapping.offset() + mapping.len() as u64);
    let first = bytes.start.clamp(base, end) - base;
    let last = bytes.end.clamp(base, end) - base;
    let end_unit = if first < last { last.div_ceil(UNIT) } else { 0 };
    (first / UNIT..end_unit).map(move |unit| {
        let at = base + unit * UNIT;
        (unit as usize, at..end.min(at + UNIT))
    })
}

/// What is remembered is remembered in units of so many bytes.
const UNIT: u64 = FileMapping::UNIT;
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

    fn mapping_of(len: u64) -> FileMapping {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(len).expect("grown");
        FileMapping::new(file.into(), 0..len).expect("mapped")
    }

    /// What a thread has loaded need not be asked about again, and no more than what it has.
    #[test]
    fn what_was_loaded_is_remembered() {
        let len = 2 * UNIT + 100;
        let mapping = mapping_of(len);
        let remembered = |unit| mapping.was_resident_within(unit, TRUST);
        prefetch_mapping_blocking(&mapping, 1..2 * UNIT);
        assert_eq!([0, 1, 2].map(remembered), [false, true, false]);
        prefetch_mapping_blocking(&mapping, 2 * UNIT..len);
        assert_eq!([0, 1, 2].map(remembered), [false, true, true]);
        assert_eq!(first_uncached(&mapping, UNIT..len), None);
    }

    #[test]
    fn half_a_unit_asks_about_all_of_it() {
        let mapping = mapping_of(UNIT);
        prefetch_blocking(mapping.file(), 0, UNIT);
        assert_eq!(first_uncached(&mapping, UNIT / 2 + 1..UNIT), None);
        assert!(!mapping.was_resident_within(0, TRUST));
        assert_eq!(first_uncached(&mapping, UNIT / 2..UNIT), None);
        assert!(mapping.was_resident_within(0, TRUST));
    }

    proptest::proptest! {
        /// Whatever stretch is asked for, the units are those that it touches, in order and without a gap.
        #[test]
        fn units_cover_what_they_are_asked_for(start in 0..5 * UNIT, len in 1..3 * UNIT) {
            let mapping = mapping_of(4 * UNIT + 5);
            let end = (start + len).min(mapping.len() as u64);
            let found: Vec<_> = units(&mapping, start..start + len).collect();
            let Some((_, first)) = found.first() else {
                proptest::prop_assert!(start >= end);
                return Ok(());
            };
            proptest::prop_assert!(first.start <= start && start < first.end);
            let mut at = first.start;
            for (unit, range) in found {
                proptest::prop_assert_eq!(range.start, at);
                proptest::prop_assert_eq!(range.start, unit as u64 * UNIT);
                at = range.end;
            }
            proptest::prop_assert!(end <= at && at < end + UNIT);
        }
    }

    #[test]
    fn what_lies_past_the_end_does_not_count() {
        let file = tempfile::tempfile().expect("a temporary file");
        assert!(is_resident(&file, 0, u64::MAX));
        file.set_len(10).expect("grown");
        assert!(is_resident(&file, 10, 1));
        assert!(is_resident(&file, u64::MAX, u64::MAX));
        prefetch_blocking(&file, 0, u64::MAX);
        prefetch_blocking(&file, u64::MAX, u64::MAX);
        assert!(is_resident(&file, 0, u64::MAX));
    }
}
