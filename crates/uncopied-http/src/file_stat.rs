//! What `statx` reports about a file.

use std::fs::File;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Statx, StatxFlags};

/// What `statx` reports about a file: enough to tell whether it is still the same file with the
/// same bytes.
///
/// Two equal values mean equal bytes, unless a later change falls into the same tick of the file
/// system's clock; see [`FileStat::is_stable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStat {
    device: (u32, u32),
    inode: u64,
    mode: u16,
    len: u64,
    modified: (i64, u32),
    changed: (i64, u32),
}

/// How long after a file's last change a further change is certain to get a different time stamp.
///
/// Linux takes time stamps from a clock that ticks every 1 to 10 ms; FAT stores them in steps of
/// 2 s.
const TIMESTAMP_GRANULARITY: Duration = Duration::from_secs(3);

impl FileStat {
    /// Queries an open file. One system call.
    ///
    /// # Errors
    ///
    /// Any error from `statx`.
    pub fn of(file: &File) -> io::Result<Self> {
        Self::at(file, "", AtFlags::EMPTY_PATH)
    }

    /// Queries `path` beneath the directory `dir`. One system call.
    ///
    /// # Errors
    ///
    /// Any error from `statx`.
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

    /// When the bytes last changed, in seconds and nanoseconds since 1970.
    #[must_use]
    pub fn modified(&self) -> (i64, u32) {
        self.modified
    }

    /// When the file or its attributes last changed. Unlike [`modified`](Self::modified), no
    /// program can set this time back.
    #[must_use]
    pub fn changed(&self) -> (i64, u32) {
        self.changed
    }

    /// Whether the last change is old enough that any further change gets a different time stamp.
    /// Only then do equal values prove equal bytes, and only then is an `ETag` strong.
    #[must_use]
    pub fn is_stable(&self, now: SystemTime) -> bool {
        // Any program may set the modification time, even to a time in the future. No program can
        // set the change time.
        let last = [self.modified, self.changed]
            .into_iter()
            .map(since_1970)
            .filter(|&time| time <= now)
            .max()
            .unwrap_or_else(|| since_1970(self.changed));
        now.duration_since(last)
            .is_ok_and(|age| age > TIMESTAMP_GRANULARITY)
    }
}

fn since_1970((seconds, nanos): (i64, u32)) -> SystemTime {
    u64::try_from(seconds).map_or(UNIX_EPOCH, |seconds| {
        UNIX_EPOCH + Duration::new(seconds, nanos)
    })
}

impl From<&Statx> for FileStat {
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
