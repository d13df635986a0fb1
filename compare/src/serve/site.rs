//! The files that are served: one of each size, with bytes that do not repeat.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::error::{Context, Error};
use crate::pattern;

/// The file that idle connections request.
pub(super) const IDLE_SIZE_BYTES: u64 = 1 << 10;

/// A directory with one file of each size. Dropping it removes the files.
pub(super) struct Site {
    directory: TempDir,
    files: Vec<SiteFile>,
}

/// One file.
pub(super) struct SiteFile {
    /// Its size in bytes.
    size: u64,
    /// The path of its requests, with the leading slash.
    pub(super) path: String,
    /// Its bytes.
    pub(super) bytes: Vec<u8>,
}

/// Minimum age of the files when they are first requested.
///
/// The files of a real site are older. A server may be more careful with a file that has just been
/// written: uncopied keeps no file in memory that has changed within the last 3 s, and sends a weak
/// entity tag until then.
const MIN_FILE_AGE: Duration = Duration::from_secs(4);

impl Site {
    /// Writes the files into a new directory below `parent`.
    pub(super) fn create(parent: &Path, sizes: &[u64]) -> Result<Self, Error> {
        let directory = tempfile::Builder::new()
            .prefix("compare-")
            .tempdir_in(parent)
            .context(|| format!("cannot create a directory in {}", parent.display()))?;
        let site = Self {
            files: sizes.iter().map(|&size| SiteFile::new(size)).collect(),
            directory,
        };
        let directory = site.files();
        fs::create_dir(&directory).context(|| format!("cannot create {}", directory.display()))?;
        for file in &site.files {
            let path = directory.join(&file.path[1..]);
            // Synced, so that no write-back runs during the measurement. The file stays in the
            // page cache.
            File::create(&path)
                .and_then(|mut created| {
                    created.write_all(&file.bytes)?;
                    created.sync_all()
                })
                .context(|| format!("cannot write {}", path.display()))?;
        }
        std::thread::sleep(MIN_FILE_AGE);
        Ok(site)
    }

    /// The directory to serve.
    pub(super) fn files(&self) -> PathBuf {
        self.directory.path().join("files")
    }

    /// Creates a directory next to the files, for files of a contender's own.
    pub(super) fn scratch(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.directory.path().join(name);
        fs::create_dir(&path).context(|| format!("cannot create {}", path.display()))?;
        Ok(path)
    }

    /// The file of that size, if there is one.
    pub(super) fn file(&self, size: u64) -> Option<&SiteFile> {
        self.files.iter().find(|file| file.size == size)
    }
}

impl SiteFile {
    fn new(size: u64) -> Self {
        Self {
            size,
            path: format!("/{size}.bin"),
            bytes: pattern::bytes(size),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn files_on_disk_have_the_expected_bytes() {
        let parent = tempfile::tempdir().unwrap();
        let site = Site::create(parent.path(), &[1, 4096, 10_001]).unwrap();
        for size in [1, 4096, 10_001] {
            let file = site.file(size).unwrap();
            assert_eq!(file.bytes.len() as u64, size);
            let on_disk = fs::read(site.files().join(&file.path[1..])).unwrap();
            assert_eq!(on_disk, file.bytes);
        }
        assert!(site.file(2).is_none());
    }
}
