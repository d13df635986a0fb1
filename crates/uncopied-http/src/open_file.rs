//! A regular file that is open for serving.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use rustix::io::{Errno, ReadWriteFlags};
use rustix::time::{ClockId, clock_gettime};
use uncopied::Mechanism;
use uncopied::arena::{FileMapping, MissingBytes};
use uncopied::residency;

use crate::file_stat::FileStat;
use crate::frame_watch::FrameWatch;

/// Whether a call may wait for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskAccess {
    /// The call may use only what the kernel has cached. If it needs the disk, it fails with
    /// [`io::ErrorKind::WouldBlock`] instead of waiting. Use this on event loops.
    CachedOnly,
    /// The call may wait for the disk. Use this on threads that may block.
    MayBlock,
}

/// The default maximum length, in bytes, of files that are kept in memory. The body of such a file
/// is sent together with the response head in one system call.
pub const IN_MEMORY_FILE_MAX_BYTES: u64 = 16 << 10;

/// A regular file that is open for serving. All responses that send the file share this object.
///
/// For a small file, this object holds a copy of the bytes that the file had when it was opened,
/// and no file descriptor. For a larger file, it holds the open file.
#[derive(Debug)]
pub struct OpenFile {
    stat: FileStat,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Memory(Bytes),
    File {
        file: Arc<File>,
        /// The mapping of the whole file. Files longer than [`MAPPING_WINDOW_BYTES`] do not use
        /// this field.
        mapped: Mutex<MappingState>,
        /// Whether bytes were missing when code read a mapping of this file.
        missing_bytes: MissingBytes,
        /// One bit for each mechanism that has failed as unsupported for this file.
        refused_mechanisms: AtomicU16,
        /// The time at which the beginning of the file was last found in the page cache, in
        /// milliseconds, or 0.
        beginning_resident_at: AtomicU64,
    },
}

#[derive(Debug)]
enum MappingState {
    /// The file has not been mapped yet.
    Unmapped,
    Mapped(MappedFile),
    /// This process cannot map files.
    Refused,
}

/// A mapping is replaced by a new one once code has read this many bytes of it, because what was
/// read takes up memory for as long as the mapping exists.
const READ_MAX_BYTES: usize = 4 << 20;

/// A mapping, and a `Bytes` that covers all of it.
#[derive(Clone, Debug)]
struct MappedFile(FileMapping, Bytes);

impl MappedFile {
    /// Whether new responses can use the mapping: code has not read too much of it, and it was not
    /// inherited from a process that has forked this one.
    fn is_usable(&self) -> bool {
        self.0.read_bytes() < READ_MAX_BYTES && self.0.is_of_this_process()
    }
}

/// The length of the beginning of a file that [`OpenFile::is_resident`] remembers.
const BEGINNING_BYTES: u64 = 2 << 20;

/// How long the beginning of a file that was found in the page cache is assumed to stay there.
const ASSUMED_RESIDENT_MILLIS: u64 = 500;

/// The maximum number of attempts at reading a file into memory. An attempt fails if the file
/// changes while being read.
const MAX_READ_ATTEMPTS: usize = 4;

/// The maximum length of one mapping. Longer files are mapped one window at a time. The limit can
/// be this high because a mapping uses only address space, not memory.
const MAPPING_WINDOW_BYTES: u64 = 1 << 30;

impl OpenFile {
    /// Like [`open`](Self::open), but blocks the calling thread while the file is queried and read.
    /// Not for event loops.
    ///
    /// # Errors
    ///
    /// See [`open`](Self::open).
    pub fn open_blocking(file: File) -> io::Result<Self> {
        Self::open_blocking_with_memory_limit(IN_MEMORY_FILE_MAX_BYTES, file)
    }

    /// Like [`open_blocking`](Self::open_blocking), but keeps files of up to `limit` bytes in
    /// memory. With 0, the file is not kept in memory, unless it is empty.
    ///
    /// # Errors
    ///
    /// See [`open`](Self::open).
    pub fn open_blocking_with_memory_limit(limit: u64, file: File) -> io::Result<Self> {
        let stat = FileStat::of(&file)?;
        Self::with_memory_limit(limit, Arc::new(file), stat, DiskAccess::MayBlock)
    }

