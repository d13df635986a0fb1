//! Files whose bytes have addresses in the arena.
//!
//! Nothing of the file is mapped there with `mmap(2)`. If code reads such an address, the thread of
//! [`page_reader`] reads the page from the file into memory that nothing else can write to. So the
//! bytes are those of an ordinary `&[u8]`: they never change, and reading them raises no signal,
//! whatever other programs do to the file. If no code reads them, there is no memory behind them.

mod page_reader;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;

use super::space::{AddressSpace, GranuleOwner, Granules, Owner, OwnerKind};
use crate::policy::Mechanism;
use crate::sys::coarse_millis;
use page_reader::PageReader;

/// A range of a file whose bytes have addresses in the arena, so that [`locate`](super::locate)
/// finds the file from a slice of them.
///
/// Cloning is cheap. The addresses and the file descriptor are kept until every clone, and all
/// [`Bytes`] made from the mapping, have been dropped.
///
/// # Reading the bytes
///
/// The bytes are meant for sinks that find the file with [`locate`](super::locate) and send from
/// it with a [`Transfer`](crate::Transfer); then nothing is read into memory. Other code may read
/// them as well, which is sound but slow: a page that is accessed for the first time is read from
/// the file by another thread (`userfaultfd(2)`), together with the pages that follow it, while the
/// reading thread waits. From then on, this page shows the content that the file had at that
/// moment, for as long as the mapping exists. Pages that were not read yet show later content.
///
/// If the file does not have the bytes any longer, because it was truncated, or if it cannot be
/// read, the page is filled with zeroes, and [`missing_bytes`](Self::missing_bytes) tells so. Code
/// that uses what it read must check that *afterwards*.
///
/// - Pages that were read take up memory until the mapping is dropped:
///   [`read_bytes`](Self::read_bytes) says how much.
/// - One thread reads the pages of all mappings, so a disk that does not respond delays the readers
///   of every mapping.
/// - System calls cannot read pages that were not read before: passing such a page to `write(2)`
///   fails with `EFAULT`. Senders refuse these bytes
///   ([`ErrorKind::MappedFile`](crate::ErrorKind::MappedFile)).
/// - In a forked child, pages that were not read before the fork read as zeroes: see
///   [`is_of_this_process`](Self::is_of_this_process).
#[derive(Clone, Debug)]
pub struct FileMapping(Arc<MappedFileRange>);

/// A record of whether bytes were missing when code read them through a [`FileMapping`].
///
/// Clones share the record. Mappings of the same file can share it, too: see
/// [`FileMapping::with_record`].
#[derive(Clone, Debug, Default)]
pub struct MissingBytes(Arc<AtomicBool>);

