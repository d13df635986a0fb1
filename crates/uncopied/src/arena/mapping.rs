//! Files mapped into the arena.

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

use super::space::AddressSpace;
use crate::policy::Mechanism;
use crate::sys::{Kernel, Linux, Mapped, coarse_millis};

/// A range of a file, mapped read-only into the arena.
///
/// Cloning is cheap; the mapping and its descriptor live until the last clone and the last
/// [`Bytes`] from it are gone.
///
/// # Stability of the bytes
///
/// The mapping shows the file as it is at each moment: whoever writes to the file changes these
/// bytes, also while they are being sent. Where the file is cut short, *reading the bytes of the
/// lost pages in user code raises SIGBUS*; handing their address to the kernel does not (it answers
/// `EFAULT` or sends less). So these bytes are for sinks that look addresses up with
/// [`locate`](super::locate) and send by [`Transfer`](crate::Transfer). Whoever must read them should read the
/// file instead.
#[derive(Clone, Debug)]
pub struct FileMapping(Arc<MappedSpan>);

/// A stretch of the arena and the file that is mapped there.
#[derive(Debug)]
pub(super) struct MappedSpan {
    address: usize,
    len: usize,
    file: Arc<File>,
    /// Of the file, in bytes: where the mapping begins.
    offset: u64,
    /// One bit a mechanism that this file has refused.
    refused: AtomicU32,
    /// When each [unit](FileMapping::RESIDENCY_UNIT_BYTES) was last found in the page cache, in milliseconds of the coarse
    /// clock; 0 is never.
    resident_at: Box<[AtomicU64]>,
    me: Weak<MappedSpan>,
}

impl FileMapping {
    /// Maps the bytes `range` of `file`. The range may reach past the end of the file, as the file
    /// may be cut short at any time; its start must be a multiple of the page size.
    ///
    /// # Errors
    ///
    /// - [`io::ErrorKind::InvalidInput`]: the range is empty or does not start on a page.
    /// - `ENODEV`: the file system cannot map files.
    /// - `ENOMEM`: no address space is left for it, or the process has too many mappings.
    pub fn new(file: Arc<File>, range: Range<u64>) -> io::Result<Self> {
        let len = range.end.saturating_sub(range.start);
        let len = usize::try_from(len).map_err(|_| Errno::NOMEM)?;
        Ok(Self::map(&Linux, file, range.start, len)?)
    }

    pub(crate) fn map(
        kernel: &impl Kernel,
        file: Arc<File>,
        offset: u64,
        len: usize,
    ) -> Result<Self, Errno> {
        if len == 0 {
            return Err(Errno::INVAL);
        }
        let space = AddressSpace::get()?;
        let address = space.map(kernel, file.as_fd(), offset, len)?;
        let units = 0..(len as u64).div_ceil(Self::RESIDENCY_UNIT_BYTES);
        let span = Arc::new_cyclic(|me| MappedSpan {
            address,
            len,
            file,
            offset,
            refused: AtomicU32::new(0),
            resident_at: units.map(|_| AtomicU64::new(0)).collect(),
            me: me.clone(),
        });
        space.enter(address, len, Arc::as_ptr(&span));
        Ok(Self(span))
    }

    /// The mapped bytes, without a copy. See the type's words on their stability.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        Bytes::from_owner(MappedBytes(Arc::clone(&self.0)))
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &Arc<File> {
        &self.0.file
    }