    /// Creates an `OpenFile` from an open file and its metadata, as returned by [`FileStat::of`].
    /// Keeps a file of up to `limit` bytes in memory. Fails with [`io::ErrorKind::WouldBlock`] if
    /// `access` is [`DiskAccess::CachedOnly`] and the disk is needed.
    pub(crate) fn with_memory_limit(
        limit: u64,
        file: Arc<File>,
        mut stat: FileStat,
        access: DiskAccess,
    ) -> io::Result<Self> {
        if !stat.is_regular() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            ));
        }
        for _ in 0..MAX_READ_ATTEMPTS {
            if stat.len() > limit {
                let content = Content::File {
                    file,
                    mapped: Mutex::new(MappingState::Unmapped),
                    missing_bytes: MissingBytes::default(),
                    refused_mechanisms: AtomicU16::new(0),
                    beginning_resident_at: AtomicU64::new(0),
                };
                return Ok(Self { stat, content });
            }
            let bytes = read_whole(&file, stat.len(), access)?;
            // Accept the bytes only if the metadata is still the same, so that `stat` describes
            // exactly these bytes.
            let now = FileStat::of(&file)?;
            match bytes {
                Some(bytes) if now == stat => {
                    return Ok(Self {
                        stat,
                        content: Content::Memory(bytes),
                    });
                }
                _ => stat = now,
            }
        }
        Err(Errno::BUSY.into())
    }

    /// The metadata that the file had when it was opened.
    #[must_use]
    pub fn stat(&self) -> &FileStat {
        &self.stat
    }

    /// Returns the bytes of the file, if they are kept in memory.
    pub(crate) fn in_memory(&self) -> Option<&Bytes> {
        match &self.content {
            Content::Memory(bytes) => Some(bytes),
            Content::File { .. } => None,
        }
    }

    /// Returns the bytes of `range`, if the file is kept in memory and has all of them.
    pub(crate) fn in_memory_range(&self, range: &Range<u64>) -> Option<Bytes> {
        let content = self.in_memory()?;
        let start = usize::try_from(range.start).ok()?;
        let end = usize::try_from(range.end).ok()?;
        (start <= end && end <= content.len()).then(|| content.slice(start..end))
    }

    /// Returns the open file, unless its bytes are kept in memory.
    #[must_use]
    pub fn file(&self) -> Option<&Arc<File>> {
        match &self.content {
            Content::Memory(_) => None,
            Content::File { file, .. } => Some(file),
        }
    }

    /// Records that `mechanism` has failed as unsupported for this file, so that later transfers
    /// can leave it out of their plans.
    pub fn note_refusal(&self, mechanism: Mechanism) {
        if let Content::File {
            refused_mechanisms, ..
        } = &self.content
        {
            refused_mechanisms.fetch_or(1 << mechanism as u8, Ordering::Relaxed);
        }
    }

    /// Whether `mechanism` has [failed as unsupported](Self::note_refusal) for this file.
    #[must_use]
    pub fn has_refused(&self, mechanism: Mechanism) -> bool {
        match &self.content {
            Content::Memory(_) => false,
            Content::File {
                refused_mechanisms, ..
            } => refused_mechanisms.load(Ordering::Relaxed) & (1 << mechanism as u8) != 0,
        }
    }

    /// Whether the bytes of `range` can be sent without waiting for the disk: they are in the page
    /// cache, or the file is kept in memory.
    ///
    /// Once the first 2 MiB of the file have been found in the page cache, they are assumed to stay
    /// there for half a second, because the kernel reclaims recently used pages last. So a file
    /// that is sent a thousand times per second is not checked each time. Without this, a server
    /// reached 0.85 of its responses per second with files of 16 and 64 KiB, and 0.94 with 256 KiB.
    #[must_use]
    pub fn is_resident(&self, range: Range<u64>) -> bool {
        let Content::File {
            file,
            beginning_resident_at,
            ..
        } = &self.content
        else {
            return true;
        };
        let beginning = self.stat.len().min(BEGINNING_BYTES);
        let len = range.end.saturating_sub(range.start);
        if range.end > beginning || 2 * len < beginning {
            return residency::is_resident(file, range.start, len);
        }
        let now = coarse_millis();
        let at = beginning_resident_at.load(Ordering::Relaxed);
        if at != 0 && now.saturating_sub(at) <= ASSUMED_RESIDENT_MILLIS {
            return true;
        }
        let is_resident = residency::is_resident(file, 0, beginning);
        if is_resident {
            beginning_resident_at.store(now, Ordering::Relaxed);
        }
        is_resident
    }

    /// Returns the bytes of `range` from a mapping of the file into the arena. If the mapping ends
    /// before the range does, returns only the bytes up to the mapping's end. `watch` is that of
    /// the stream to which the bytes go.
    ///
    /// Returns `None` if the file is kept in memory, cannot be mapped, or already ended at or
    /// before the start of `range` when it was opened. Also returns `None` if code has read missing
    /// bytes of it.
    pub(crate) fn mapped(&self, range: &Range<u64>, watch: &FrameWatch) -> Option<Bytes> {
        let mapped = self.mapping(range.start)?;
        let MappedFile(mapping, bytes) = &mapped;
        let start = mapping.offset();
        let end = range.end.min(start + mapping.len() as u64);
        let bytes = bytes.slice((range.start - start) as usize..(end - start) as usize);
        let missing_bytes = mapping.missing_bytes();
        (!missing_bytes.were_read()).then(|| watch.watch(bytes, missing_bytes))
    }

    /// Returns the mapping that contains the byte at `offset`.
    fn mapping(&self, offset: u64) -> Option<MappedFile> {
        let Content::File {
            file,
            mapped,
            missing_bytes,
            ..
        } = &self.content
        else {
            return None;
        };
        // Do not map bytes past the length in `stat`. The caller reads such bytes from the file
        // instead, which shows whether the file has grown.
        let len = self.stat.len();
        if offset >= len {
            return None;
        }
        let map = |range| {
            let mapping = FileMapping::with_record(Arc::clone(file), range, missing_bytes)?;
            let bytes = mapping.bytes();
            io::Result::Ok(MappedFile(mapping, bytes))
        };
        if len > MAPPING_WINDOW_BYTES {
            let start = offset / MAPPING_WINDOW_BYTES * MAPPING_WINDOW_BYTES;
            return map(start..len.min(start + MAPPING_WINDOW_BYTES)).ok();
        }
        // A poisoned lock may still be used: each change is a single assignment.
        let mut state = mapped.lock().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            MappingState::Refused => return None,
            MappingState::Mapped(mapped) if mapped.is_usable() => return Some(mapped.clone()),
            MappingState::Mapped(_) | MappingState::Unmapped => {}
        }
        match map(0..len) {
            Ok(mapped) => {
                *state = MappingState::Mapped(mapped.clone());
                Some(mapped)
            }
            Err(error) => {
                let errno = Errno::from_io_error(&error);
                // With another errno, the process may just have too many descriptors or mappings.
                if matches!(errno, Some(Errno::PERM | Errno::NOSYS)) {
                    *state = MappingState::Refused;
                }
                None
            }
        }
    }

    /// Whether the bytes of `wanted` are in the page cache. Checks at most the first 2 MiB of them.
    /// Returns false if the file is kept in memory or cannot be mapped.
    pub(crate) fn is_cached(&self, wanted: Range<u64>) -> bool {
        self.mapping(wanted.start)
            .is_some_and(|mapped| residency::first_uncached(&mapped.0, wanted).is_none())
    }
}

