//! What identifies a file.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// What identifies a file, whatever its name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }

    /// Whether this file is the one at a path.
    pub(super) fn is_at(self, path: &Path) -> bool {
        self.len_at(path).is_some()
    }

    /// Returns the length of this file. `None` if it is not the one at a path.
    pub(super) fn len_at(self, path: &Path) -> Option<u64> {
        let metadata = fs::symlink_metadata(path).ok()?;
        (Self::of(&metadata) == self).then_some(metadata.len())
    }
}