    /// Where in the file the mapping begins, in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.0.offset
    }

    /// The length of the mapping in bytes. It is never 0.
    #[must_use]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// At most `count` of the mapped bytes, from byte `start` of the mapping on, for the kernel to
    /// read.
    #[allow(unsafe_code)]
    pub(crate) fn mapped(&self, start: usize, count: usize) -> Mapped<'_> {
        let start = start.min(self.0.len);
        let count = count.min(self.0.len - start);
        // SAFETY: the range lies within the mapping, which `self` keeps.
        unsafe { Mapped::new(self.0.address + start, count) }
    }

    /// Remembers that this file has refused `mechanism`, for the plans of later transfers.
    pub fn note_refusal(&self, mechanism: Mechanism) {
        self.0
            .refused
            .fetch_or(1 << mechanism as u8, Ordering::Relaxed);
    }

    /// Whether this file has refused `mechanism` before.
    #[must_use]
    pub fn has_refused(&self, mechanism: Mechanism) -> bool {
        self.0.refused.load(Ordering::Relaxed) & (1 << mechanism as u8) != 0
    }
}

/// What [`residency`](crate::residency) remembers.
impl FileMapping {
    /// How much is remembered as one, in bytes.
    pub(crate) const RESIDENCY_UNIT_BYTES: u64 = 2 << 20;

    pub(crate) fn note_resident(&self, unit: usize) {
        self.0.resident_at[unit].store(coarse_millis(), Ordering::Relaxed);
    }

    pub(crate) fn was_resident_within(&self, unit: usize, limit: Duration) -> bool {
        let at = self.0.resident_at[unit].load(Ordering::Relaxed);
        at != 0 && u128::from(coarse_millis().saturating_sub(at)) <= limit.as_millis()
    }
}

impl Drop for MappedSpan {
    fn drop(&mut self) {
        // The span exists, so the arena does.
        if let Some(space) = AddressSpace::existing() {
            space.leave(self.address, self.len);
            space.unmap(self.address, self.len);
        }
    }
}

struct MappedBytes(Arc<MappedSpan>);

impl AsRef<[u8]> for MappedBytes {
    #[allow(unsafe_code)]
    fn as_ref(&self) -> &[u8] {
        let start = ptr::with_exposed_provenance(self.0.address);
        // SAFETY: `len` bytes from `address` on are mapped readable, and stay so until the span is
        // dropped, which `self` prevents. Another process may write to the file meanwhile, as with
        // every shared mapping: the library never reads through this slice, it only passes its
        // address on; and a reader sees torn bytes but never memory of anything else. The type's
        // docs tell those who read it what a truncated file does.
        unsafe { std::slice::from_raw_parts(start, self.0.len) }
    }
}

impl FileMapping {
    /// The mapping whose span this is, and where in its file the `bytes` begin, if they lie in it
    /// whole.
    #[allow(unsafe_code)]
    pub(super) fn locate(span: *const MappedSpan, bytes: &[u8]) -> Option<(Self, u64)> {
        // SAFETY: a pointer in the table is that of a living span, for it is taken out before the
        // span is freed; and this one cannot be freed before we return: `bytes` is not empty and
        // begins in the span's granules, where nothing but a `Bytes` of that span can point, so
        // whoever lent `bytes` to us keeps the span alive for the length of the borrow.
        let span = unsafe { &*span };
        let at = bytes.as_ptr().addr() - span.address;
        if at + bytes.len() > span.len {
            return None;
        }
        Some((Self(span.me.upgrade()?), span.offset + at as u64))
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
    fn every_slice_of_a_mapping_is_found() {
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
    fn strangers_and_empty_slices_belong_to_nobody() {
        let bytes = FileMapping::new(file_of(b"x"), 0..1)
            .expect("mapped")
            .bytes();
        assert!(locate(&bytes[1..]).is_none());
        assert!(locate(b"a literal").is_none());
        assert!(locate(&vec![1; 1 << 22]).is_none());
    }

    #[test]
    fn the_bytes_keep_the_mapping_alive() {
        let mapping = FileMapping::new(file_of(b"still here"), 0..10).expect("mapped");
        let slice = mapping.bytes().slice(6..);
        drop(mapping);
        assert_eq!(&slice[..], b"here");
        assert!(locate(&slice).is_some());
    }

    #[test]
    fn addresses_are_used_again_and_never_mixed_up() {
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