/// Reads the first `len` bytes of `file`. Returns `None` if the file is shorter than that.
fn read_whole(file: &File, len: u64, access: DiskAccess) -> io::Result<Option<Bytes>> {
    let mut bytes = vec![0; usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?];
    let mut filled = 0;
    while filled < bytes.len() {
        let flags = match access {
            DiskAccess::CachedOnly => ReadWriteFlags::NOWAIT,
            DiskAccess::MayBlock => ReadWriteFlags::empty(),
        };
        let buffers = &mut [IoSliceMut::new(&mut bytes[filled..])];
        match rustix::io::preadv2(file, buffers, filled as u64, flags) {
            Ok(0) => return Ok(None),
            Ok(read) => filled += read,
            Err(Errno::INTR) => {}
            // The file system does not support `RWF_NOWAIT`. Report `WouldBlock`, so that the
            // caller retries on a thread that may block.
            Err(Errno::OPNOTSUPP) if access == DiskAccess::CachedOnly => {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(Some(bytes.into()))
}

/// Returns the time in milliseconds from the kernel's coarse clock, which takes no system call to
/// read.
fn coarse_millis() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What code reads of a mapping takes up memory as long as the mapping exists, so a mapping of
    /// which much was read is not used for further responses.
    #[test]
    fn a_mapping_of_which_much_was_read_is_replaced() {
        const LEN: u64 = 8 << 20;
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(LEN).expect("grown");
        let file = OpenFile::open_blocking(file).expect("opened");
        let watch = FrameWatch::default();
        let map = || file.mapped(&(0..LEN), &watch).expect("mapped");
        let first = map();
        assert_eq!(map().as_ptr(), first.as_ptr());
        assert!(first[..READ_MAX_BYTES / 2].iter().all(|&byte| byte == 0));
        assert_eq!(map().as_ptr(), first.as_ptr());
        assert!(first.iter().all(|&byte| byte == 0));
        assert_ne!(map().as_ptr(), first.as_ptr());
    }
}
