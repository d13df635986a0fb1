//! Checks whether the bytes of a file are in the page cache, and loads them into the page cache.
//!
//! If a file is not in the page cache, `sendfile` waits for the disk inside the call, even if the
//! socket is non-blocking. An event loop should therefore call [`is_resident`] first. If that
//! returns `false`, the event loop should call [`prefetch_blocking`] on another thread, one that
//! may block, and send the bytes once they have been loaded.

use std::ops::Range;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::io::{Errno, ReadWriteFlags};

use crate::arena::FileMapping;
use crate::sys::cached_pages;

/// The distance between the bytes that are probed. By default the kernel reads ahead 128 KiB at a
/// time, so one page out of every 128 KiB is a fair sample.
const PROBE_INTERVAL_BYTES: u64 = 128 << 10;

/// Returns whether all of `len` bytes of `file`, starting at byte `offset`, are in the page cache.
///
/// Bytes past the end of the file are ignored.
///
/// # How it is determined
///
/// One call to `cachestat(2)` (Linux 6.5) counts the cached pages. In three cases the range is
/// probed instead: `preadv2(2)` with `RWF_NOWAIT` tries to read one byte out of every 128 KiB. That
/// is only a sample, and it takes one system call per probed byte. The three cases are:
///
/// - The kernel has no `cachestat`.
/// - The kernel refuses `cachestat`, because the process neither owns the file nor may write to it.
/// - `cachestat` counts no cached pages at all. That can be wrong: on overlayfs the pages belong to
///   a file of the underlying file system, and in an in-memory file (tmpfs) holes are not counted.
///
/// If the file system supports neither of the two calls, the bytes count as resident, because there
/// is no way to know.
///
/// # Accuracy
///
/// The result can be out of date as soon as it is returned. A page that is still being read from
/// disk may count as cached, and probing may itself start read-ahead. The only consequence of a
/// wrong result is lost time.
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
/// Blocks until the bytes are loaded, so call it on a thread that may block. It reads the bytes and
/// discards them, because the system calls that request read-ahead return without waiting for it.
///
/// Errors are not reported, because sending the bytes afterwards will fail with the same error.
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
/// first 2 MiB of `wanted` can be sent without waiting for the disk. Returns `None` if these 2 MiB
/// are already in the page cache.
///
/// Both ranges are byte offsets in the file. The returned range may contain some bytes that are in
/// the page cache, and may extend beyond these 2 MiB.
///
/// A mapping is divided into units of 2 MiB, and remembers which whole units were found in the page
/// cache. For half a second, such a unit is assumed to stay there and is not checked again, because
/// the kernel reclaims recently used pages last. So a file that is sent a thousand times per second
/// is not checked each time. If `wanted` covers at least half of a unit, the whole unit is checked,
/// so that it can be remembered.
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
            // Once uncached bytes have been found, the bytes after them are added to the range
            // without a check. A single call on a thread that may block then loads all of them.
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

/// Loads a range of a mapped file into the page cache. The range is in byte offsets in the file.
///
/// Blocks like [`prefetch_blocking`]. For half a second afterwards, [`first_uncached`] assumes that
/// the 2 MiB units that lie completely within `range` are in the page cache.
pub fn prefetch_mapping_blocking(mapping: &FileMapping, range: Range<u64>) {
    let len = range.end.saturating_sub(range.start);
    prefetch_blocking(mapping.file(), range.start, len);
    for (unit, unit_range) in units(mapping, range.clone()) {
        if range.start <= unit_range.start && unit_range.end <= range.end {
            mapping.note_resident(unit);
        }
    }
}

/// Returns the units of the mapping that contain any of these bytes of the file. Each item is the
/// index of the unit and the range of its bytes in the file.
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

/// The size of the units into which a mapping is divided to remember what is in the page cache.
const UNIT_BYTES: u64 = FileMapping::RESIDENCY_UNIT_BYTES;

/// How long a unit that was found in the page cache is assumed to stay there.
const ASSUMED_RESIDENT_FOR: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    /// Reading an in-memory file never waits for a disk, but `cachestat` does not count pages for
    /// its holes. If the holes were not probed as well, they would never count as resident, and
    /// each step of a transfer would try in vain to load them on another thread.
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
        /// For any range, `units` returns exactly the units that the range touches, in order and
        /// without gaps.
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
    fn bytes_past_the_end_of_the_file_are_ignored() {
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
