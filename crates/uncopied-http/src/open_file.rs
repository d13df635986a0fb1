//! A regular file that is open for serving.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use rustix::io::{Errno, ReadWriteFlags};
use uncopied::arena::FileMapping;
use uncopied::residency;

use crate::file_stat::FileStat;

/// Whether a call may wait for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskAccess {
    /// Only what the kernel has cached is used. A call that needs the disk fails with
    /// [`io::ErrorKind::WouldBlock`]. For event loops.
    CachedOnly,
    /// The call may wait for the disk. For threads that may block.
    MayBlock,
}

/// Default limit on the length of files that are kept in memory. Such a short body leaves in one
/// system call together with its head, which costs less than `sendfile`.
pub const IN_MEMORY_FILE_MAX_BYTES: u64 = 16 << 10;

/// A regular file open for serving, shared by every response that sends it.
///
/// A small file is held as a copy of its bytes at the time it was opened, without a descriptor. A
/// larger one is held as the open file.
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
        /// The mapping of the whole file, made on first use. `None` inside if mapping fails.
        mapped: OnceLock<Option<MappedFile>>,
    },
}

/// A mapping and its bytes.
#[derive(Clone, Debug)]
struct MappedFile(FileMapping, Bytes);

/// How often a file that changes while it is read into memory is read again.
const MAX_READ_ATTEMPTS: usize = 4;

/// The most bytes that one mapping covers. A mapping uses address space, not memory.
const MAPPING_WINDOW_BYTES: u64 = 1 << 30;

impl OpenFile {
    /// Creates an `OpenFile` from an open regular file and its [`FileStat::of`]. A file of up to
    /// [`IN_MEMORY_FILE_MAX_BYTES`] is read at once.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] if `access` is [`DiskAccess::CachedOnly`] and the disk is
    /// needed; otherwise any error from reading the file.
    pub fn new(file: File, stat: FileStat, access: DiskAccess) -> io::Result<Self> {
        Self::with_memory_limit(IN_MEMORY_FILE_MAX_BYTES, file, stat, access)
    }

    /// Like [`new`](Self::new), but keeps files of up to `limit` bytes in memory.
    ///
    /// # Errors
    ///
    /// The errors of [`new`](Self::new), and `EBUSY` if the file keeps changing while it is read.
    pub fn with_memory_limit(
        limit: u64,
        file: File,
        mut stat: FileStat,
        access: DiskAccess,
    ) -> io::Result<Self> {
        for _ in 0..MAX_READ_ATTEMPTS {
            if stat.len() > limit {
                let content = Content::File {
                    file: Arc::new(file),
                    mapped: OnceLock::new(),
                };
                return Ok(Self { stat, content });
            }
            let bytes = read_whole(&file, stat.len(), access)?;
            // The bytes must be the ones that `stat` describes.
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

    /// The file's stat at the time it was opened.
    #[must_use]
    pub fn stat(&self) -> &FileStat {
        &self.stat
    }

    /// The bytes, if they are kept in memory.
    pub(crate) fn in_memory(&self) -> Option<&Bytes> {
        match &self.content {
            Content::Memory(bytes) => Some(bytes),
            Content::File { .. } => None,
        }
    }

    /// The open file, if the bytes are not kept in memory.
    pub(crate) fn file(&self) -> Option<&Arc<File>> {
        match &self.content {
            Content::Memory(_) => None,
            Content::File { file, .. } => Some(file),
        }
    }

    /// The bytes of `range` as a slice of the arena, from its start to the end of the range or of
    /// the mapping. `None` if the file cannot be mapped.
    pub(crate) fn mapped(&self, range: &Range<u64>) -> Option<Bytes> {
        let mapped = self.mapping(range.start)?;
        let MappedFile(mapping, bytes) = &*mapped;
        let start = mapping.offset();
        let end = range.end.min(start + mapping.len() as u64);
        Some(bytes.slice((range.start - start) as usize..(end - start) as usize))
    }

    /// The mapping that holds the byte at `offset`.
    fn mapping(&self, offset: u64) -> Option<Cow<'_, MappedFile>> {
        let Content::File { file, mapped } = &self.content else {
            return None;
        };
        // There is nothing to map past the former end: reading shows whether the file has grown.
        let len = self.stat.len();
        if offset >= len {
            return None;
        }
        let map = |range| {
            let mapping = FileMapping::new(Arc::clone(file), range).ok()?;
            let bytes = mapping.bytes();
            Some(MappedFile(mapping, bytes))
        };
        if len <= MAPPING_WINDOW_BYTES {
            let mapped = mapped.get_or_init(|| map(0..len));
            return mapped.as_ref().map(Cow::Borrowed);
        }
        let start = offset / MAPPING_WINDOW_BYTES * MAPPING_WINDOW_BYTES;
        map(start..len.min(start + MAPPING_WINDOW_BYTES)).map(Cow::Owned)
    }

    /// Whether the bytes of `wanted`, or the first 2 MiB of them, are in the page cache.
    pub(crate) fn is_cached(&self, wanted: Range<u64>) -> bool {
        self.mapping(wanted.start)
            .is_some_and(|mapped| residency::first_uncached(&mapped.0, wanted).is_none())
    }
}

/// The first `len` bytes, or `None` if the file has become shorter.
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
            // The file system does not support RWF_NOWAIT: only a caller that may block can read.
            Err(Errno::OPNOTSUPP) if access == DiskAccess::CachedOnly => {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(Some(bytes.into()))
}
