//! The files that are served: one of each size, of bytes that repeat nowhere.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::error::{Context, Error};
use crate::pattern;

/// A directory with one file of each size, removed when dropped.
pub(crate) struct Site {
    directory: TempDir,
    pages: Vec<Page>,
}

/// One file.
pub(crate) struct Page {
    /// Its length.
    pub(crate) size: u64,
    /// The path to ask for, with its leading slash.
    pub(crate) path: String,
    /// Its bytes.
    pub(crate) bytes: Vec<u8>,
}

/// How old the files are at least when they are first asked for. Those of a site are, and a server may
/// treat a file that has just been written with more care: uncopied keeps none in memory whose last change
/// is less than 3 s ago, and calls its tag weak until then.
const AGE: Duration = Duration::from_secs(4);

impl Site {
    /// Writes the files into a new directory below `parent`.
    pub(crate) fn create(parent: &Path, sizes: &[u64]) -> Result<Self, Error> {
        let directory = tempfile::Builder::new()
            .prefix("compare-")
            .tempdir_in(parent)
            .context(|| format!("cannot make a directory in {}", parent.display()))?;
        let site = Self {
            pages: sizes.iter().map(|&size| Page::new(size)).collect(),
            directory,
        };
        let files = site.files();
        fs::create_dir(&files).context(|| format!("cannot make {}", files.display()))?;
        for page in &site.pages {
            let path = files.join(&page.path[1..]);
            // Synced, so that no write-back runs under the measurement; it stays in the cache.
            File::create(&path)
                .and_then(|mut file| {
                    file.write_all(&page.bytes)?;
                    file.sync_all()
                })
                .context(|| format!("cannot write {}", path.display()))?;
        }
        std::thread::sleep(AGE);
        Ok(site)
    }

    /// The directory to serve.
    pub(crate) fn files(&self) -> PathBuf {
        self.directory.path().join("files")
    }

    /// A new directory next to it, for a contender's own files.
    pub(crate) fn scratch(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.directory.path().join(name);
        fs::create_dir(&path).context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// The file of that size, if there is one.
    pub(crate) fn page(&self, size: u64) -> Option<&Page> {
        self.pages.iter().find(|page| page.size == size)
    }
}

impl Page {
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
    fn files_hold_what_pages_say() {
        let parent = tempfile::tempdir().unwrap();
        let site = Site::create(parent.path(), &[1, 4096, 10_001]).unwrap();
        for size in [1, 4096, 10_001] {
            let page = site.page(size).unwrap();
            assert_eq!(page.bytes.len() as u64, size);
            let on_disk = fs::read(site.files().join(&page.path[1..])).unwrap();
            assert_eq!(on_disk, page.bytes);
        }
        assert!(site.page(2).is_none());
    }
}
