//! Files that are mapped into the arena.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;

use super::space::{AddressSpace, GranuleOwner, Granules, Owner, OwnerKind};
use crate::policy::Mechanism;
use crate::sys::{Kernel, Linux, Mapped, coarse_millis};

/// A range of a file, mapped read-only into the arena.
///
/// Cloning is cheap. The mapping and its file descriptor live until every clone, and all [`Bytes`]
/// made from the mapping, have been dropped.
///
/// # Stability of the bytes
///
/// The mapping always shows the current content of the file: a write to the file changes these
/// bytes, even while they are being sent. Code that reads the bytes must not rely on them to stay
/// the same: a `str` made from them may stop being UTF-8, which is undefined behaviour. If the file
/// is truncated, *user code that reads a page past the new end gets a SIGBUS*. A system call that
/// is given the address of such a page raises no signal: it fails with `EFAULT` or sends fewer
/// bytes. The bytes are therefore meant for sinks that find the file with [`locate`](super::locate)
/// and send from it with a [`Transfer`](crate::Transfer). Code that needs to read the content
/// should read the file instead.
#[derive(Clone, Debug)]
pub struct FileMapping(Arc<MappedFileRange>);

/// A range of the arena, and the file that is mapped there.
#[derive(Debug)]
struct MappedFileRange {
    /// The addresses of the mapping.
    granules: Granules,
    len: usize,
    file: Arc<File>,
    /// The position in the file at which the mapping begins, in bytes.
    offset: u64,
    /// The set of mechanisms that have failed as unsupported for this file, with one bit per
    /// [`Mechanism`].
    refused_mechanisms: AtomicU32,
    /// For each [unit](FileMapping::RESIDENCY_UNIT_BYTES), when it was last found in the page
    /// cache, in milliseconds of the [coarse clock](coarse_millis); 0 if never.
    resident_at: Box<[AtomicU64]>,
    weak_self: Weak<MappedFileRange>,
}

impl GranuleOwner for MappedFileRange {
    const KIND: OwnerKind = OwnerKind::File;
}

impl FileMapping {
    /// Maps a range of a file. `range` is in bytes from the start of the file.
    ///
    /// `range` must start at a multiple of the page size. It may extend past the end of the file:
    /// users of a mapping must expect missing bytes anyway, because the file can be truncated at
    /// any time.
    ///
    /// # Errors
    ///
    /// - [`io::ErrorKind::InvalidInput`]: the range is empty, or does not start at a multiple of
    ///   the page size.
    /// - `ENODEV`: the file system cannot map files.
    /// - `ENOMEM`: no address space is left, or the process has too many mappings.
    pub fn new(file: Arc<File>, range: Range<u64>) -> io::Result<Self> {
        let len = range.end.saturating_sub(range.start);
        let len = usize::try_from(len).map_err(|_| Errno::NOMEM)?;
        Ok(Self::map(&Linux, file, range.start, len)?)
    }

    #[allow(unsafe_code)]
    pub(crate) fn map(
        kernel: &impl Kernel,
        file: Arc<File>,
        offset: u64,
        len: usize,
    ) -> Result<Self, Errno> {
        if len == 0 {
            return Err(Errno::INVAL);
        }
        let granules = AddressSpace::get()?.map_file(kernel, file.as_fd(), offset, len)?;
        let units = 0..(len as u64).div_ceil(Self::RESIDENCY_UNIT_BYTES);
        let mapped = Arc::new_cyclic(|weak_self| MappedFileRange {
            granules,
            len,
            file,
            offset,
            refused_mechanisms: AtomicU32::new(0),
            resident_at: units.map(|_| AtomicU64::new(0)).collect(),
            weak_self: weak_self.clone(),
        });
        // SAFETY: every slice that begins in the granules is borrowed from a `Bytes` made from the
        // mapping, and that `Bytes` keeps the `MappedFileRange` alive.
        unsafe { mapped.granules.register(Arc::as_ptr(&mapped)) };
        Ok(Self(mapped))
    }

