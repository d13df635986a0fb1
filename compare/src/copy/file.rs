//! The files that are sent.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::error::{Context, Error};
use crate::pattern;

/// A file to send, with bytes that do not repeat.
pub(super) struct SourceFile {
    /// The file's path.
    pub(super) path: PathBuf,
    /// The file's size in bytes.
    pub(super) size: u64,
}

impl SourceFile {
    /// Writes a file of `size` bytes into `directory`.
    pub(super) fn create(directory: &Path, size: u64) -> Result<Self, Error> {
        let path = directory.join(format!("{size}.bin"));
        // Sync the file, so that the kernel does not write it to the disk during the measurement.
        // The file stays in the page cache.
        File::create(&path)
            .and_then(|mut file| {
                file.write_all(&pattern::bytes(size))?;
                file.sync_all()
            })
            .context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { path, size })
    }

    /// Reads the file, and returns its bytes.
    pub(super) fn read(&self) -> Result<Vec<u8>, Error> {
        fs::read(&self.path).context(|| format!("cannot read {}", self.path.display()))
    }

    /// Reads the file and discards its bytes, so that all of it is in the page cache.
    pub(super) fn warm_page_cache(&self) -> Result<(), Error> {
        File::open(&self.path)
            .and_then(|file| {
                let mut reader = io::BufReader::with_capacity(1024 * 1024, file);
                io::copy(&mut reader, &mut io::sink())
            })
            .map(|_| ())
            .context(|| format!("cannot read {}", self.path.display()))
    }
}
