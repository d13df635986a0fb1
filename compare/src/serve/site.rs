//! The files that are served: one of each size, with bytes that do not repeat.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::error::{Context, Error};
use crate::pattern;

/// The size of the file that is requested on each connection before it becomes idle.
pub(super) const IDLE_SIZE_BYTES: u64 = 1 << 10;

/// A directory with one file of each size. Dropping it removes the files.
pub(super) struct Site {
    directory: TempDir,
    files: Vec<SiteFile>,
}

/// One file.
pub(super) struct SiteFile {
    /// The file's size in bytes.
    size: u64,
    /// The path to request, with the leading slash.
    pub(super) path: String,
    /// The bytes of the file.
    pub(super) bytes: Vec<u8>,
}

/// Minimum age of the files when they are first requested.
///
/// A server may treat a file that has just changed differently: for 3 s after a change, uncopied
/// does not keep the file in memory, and sends a weak entity tag for it. The files of a real site
/// are usually older than that, so measuring with new files would measure a special case.
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
            // Sync the file, so that the kernel does not write it to the disk during the
            // measurement. The file stays in the page cache.
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

    /// Creates a directory for the private files of the contender `name`, outside the directory to
    /// serve.
    pub(super) fn scratch(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.directory.path().join(name);
        fs::create_dir(&path).context(|| format!("cannot create {}", path.display()))?;
        Ok(path)
    }

    /// Returns the file of the given size, if there is one.
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
