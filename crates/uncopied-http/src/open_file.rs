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

use crate::file_stat::Facts;

/// Whether a call may wait for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// No: answer [`io::ErrorKind::WouldBlock`] instead. For event loops.
    Never,
    /// Yes. For threads that may block.
    ForDisk,
}

/// Files of up to this many bytes are kept in memory, unless [`OpenFile::in_memory_up_to`] says
/// otherwise: so small a body leaves in one system call together with its head, for less than
/// `sendfile` costs.
pub const SMALL: u64 = 16 << 10;

/// A regular file open for serving, shared by every response that sends it.
///
/// A small one is a copy of its bytes, as of the time it was opened, and holds no descriptor. A
/// larger one is the open file.
#[derive(Debug)]
pub struct OpenFile {
    facts: Facts,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Memory(Bytes),
    File {
        file: Arc<File>,
        /// Mapped whole at the first need; `None` inside if that is refused.
        mapped: OnceLock<Option<Mapped>>,
    },
}

/// A mapping and its bytes.
#[derive(Clone, Debug)]
struct Mapped(FileMapping, Bytes);

impl OpenFile {
    /// Takes an open regular file and what [`Facts::of`] told of it. A file of up to [`SMALL`] bytes
    /// is read at once.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] if `wait` is [`Wait::Never`] and the disk would be needed;
    /// otherwise what reading the file answers.
    pub fn new(file: File, facts: Facts, wait: Wait) -> io::Result<Self> {
        Self::in_memory_up_to(SMALL, file, facts, wait)
    }

    /// As [`new`](Self::new), with a limit of your own on the bytes that are kept in memory.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), and `EBUSY` if the file does not hold still
    /// while it is read.
    pub fn in_memory_up_to(
        limit: u64,
        file: File,
        mut facts: Facts,
        wait: Wait,
    ) -> io::Result<Self> {
        for _ in 0..READS {
            if facts.len() > limit {
                let content = Content::File {
                    file: Arc::new(file),
                    mapped: OnceLock::new(),
                };
                return Ok(Self { facts, content });
            }
            let bytes = read_whole(&file, facts.len(), wait)?;
            // The bytes must be those that the facts stand for.
            let now = Facts::of(&file)?;
            match bytes {
                Some(bytes) if now == facts => {
                    return Ok(Self {
                        facts,
                        content: Content::Memory(bytes),
                    });
                }
                _ => facts = now,
            }
        }
        Err(Errno::BUSY.into())
    }

    /// The facts that the bytes were opened with.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
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

    /// The bytes from `range.start` on, as far as one mapping goes, mapped into the arena. `None`
    /// where the file cannot be mapped.
    pub(crate) fn mapped(&self, range: &Range<u64>) -> Option<Bytes> {
        let mapped = self.mapping(range.start)?;
        let Mapped(mapping, bytes) = &*mapped;
        let start = mapping.offset();
        let end = range.end.min(start + mapping.len() as u64);
        Some(bytes.slice((range.start - start) as usize..(end - start) as usize))
    }

    /// The mapping that holds the byte at `offset`.
    fn mapping(&self, offset: u64) -> Option<Cow<'_, Mapped>> {
        let Content::File { file, mapped } = &self.content else {
            return None;
        };
        // Beyond what was the end there is nothing to map: reading tells whether the file has grown.
        let len = self.facts.len();
        if offset >= len {
            return None;
        }
        let map = |range| {
            let mapping = FileMapping::new(Arc::clone(file), range).ok()?;
            let bytes = mapping.bytes();
            Some(Mapped(mapping, bytes))
        };
        if len <= WINDOW {
            let mapped = mapped.get_or_init(|| map(0..len));
            return mapped.as_ref().map(Cow::Borrowed);
        }
        let start = offset / WINDOW * WINDOW;
        map(start..len.min(start + WINDOW)).map(Cow::Owned)
    }

    /// Whether `wanted` bytes can be had without waiting for the disk, or the first 2 MiB of them.
    pub(crate) fn is_at_hand(&self, wanted: Range<u64>) -> bool {
        self.mapping(wanted.start)
            .is_some_and(|mapped| residency::first_uncached(&mapped.0, wanted).is_none())
    }
}

/// How often a file is read again that changed while it was read into memory.
const READS: usize = 4;

/// The most that is mapped at a time, in bytes. A mapping costs addresses, not memory.
const WINDOW: u64 = 1 << 30;

/// The first `len` bytes, or `None` if the file has become shorter.
fn read_whole(file: &File, len: u64, wait: Wait) -> io::Result<Option<Bytes>> {
    let mut bytes = vec![0; usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?];
    let mut have = 0;
    while have < bytes.len() {
        let flags = match wait {
            Wait::Never => ReadWriteFlags::NOWAIT,
            Wait::ForDisk => ReadWriteFlags::empty(),
        };
        let buffers = &mut [IoSliceMut::new(&mut bytes[have..])];
        match rustix::io::preadv2(file, buffers, have as u64, flags) {
            Ok(0) => return Ok(None),
            Ok(read) => have += read,
            Err(Errno::INTR) => {}
            // A file system without RWF_NOWAIT: whoever may wait reads it.
            Err(Errno::OPNOTSUPP) if wait == Wait::Never => {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(Some(bytes.into()))
}
