//! The metadata of a file.

use std::fs::File;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Statx, StatxFlags};
use rustix::io::Errno;

/// The metadata that `statx` reports about a file. Comparing two values shows whether they describe
/// the same file with the same content.
///
/// If two values are equal, the content did not change between the two queries, with one exception:
/// a change leaves the timestamps as they are if it happens within the same tick of the file
/// system's clock as the previous change. This cannot happen if the file was
/// [stable](FileStat::is_stable) at the first query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStat {
    device: (u32, u32),
    inode: u64,
    mode: u16,
    len: u64,
    modified: (i64, u32),
    changed: (i64, u32),
}

/// Two changes to a file that are further apart than this are certain to get different timestamps.
///
/// Linux takes timestamps from a clock that ticks every 1 to 10 ms, but FAT stores them with a
/// resolution of only 2 s. The value of 3 s covers both.
const TIMESTAMP_GRANULARITY: Duration = Duration::from_secs(3);

impl FileStat {
    /// Queries an open file. Makes one system call: `statx`, or `fstatat` where a sandbox or the
    /// kernel refuses that.
    ///
    /// # Errors
    ///
    /// Any error from `statx` or `fstatat`.
    pub fn of(file: &File) -> io::Result<Self> {
        Self::at(file, "", AtFlags::EMPTY_PATH)
    }

    /// Queries `path`, relative to the directory `dir`. Makes one system call. `flags` are passed
    /// to `statx(2)`.
    ///
    /// # Errors
    ///
    /// Any error from `statx`.
    pub(crate) fn at(
        dir: impl std::os::fd::AsFd,
        path: impl rustix::path::Arg,
        flags: AtFlags,
    ) -> io::Result<Self> {
        let wanted = StatxFlags::BASIC_STATS;
        path.into_with_c_str(|path| {
            match rustix::fs::statx(&dir, path, flags, wanted) {
                Ok(stat) => Ok(Self::from_statx(&stat)),
                // The kernel or a sandbox does not provide statx. If EPERM has another cause,
                // fstatat fails with it as well.
                Err(Errno::NOSYS | Errno::PERM) => {
                    let stat = rustix::fs::statat(&dir, path, flags)?;
                    Ok(Self::from_stat(&stat))
                }
                Err(errno) => Err(errno),
            }
        })
        .map_err(io::Error::from)
    }

    fn from_stat(stat: &rustix::fs::Stat) -> Self {
        let device = stat.st_dev;
        Self {
            device: (rustix::fs::major(device), rustix::fs::minor(device)),
            inode: stat.st_ino,
            // The type and the permissions are the lower 16 bits. The others are always 0.
            mode: stat.st_mode as u16,
            len: u64::try_from(stat.st_size).unwrap_or_default(),
            modified: (stat.st_mtime, stat.st_mtime_nsec as u32),
            changed: (stat.st_ctime, stat.st_ctime_nsec as u32),
        }
    }

    fn from_statx(stat: &Statx) -> Self {
        Self {
            device: (stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
            mode: stat.stx_mode,
            len: stat.stx_size,
            modified: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
            changed: (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec),
        }
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

    /// Whether both describe the same file or directory, whatever has changed in it.
    #[cfg(feature = "serve-files")]
    pub(crate) fn is_same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }

    /// Returns when the content was last modified, in seconds and nanoseconds since 1970. Programs
    /// can set this time to any value.
    #[must_use]
    pub fn modified(&self) -> (i64, u32) {
        self.modified
    }

    /// Returns when the content or the attributes last changed, in seconds and nanoseconds since
    /// 1970. Unlike [`modified`](Self::modified), this time cannot be set by programs.
    #[must_use]
    pub fn changed(&self) -> (i64, u32) {
        self.changed
    }

    /// Whether the file last changed long enough ago that any later change would get a different
    /// timestamp. Only in that case do two equal `FileStat`s prove that the content is unchanged,
    /// so only in that case may the `ETag` be strong.
    #[must_use]
    pub fn is_stable(&self, now: SystemTime) -> bool {
        // Ignore times in the future, because programs can set the modification time to any value.
        // If both times are in the future, the age of the last change is unknown, so
        // `duration_since` fails below, and the file counts as not stable.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_system_calls_report_the_same() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.as_file().set_len(12_345).expect("grown");
        let time = UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
        file.as_file().set_modified(time).expect("the time is set");
        for path in [file.path(), std::path::Path::new("/")] {
            let open = File::open(path).expect("opened");
            let by_statx = FileStat::of(&open).expect("queried");
            let stat = rustix::fs::fstat(&open).expect("queried");
            assert_eq!(FileStat::from_stat(&stat), by_statx);
        }
    }
}
