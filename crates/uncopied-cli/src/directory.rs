//! Directories that a path names.

use std::path::Path;

/// Returns a directory that may be empty as a path, which means the current one.
pub(crate) fn or_current(directory: &Path) -> &Path {
    match directory.as_os_str().is_empty() {
        true => Path::new("."),
        false => directory,
    }
}
