//! Whether the bytes of a file are in the page cache, and how to load them into it.
//!
//! If a file is not in the page cache, `sendfile` waits for the disk inside the call, even if the
//! socket is non-blocking. An event loop calls [`is_resident`] first. If that returns `false`, it
//! calls [`prefetch_blocking`] on a thread that may block, before it sends.

use std::ops::Range;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::io::{Errno, ReadWriteFlags};

use crate::arena::FileMapping;
use crate::sys::cached_pages;

/// The distance between two bytes that are probed. The kernel reads ahead in units of 128 KiB by
/// default, so that one page of each unit is a fair sample.
const PROBE_INTERVAL_BYTES: u64 = 128 << 10;

/// Returns whether all of `len` bytes of `file`, starting at byte `offset`, are in the page cache.
///
/// Bytes past the end of the file are not counted.
///
/// # How it is determined
///
/// One call of `cachestat(2)` (Linux 6.5) counts the cached pages. In three cases one byte of every
/// 128 KiB is read with `RWF_NOWAIT` (`preadv2(2)`) instead, which is only a sample, and one call
/// for each byte:
///
/// - The kernel has no `cachestat`.
/// - The kernel refuses it to a process that may not write to the file.
/// - It counts no page at all. It does so, wrongly, if the pages belong to another file underneath
///   (overlayfs), and for the holes of a file in memory.
///
/// If the file system supports neither of the two calls, the bytes count as resident, because there
/// is no way to know.
///
/// # Accuracy
///
/// The result can be stale as soon as it is returned. A page that is being read counts as cached.
/// The probe itself may start read-ahead. A wrong result costs only time.
///
/// ```
/// use std::fs::File;
/// use uncopied::residency;
///
/// # let path = std::env::current_exe()?;
/// let file = File::open(path)?;
/// if !residency::is_resident(&file, 0, 1 << 20) {
///     let file = file.try_clone()?;
///     std::thread::spawn(move || residency::prefetch_blocking(&file, 0, 1 << 20));
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
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
            .step_by(PROBE_INTERVAL_BYTES as usize)
            .all(|at| is_byte_resident(file, at)),
    }
}

fn is_byte_resident(file: std::os::fd::BorrowedFd<'_>, at: u64) -> bool {
    let mut byte = [0];
    let mut buffers = [std::io::IoSliceMut::new(&mut byte)];
    let read = rustix::io::preadv2(file, &mut buffers, at, ReadWriteFlags::NOWAIT);
    !matches!(read, Err(Errno::AGAIN))
}

/// Loads `len` bytes of `file`, starting at byte `offset`, into the page cache.
///
/// It blocks until they are there: call it on a thread that may block. It reads the bytes and
/// discards them, because the system calls that only request read-ahead do not wait.
///
/// Errors are not reported: sending the bytes fails with them again.
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

/// Returns the range of a mapped file that must be [loaded](prefetch_mapping_blocking) before the
/// next 2 MiB of `wanted` can be sent without waiting for the disk.
///
/// Both ranges are in bytes of the file. `None` means that these 2 MiB are in the page cache. The
/// returned range starts with bytes that are not, and may contain some that are.
///
/// The mapping remembers which of its units of 2 MiB were found in the page cache, and for half a
/// second they are assumed to stay there. Pages that were just in use are the last to be reclaimed,
/// so that a file that is sent a thousand times a second need not be checked each time. If at least
/// half of a unit is wanted, the whole unit is checked.
///
/// ```
/// use std::fs::File;
/// use uncopied::{arena::FileMapping, residency};
///
/// # let path = std::env::current_exe()?;
/// let file = File::open(path)?;
/// let len = file.metadata()?.len();
/// let mapping = FileMapping::new(file.into(), 0..len)?;
/// if let Some(uncached) = residency::first_uncached(&mapping, 0..len) {
///     let mapping = mapping.clone();
///     std::thread::spawn(move || residency::prefetch_mapping_blocking(&mapping, uncached));
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
#[must_use]
pub fn first_uncached(mapping: &FileMapping, wanted: Range<u64>) -> Option<Range<u64>> {
    let mut uncached: Option<Range<u64>> = None;
    let end = wanted.end.min(wanted.start.saturating_add(UNIT_BYTES));
    for (unit, unit_range) in units(mapping, wanted.start..end) {
        let part = unit_range.start.max(wanted.start)..unit_range.end.min(wanted.end);
        let is_most = 2 * (part.end - part.start) >= unit_range.end - unit_range.start;
        let checked = if is_most { unit_range.clone() } else { part };
        match &mut uncached {
            // What follows uncached bytes is loaded with them, in one visit to a thread that may
            // block.
            Some(uncached) => uncached.end = checked.end,
            None if mapping.was_resident_within(unit, ASSUMED_RESIDENT_FOR) => {}
            None if is_resident(mapping.file(), checked.start, checked.end - checked.start) => {
                if checked == unit_range {
                    mapping.note_resident(unit);
                }
            }
            None => uncached = Some(checked),
        }
    }
    uncached
}