impl MissingBytes {
    /// Whether code has read bytes that the file did not have any longer, or that could not be read
    /// from it. It got zeroes instead.
    #[must_use]
    pub fn were_read(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Whether both are clones of the same record.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn note_read(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A range of the arena, and the file to which its addresses belong.
#[derive(Debug)]
struct MappedFileRange {
    /// The addresses of the mapping.
    granules: Granules,
    len: usize,
    file: Arc<File>,
    /// The position in the file at which the mapping begins, in bytes.
    offset: u64,
    missing_bytes: MissingBytes,
    /// The number of bytes of memory that hold pages of the file.
    read_bytes: AtomicUsize,
    /// Reads the pages that code accesses.
    page_reader: &'static PageReader,
    /// The set of mechanisms that have failed as unsupported for this file, with one bit per
    /// [`Mechanism`].
    refused_mechanisms: AtomicU32,
    /// For each [unit](FileMapping::RESIDENCY_UNIT_BYTES), when it was last found in the page
    /// cache, in milliseconds of the [coarse clock](coarse_millis); 0 if never.
    resident_at: Box<[AtomicU64]>,
    weak_self: Weak<MappedFileRange>,
}

impl Drop for MappedFileRange {
    fn drop(&mut self) {
        self.page_reader.unregister(self.granules.address());
    }
}

impl GranuleOwner for MappedFileRange {
    const KIND: OwnerKind = OwnerKind::File;
}

impl FileMapping {
    /// Gives addresses to a range of a file. `range` is in bytes from the start of the file.
    ///
    /// The range may extend past the end of the file: users of a mapping must expect missing bytes
    /// anyway, because the file can be truncated at any time.
    ///
    /// # Errors
    ///
    /// - [`io::ErrorKind::InvalidInput`]: the range is empty.
    /// - `EOVERFLOW`: the range extends past the greatest possible offset in a file.
    /// - `EBADF`, `EISDIR`, `EINVAL` or `ESPIPE`: the file is not open for reading, or bytes cannot
    ///   be read from any position in it.
    /// - `EPERM` or `ENOSYS`: `userfaultfd(2)` is forbidden, as by the default seccomp profile of
    ///   Docker, or this kernel does not have it. Before Linux 5.11, it needs a privilege or the
    ///   sysctl `vm.unprivileged_userfaultfd`.
    /// - `ENOMEM`: no address space is left, or the process has too many mappings.
    /// - `EMFILE`, `ENFILE` or `EAGAIN`, for the first mapping of a process: it has too many
    ///   descriptors or threads.
    pub fn new(file: Arc<File>, range: Range<u64>) -> io::Result<Self> {
        Self::with_record(file, range, &MissingBytes::default())
    }

    /// Like [`new`](Self::new), but missing bytes are also recorded in `missing_bytes`, which
    /// several mappings of the file can share.
    ///
    /// # Errors
    ///
    /// See [`new`](Self::new).
    pub fn with_record(
        file: Arc<File>,
        range: Range<u64>,
        missing_bytes: &MissingBytes,
    ) -> io::Result<Self> {
        Ok(Self::create(file, range, missing_bytes.clone())?)
    }

    #[allow(unsafe_code)]
    fn create(
        file: Arc<File>,
        range: Range<u64>,
        missing_bytes: MissingBytes,
    ) -> Result<Self, Errno> {
        let len = range.end.saturating_sub(range.start);
        let len = usize::try_from(len).map_err(|_| Errno::NOMEM)?;
        if len == 0 {
            return Err(Errno::INVAL);
        }
        if i64::try_from(range.end).is_err() {
            return Err(Errno::OVERFLOW);
        }
        // Reading no bytes fails for everything that `page_reader` could not read from.
        rustix::io::pread(&file, &mut [0; 0], range.start)?;
        let page_reader = PageReader::of_this_process()?;
        let prepare = |granules: &Granules| page_reader.prepare(granules);
        let granules = AddressSpace::get()?.allocate_readable(len, prepare)?;
        let units = 0..(len as u64).div_ceil(Self::RESIDENCY_UNIT_BYTES);
        let mapped = Arc::new_cyclic(|weak_self| MappedFileRange {
            granules,
            len,
            file,
            offset: range.start,
            missing_bytes,
            read_bytes: AtomicUsize::new(0),
            page_reader,
            refused_mechanisms: AtomicU32::new(0),
            resident_at: units.map(|_| AtomicU64::new(0)).collect(),
            weak_self: weak_self.clone(),
        });
        page_reader.register(mapped.granules.address(), &mapped);
        // SAFETY: every slice that begins in the granules is borrowed from a `Bytes` made from the
        // mapping, and that `Bytes` keeps the `MappedFileRange` alive.
        unsafe { mapped.granules.register(Arc::as_ptr(&mapped)) };
        Ok(Self(mapped))
    }

    /// Returns the bytes, without reading them: see [Reading the bytes](Self#reading-the-bytes).
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        Bytes::from_owner(MappedBytes(Arc::clone(&self.0)))
    }

    /// Returns the record of whether code has read missing bytes.
    #[must_use]
    pub fn missing_bytes(&self) -> &MissingBytes {
        &self.0.missing_bytes
    }

    /// Returns how many bytes of memory the pages take up that code has read, including pages that
    /// were read ahead.
    #[must_use]
    pub fn read_bytes(&self) -> usize {
        self.0.read_bytes.load(Ordering::Relaxed)
    }

    /// Whether the mapping was made by the calling process, and not by one that has forked it. In
    /// a forked child, pages that were not read before the fork read as zeroes, without a record.
    #[must_use]
    pub fn is_of_this_process(&self) -> bool {
        self.0.page_reader.is_of_this_process()
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
        // SAFETY: the `len` bytes starting at the address are anonymous memory that stays mapped
        // for reading until the `MappedFileRange` is dropped, which `self` prevents. They do not
        // change while the slice exists: the memory is not writable, and nothing but `PageReader`
        // gives content to its pages. It does so once for each page, before any access to the page
        // has returned a byte, and never to a page that has content. If a page cannot be read from
        // the file, it is filled with zeroes, so no access raises a signal.
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
        let mapping = FileMapping::new(file_of(&content), 4000..10_000).expect("mapped");
        let bytes = mapping.bytes();
        assert_eq!((mapping.offset(), mapping.len()), (4000, 6000));
        assert_eq!(&bytes[..], &content[4000..]);
        for range in [0..1, 0..6000, 5999..6000, 17..4097] {
            let (found, offset) = file_at(&bytes[range.clone()]).expect("in the arena");
            assert_eq!(offset, 4000 + range.start as u64);
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
    fn a_unit_was_resident_only_for_a_while() {
        let mapping = FileMapping::new(file_of(b"x"), 0..1).expect("mapped");
        let within = |millis| mapping.was_resident_within(0, Duration::from_millis(millis));
        assert!(!within(u64::MAX));
        mapping.note_resident(0);
        assert!(within(60_000));
        let earlier = coarse_millis() - 1000;
        mapping.0.resident_at[0].store(earlier, Ordering::Relaxed);
        assert!(within(60_000) && !within(999));
    }

    #[test]
    fn pages_that_follow_are_read_ahead() {
        let len = 1 << 20;
        let mapping = FileMapping::new(file_of(&vec![1; len]), 0..len as u64).expect("mapped");
        assert_eq!(mapping.bytes()[5], 1);
        let ahead = (64 << 10).max(rustix::param::page_size());
        assert_eq!(mapping.read_bytes(), ahead);
    }

    /// Reading ahead ends at a page that was read before, which takes up memory only once.
    #[test]
    fn every_page_that_was_read_counts_once() {
        let page = rustix::param::page_size();
        let ahead = (64 << 10).max(page);
        let mapping = FileMapping::new(file_of(&vec![1; 4 * ahead]), 0..4 * ahead as u64);
        let mapping = mapping.expect("mapped");
        let bytes = mapping.bytes();
        assert_eq!((bytes[2 * ahead], mapping.read_bytes()), (1, ahead));
        assert_eq!(bytes[2 * ahead - 1], 1);
        // By the time that the thread has handled this access, it has corrected the count.
        assert_eq!((bytes[0], mapping.read_bytes()), (1, ahead + page + ahead));
    }

    #[test]
    fn invalid_ranges_are_refused() {
        let end = i64::MAX as u64;
        for (range, errno) in [(0..0, Errno::INVAL), (end..end + 1, Errno::OVERFLOW)] {
            let error = FileMapping::new(file_of(b"x"), range).expect_err("refused");
            assert_eq!(Errno::from_io_error(&error), Some(errno));
        }
    }
}
