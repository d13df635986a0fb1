//! The files that are served: one or more of each size, with bytes that do not repeat.

use std::borrow::Cow;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::Advice;
use tempfile::TempDir;

use super::case::ServeCase;
use super::popularity;
use crate::error::{Context, Error};
use crate::{interrupt, pattern};

/// The case with the file that is requested on each connection before it becomes idle.
pub(super) const IDLE_CASE: ServeCase = ServeCase::one_file(1 << 10);

/// The number of files in a directory of a set with several files.
const DIRECTORY_FILES: u32 = 100;

/// Minimum age of the files when they are first requested.
///
/// A server may treat a file that has just changed differently: for 3 s after a change, uncopied
/// does not keep the file in memory, and sends a weak entity tag for it. The files of a real site
/// are usually older than that, so measuring with new files would measure a special case.
const MIN_FILE_AGE: Duration = Duration::from_secs(4);

/// A directory with the files of all cases. Dropping it removes the files.
pub(super) struct Site {
    directory: TempDir,
    sets: Vec<FileSet>,
}

/// The files of a case. They have the same size and different bytes.
///
/// A single file is in the root. If there are several files, they are in directories of 100, as on
/// a real site, and the paths of all of them have the same length.
pub(super) struct FileSet {
    size: u64,
    files: u32,
    /// The bytes, if there is only one file.
    single: Option<Vec<u8>>,
    order: Vec<u32>,
}

impl Site {
    /// Writes the files of all cases into a new directory below `parent`.
    pub(super) fn create(
        parent: &Path,
        cases: impl IntoIterator<Item = ServeCase>,
    ) -> Result<Self, Error> {
        let directory = tempfile::Builder::new()
            .prefix("compare-")
            .tempdir_in(parent)
            .context(|| format!("cannot create a directory in {}", parent.display()))?;
        let mut site = Self {
            directory,
            sets: Vec::new(),
        };
        let root = site.files();
        fs::create_dir(&root).context(|| format!("cannot create {}", root.display()))?;
        for case in cases {
            if site.set(case).is_none() {
                let set = FileSet::new(case.size, case.files);
                set.write(&root)?;
                site.sets.push(set);
            }
        }
        // Sync the files, so that the kernel does not write them to the disk during the
        // measurement. The files stay in the page cache.
        File::open(&root)
            .and_then(|root| Ok(rustix::fs::syncfs(root)?))
            .context(|| format!("cannot sync {}", root.display()))?;
        thread::sleep(MIN_FILE_AGE);
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

    /// Returns the files of a case, if they have been written.
    pub(super) fn set(&self, case: ServeCase) -> Option<&FileSet> {
        self.sets
            .iter()
            .find(|set| (set.size, set.files) == (case.size, case.files))
    }

    /// Removes the cold files of a case from the page cache, as far as no server has mapped them.
    pub(super) fn cool(&self, case: ServeCase) -> Result<(), Error> {
        let root = self.files();
        for rank in popularity::cold_ranks(case.files) {
            interrupt::check()?;
            let file = popularity::file_of_rank(rank, case.files);
            let Some(set) = self.set(case) else {
                return Ok(());
            };
            let path = root.join(&set.path(file)[1..]);
            File::open(&path)
                .and_then(|file| Ok(rustix::fs::fadvise(file, 0, None, Advice::DontNeed)?))
                .context(|| format!("cannot remove {} from the cache", path.display()))?;
        }
        Ok(())
    }
}

impl FileSet {
    /// Describes a set, without writing the files.
    pub(super) fn new(size: u64, files: u32) -> Self {
        Self {
            size,
            files,
            single: (files == 1).then(|| pattern::bytes(size)),
            order: popularity::order(files),
        }
    }

    fn write(&self, root: &Path) -> Result<(), Error> {
        for file in 0..self.files {
            interrupt::check()?;
            let path = root.join(&self.path(file)[1..]);
            if file.is_multiple_of(DIRECTORY_FILES)
                && let Some(directory) = path.parent()
            {
                fs::create_dir_all(directory)
                    .context(|| format!("cannot create {}", directory.display()))?;
            }
            fs::write(&path, self.bytes(file))
                .context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// The size of each file in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Returns the path to request a file, with the leading slash.
    pub(super) fn path(&self, file: u32) -> String {
        let Self { size, files, .. } = self;
        match files {
            1 => format!("/{size}.bin"),
            _ => format!("/{size}x{files}/{}.bin", self.place(file)),
        }
    }

    /// Returns the part of a path that depends on the number of the file: the directory and the
    /// name. If there is only one file, no part does.
    pub(super) fn place(&self, file: u32) -> String {
        match self.files {
            1 => String::new(),
            _ => format!(
                "{:06}/{:02}",
                file / DIRECTORY_FILES,
                file % DIRECTORY_FILES
            ),
        }
    }

    /// Returns the bytes of a file.
    pub(super) fn bytes(&self, file: u32) -> Cow<'_, [u8]> {
        match &self.single {
            Some(bytes) => Cow::Borrowed(bytes),
            None => Cow::Owned(pattern::numbered_bytes(self.size, file)),
        }
    }

    /// Returns the first bytes of a file. Those beyond its end have no meaning.
    pub(super) fn start(&self, file: u32) -> [u8; 8] {
        pattern::numbered_start(self.size, file)
    }

    /// Returns the number of the file that is requested with the request number `request` of a
    /// measurement.
    pub(super) fn file_at(&self, request: usize) -> u32 {
        self.order[request % self.order.len()]
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::serve::case::Receiver;

    #[test]
    fn files_on_disk_have_the_expected_bytes() {
        let parent = tempfile::tempdir().unwrap();
        let case = |size, files| ServeCase {
            size,
            files,
            receiver: Receiver::Copy,
        };
        let cases = [case(1, 1), case(4096, 1), case(10_001, 250)];
        let site = Site::create(parent.path(), cases).unwrap();
        for case in cases {
            let set = site.set(case).unwrap();
            for file in [0, case.files / 2, case.files - 1] {
                let on_disk = fs::read(site.files().join(&set.path(file)[1..])).unwrap();
                assert_eq!(on_disk.len() as u64, case.size);
                assert_eq!(on_disk, *set.bytes(file));
                let start = on_disk.len().min(8);
                assert_eq!(on_disk[..start], set.start(file)[..start]);
            }
        }
        let path = site.set(cases[2]).unwrap().path(249);
        assert_eq!(path, "/10001x250/000002/49.bin");
        assert!(site.set(case(2, 1)).is_none());
    }
}