    /// Returns the mapped bytes, without copying them.
    ///
    /// # Stability of the bytes
    ///
    /// The bytes may change or become unreadable at any time: see the
    /// [type](Self#stability-of-the-bytes).
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        Bytes::from_owner(MappedBytes(Arc::clone(&self.0)))
    }

    /// Returns the mapped file.
    #[must_use]
    pub fn file(&self) -> &Arc<File> {
        &self.0.file
    }

    /// Returns the position in the file at which the mapping begins, in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.0.offset
    }

    /// Returns the length of the mapping in bytes, which is never 0.
    #[must_use]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Returns the address range of at most `count` bytes, starting at byte `start` of the mapping,
    /// to be passed to system calls that read from it.
    #[allow(unsafe_code)]
    pub(crate) fn mapped(&self, start: usize, count: usize) -> Mapped<'_> {
        let start = start.min(self.0.len);
        let count = count.min(self.0.len - start);
        // SAFETY: the range lies within the mapping, which is removed only when the
        // `MappedFileRange` is dropped. `self` is borrowed for the lifetime of the result, and
        // keeps the `MappedFileRange` alive.
        unsafe { Mapped::new(self.0.granules.address() + start, count) }
    }

    /// Records that `mechanism` has failed as unsupported for this file, so that later transfers
    /// can leave it out of their plans.
    pub fn note_refusal(&self, mechanism: Mechanism) {
        self.0
            .refused_mechanisms
            .fetch_or(1 << mechanism as u8, Ordering::Relaxed);
    }

    /// Whether `mechanism` has [failed as unsupported](Self::note_refusal) for this file.
    #[must_use]
    pub fn has_refused(&self, mechanism: Mechanism) -> bool {
        self.0.refused_mechanisms.load(Ordering::Relaxed) & (1 << mechanism as u8) != 0
    }
}

/// The record, kept for [`residency`](crate::residency), of when parts of the file were last found
/// in the page cache.
impl FileMapping {
    /// The size, in bytes, of the units for which residency is recorded.
    pub(crate) const RESIDENCY_UNIT_BYTES: u64 = 2 << 20;

    pub(crate) fn note_resident(&self, unit: usize) {
        self.0.resident_at[unit].store(coarse_millis(), Ordering::Relaxed);
    }

    pub(crate) fn was_resident_within(&self, unit: usize, limit: Duration) -> bool {
        let at = self.0.resident_at[unit].load(Ordering::Relaxed);
        at != 0 && u128::from(coarse_millis().saturating_sub(at)) <= limit.as_millis()
    }
}

/// Keeps a mapping alive for the [`Bytes`] made from it.
struct MappedBytes(Arc<MappedFileRange>);

impl AsRef<[u8]> for MappedBytes {
    #[allow(unsafe_code)]
    fn as_ref(&self) -> &[u8] {
        let start = ptr::with_exposed_provenance(self.0.granules.address());
        // SAFETY: this holds only for code that never reads through the slice, such as the I/O
        // layers of this project, which only pass its address on. The `len` bytes starting at the
        // address are mapped for reading, and stay mapped until the `MappedFileRange` is dropped,
        // which `self` prevents. But they are not immutable while the slice exists, as
        // `from_raw_parts` requires: anything that can write to the file can change them, and no
        // type prevents that. For code that reads the slice, such a change is undefined behaviour
        // (a `str` made from the slice may stop being UTF-8), and reading past the end of a
        // truncated file raises SIGBUS. The docs of `FileMapping` warn of both.
        unsafe { std::slice::from_raw_parts(start, self.0.len) }
    }
}