/// Loads a range of a mapped file, in bytes of the file, into the page cache.
///
/// It is like [`prefetch_blocking`], and blocks as well. [`first_uncached`] assumes for half a
/// second that the units of the mapping that it has loaded stay in the page cache.
pub fn prefetch_mapping_blocking(mapping: &FileMapping, range: Range<u64>) {
    let len = range.end.saturating_sub(range.start);
    prefetch_blocking(mapping.file(), range.start, len);
    for (unit, unit_range) in units(mapping, range.clone()) {
        if range.start <= unit_range.start && unit_range.end <= range.end {
            mapping.note_resident(unit);
        }
    }
}

/// The units that hold these bytes of the file: the index of each, and its bytes of the file.
fn units(mapping: &FileMapping, bytes: Range<u64>) -> impl Iterator<Item = (usize, Range<u64>)> {
    let (base, end) = (mapping.offset(), mapping.offset() + mapping.len() as u64);
    let first = bytes.start.clamp(base, end) - base;
    let last = bytes.end.clamp(base, end) - base;
    let end_unit = if first < last {
        last.div_ceil(UNIT_BYTES)
    } else {
        0
    };
    (first / UNIT_BYTES..end_unit).map(move |unit| {
        let start = base + unit * UNIT_BYTES;
        (unit as usize, start..end.min(start + UNIT_BYTES))
    })
}

/// The size of the units of a mapping whose residency is remembered.
const UNIT_BYTES: u64 = FileMapping::RESIDENCY_UNIT_BYTES;

/// How long a unit that was in the page cache is assumed to stay there.
const ASSUMED_RESIDENT_FOR: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    /// A file in memory never waits for a disk. But `cachestat` counts no page in its holes: if the
    /// bytes were not probed as well, each step of a transfer would load them again, on another
    /// thread, and in vain.
    #[test]
    fn holes_of_a_file_in_memory_are_resident() {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = rustix::fs::memfd_create("holes", flags).expect("created");
        rustix::fs::ftruncate(&file, 1 << 20).expect("grown");
        assert!(is_resident(&file, 0, 1 << 20));
        assert!(is_resident(&file, 4097, 2));
    }

    fn mapping_of(len: u64) -> FileMapping {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(len).expect("grown");
        FileMapping::new(file.into(), 0..len).expect("mapped")
    }

    #[test]
    fn units_that_were_loaded_as_a_whole_are_remembered() {
        let len = 2 * UNIT_BYTES + 100;
        let mapping = mapping_of(len);
        let remembered = |unit| mapping.was_resident_within(unit, ASSUMED_RESIDENT_FOR);
        prefetch_mapping_blocking(&mapping, 1..2 * UNIT_BYTES);
        assert_eq!([0, 1, 2].map(remembered), [false, true, false]);
        prefetch_mapping_blocking(&mapping, 2 * UNIT_BYTES..len);
        assert_eq!([0, 1, 2].map(remembered), [false, true, true]);
        assert_eq!(first_uncached(&mapping, UNIT_BYTES..len), None);
    }

    #[test]
    fn wanting_half_a_unit_checks_the_whole_unit() {
        let mapping = mapping_of(UNIT_BYTES);
        prefetch_blocking(mapping.file(), 0, UNIT_BYTES);
        assert_eq!(
            first_uncached(&mapping, UNIT_BYTES / 2 + 1..UNIT_BYTES),
            None
        );
        assert!(!mapping.was_resident_within(0, ASSUMED_RESIDENT_FOR));
        assert_eq!(first_uncached(&mapping, UNIT_BYTES / 2..UNIT_BYTES), None);
        assert!(mapping.was_resident_within(0, ASSUMED_RESIDENT_FOR));
    }

    proptest::proptest! {
        /// For any range, the units are those that it touches, in order and without a gap.
        #[test]
        fn units_cover_the_range_that_is_wanted(start in 0..5 * UNIT_BYTES, len in 1..3 * UNIT_BYTES) {
            let mapping = mapping_of(4 * UNIT_BYTES + 5);
            let end = (start + len).min(mapping.len() as u64);
            let found: Vec<_> = units(&mapping, start..start + len).collect();
            let Some((_, first)) = found.first() else {
                proptest::prop_assert!(start >= end);
                return Ok(());
            };
            proptest::prop_assert!(first.start <= start && start < first.end);
            let mut next = first.start;
            for (unit, range) in found {
                proptest::prop_assert_eq!(range.start, next);
                proptest::prop_assert_eq!(range.start, unit as u64 * UNIT_BYTES);
                next = range.end;
            }
            proptest::prop_assert!(end <= next && next < end + UNIT_BYTES);
        }
    }

    #[test]
    fn bytes_past_the_end_of_the_file_are_not_counted() {
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
