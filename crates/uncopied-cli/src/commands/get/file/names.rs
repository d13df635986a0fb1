//! The names of a download.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The final name of a file, and the two that are derived from it. A file that never has the others
/// does not pay for them.
#[derive(Debug)]
pub(crate) struct Names {
    target: PathBuf,
    temporary: OnceLock<PathBuf>,
    record: OnceLock<PathBuf>,
}

impl Names {
    pub(super) fn new(target: &Path) -> Self {
        Self {
            target: target.to_owned(),
            temporary: OnceLock::new(),
            record: OnceLock::new(),
        }
    }

    pub(super) fn target(&self) -> &Path {
        &self.target
    }

    /// Returns the name of the temporary file.
    pub(crate) fn temporary(&self) -> &Path {
        self.temporary.get_or_init(|| self.with(".part"))
    }

    /// Returns the name of the record.
    pub(super) fn record(&self) -> &Path {
        self.record.get_or_init(|| self.with(".part.json"))
    }

    pub(super) fn has_record(&self) -> bool {
        fs::symlink_metadata(self.record()).is_ok()
    }

    fn with(&self, suffix: &str) -> PathBuf {
        let mut name = self.target.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    }
}
