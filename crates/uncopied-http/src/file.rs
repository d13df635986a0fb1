//! A regular file that is open for serving.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rustix::fs::{AtFlags, Statx, StatxFlags};
use rustix::io::{Errno, ReadWriteFlags};
use uncopied::arena::FileMapping;
use uncopied::residency;

/// What `statx` told of a file: enough to know that it is still the same file with the same bytes.
///
/// Two equal `Facts` name the same bytes as long as the later change that would make them differ
/// cannot hide in the same tick of the file system's clock; see [`Facts::settled`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    device: (u32, u32),
    inode: u64,
    mode: u16,
    len: u64,
    modified: (i64, u32),
    changed: (i64, u32),
}

/// How long after a file's last change a further change is sure to carry another time stamp.
///
/// Linux stamps with a clock that ticks every 1 to 10 ms; FAT stores 2 s steps.
const CLOCK_STEP: Duration = Duration::from_secs(3);

impl Facts {
    /// Asks the kernel about an open file. One system call.
    ///
    /// # Errors
    ///
    /// Whatever `statx` answers.
    pub fn of(file: &File) -> io::Result<Self> {
        Self::at(file, "", AtFlags::EMPTY_PATH)
    }

    /// Asks the kernel about `path` beneath the directory `dir`. One system call.
    ///
    /// # Errors
    ///
    /// Whatever `statx` answers.
    pub fn at(
        dir: impl std::os::fd::AsFd,
        path: impl rustix::path::Arg,
        flags: AtFlags,
    ) -> io::Result<Self> {
        let wanted = StatxFlags::BASIC_STATS;
        Ok(Self::from(&rustix::fs::statx(dir, path, flags, wanted)?))
    }

    /// The length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the length is 0.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether this is a regular file.
    #[must_use]
    pub fn is_regular(&self) -> bool {
        rustix::fs::FileType::from_raw_mode(self.mode.into()).is_file()
    }

    /// Whether this is a directory.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        rustix::fs::FileType::from_raw_mode(self.mode.into()).is_dir()
    }

    /// The time of the last change of the bytes, in seconds and nanoseconds since 1970.
    #[must_use]
    pub fn modified(&self) -> (i64, u32) {
        self.modified
    }

    /// The time of the last change of the file or its attributes. Nobody can set it back.
    #[must_use]
    pub fn changed(&self) -> (i64, u32) {
        self.changed
    }

    /// Whether the last change lies so far back that any further one will carry another time
    /// stamp. Only then do equal facts prove equal bytes, and only then is an `ETag` strong.
    #[must_use]
    pub fn settled(&self, now: SystemTime) -> bool {
        // Anybody may set the time of the last modification, also to a day to come; not the other.
        let last = [self.modified, self.changed]
            .into_iter()
            .map(since_1970)
            .filter(|&time| time <= now)
            .max()
            .unwrap_or_else(|| since_1970(self.changed));
        now.duration_since(last).is_ok_and(|age| age > CLOCK_STEP)
    }
}

fn since_1970((seconds, nanos): (i64, u32)) -> SystemTime {
    u64::try_from(seconds).map_or(UNIX_EPOCH, |seconds| {
        UNIX_EPOCH + Duration::new(seconds, nanos)
    })
}

impl From<&Statx> for Facts {
    fn from(stat: &Statx) -> Self {
        Self {
            device: (stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
            mode: stat.stx_mode,
            len: stat.stx_size,
            modified: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
            changed: (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec),
        }
    }
}

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
