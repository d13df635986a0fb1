//! The temporary file that is sent.

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use uncopied_measure::pattern;

/// The file that is sent. It has no name, and vanishes with the process.
pub(in crate::commands::bench) struct Scratch {
    directory: PathBuf,
    file: Option<Arc<File>>,
}

impl Scratch {
    /// The length of the file: that of the longest transfer.
    pub(super) const FILE_BYTES: u64 = crate::flags::MAX_BENCH_SIZE;

    /// Uses a directory. Creates nothing yet.
    pub(in crate::commands::bench) fn in_directory(directory: PathBuf) -> Self {
        Self {
            directory,
            file: None,
        }
    }

    /// Returns the file, in the page cache. Creates it when it is first needed.
    pub(super) fn file(&mut self) -> io::Result<Arc<File>> {
        if let Some(file) = &self.file {
            return Ok(Arc::clone(file));
        }
        let mut file = tempfile::tempfile_in(&self.directory)?;
        file.write_all(&pattern::bytes(Self::FILE_BYTES))?;
        // Pages that wait to be written could be written while something is measured.
        file.sync_all()?;
        file.rewind()?;
        io::copy(&mut file, &mut io::sink())?;
        Ok(Arc::clone(self.file.insert(Arc::new(file))))
    }
}