impl FileMapping {
    /// Returns the mapping that contains `bytes`, and the position of their first byte in the
    /// mapped file.
    ///
    /// `bytes` must not be empty, and `owner` must be the owner of the granule that contains the
    /// first byte. Returns `None` if the owner is not a mapping, or if `bytes` extends past the end
    /// of the mapping.
    #[allow(unsafe_code)]
    pub(super) fn locate(owner: Owner, bytes: &[u8]) -> Option<(Self, u64)> {
        let mapped = owner.downcast::<MappedFileRange>()?;
        // SAFETY: `downcast` only returns pointers that were registered as a `MappedFileRange`, the
        // only type of its kind. The `MappedFileRange` was alive when `owner` was looked up,
        // because dropping its granules removes the pointer from the owner table before anything is
        // freed. And it cannot be dropped before this function returns: `bytes` is not empty and
        // begins in the granules of the mapping, and only a `Bytes` made from the mapping can point
        // there. So the value that `bytes` is borrowed from keeps the `MappedFileRange` alive for
        // at least as long as the borrow.
        let mapped = unsafe { &*mapped };
        let at = bytes.as_ptr().addr() - mapped.granules.address();
        if at + bytes.len() > mapped.len {
            return None;
        }
        Some((Self(mapped.weak_self.upgrade()?), mapped.offset + at as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Located, locate};
    use super::*;

    fn file_of(content: &[u8]) -> Arc<File> {
        let file = tempfile::tempfile().expect("a temporary file");
        std::os::unix::fs::FileExt::write_all_at(&file, content, 0).expect("written");
        Arc::new(file)
    }

    fn file_at(bytes: &[u8]) -> Option<(FileMapping, u64)> {
        match locate(bytes)? {
            Located::File { mapping, offset } => Some((mapping, offset)),
            Located::Pages(_) => None,
        }
    }

    #[test]
    fn every_slice_of_a_mapping_is_located() {
        let content: Vec<u8> = (0..10_000_u32).map(|n| n as u8).collect();
        let mapping = FileMapping::new(file_of(&content), 4096..10_000).expect("mapped");
        let bytes = mapping.bytes();
        assert_eq!(&bytes[..], &content[4096..]);
        for range in [0..1, 0..5904, 5903..5904, 17..4097] {
            let (found, offset) = file_at(&bytes[range.clone()]).expect("in the arena");
            assert_eq!(offset, 4096 + range.start as u64);
            assert!(Arc::ptr_eq(&found.0, &mapping.0));
        }
    }

    #[test]
    fn other_memory_and_empty_slices_are_not_located() {
        let bytes = FileMapping::new(file_of(b"x"), 0..1)
            .expect("mapped")
            .bytes();
        assert!(locate(&bytes[1..]).is_none());
        assert!(locate(b"a literal").is_none());
        assert!(locate(&vec![1; 1 << 22]).is_none());
    }

    #[test]
    #[allow(unsafe_code)]
    fn a_slice_beyond_the_end_of_its_mapping_is_not_located() {
        let mapping = FileMapping::new(file_of(b"0123456789"), 0..10).expect("mapped");
        let bytes = mapping.bytes();
        for (len, is_inside) in [(5, true), (6, false), (100, false)] {
            // SAFETY: the mapping contains the whole page of the bytes. Nothing reads them.
            let bytes = unsafe { std::slice::from_raw_parts(bytes[5..].as_ptr(), len) };
            assert_eq!(locate(bytes).is_some(), is_inside, "{len}");
        }
    }

    /// Otherwise a system call that is given the range could send whatever memory follows the
    /// mapping.
    #[test]
    fn no_address_range_extends_beyond_the_mapping() {
        let mapping = FileMapping::new(file_of(b"0123456789"), 0..10).expect("mapped");
        for (start, count, expected) in [(0, 10, 10), (8, 100, 2), (10, 1, 0), (50, 1, 0)] {
            assert_eq!(mapping.mapped(start, count).len(), expected, "{start}");
        }
    }

    #[test]
    fn bytes_keep_their_mapping_alive() {
        let mapping = FileMapping::new(file_of(b"still here"), 0..10).expect("mapped");
        let slice = mapping.bytes().slice(6..);
        drop(mapping);
        assert_eq!(&slice[..], b"here");
        assert!(locate(&slice).is_some());
    }

    #[test]
    fn reused_addresses_belong_to_the_latest_mapping() {
        for round in 0..1000_u32 {
            let content = round.to_le_bytes();
            let mapping = FileMapping::new(file_of(&content), 0..4).expect("mapped");
            let bytes = mapping.bytes();
            assert_eq!(&bytes[..], content);
            let (found, _) = file_at(&bytes).expect("in the arena");
            assert!(Arc::ptr_eq(found.file(), mapping.file()));
        }
    }

    #[test]
    fn empty_and_unaligned_ranges_are_refused() {
        let file = file_of(b"x");
        assert!(FileMapping::new(Arc::clone(&file), 0..0).is_err());
        assert!(FileMapping::new(file, 1..2).is_err());
    }
}
