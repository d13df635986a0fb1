//! Follows the served path when it leads to another directory.

use std::path::PathBuf;

use uncopied_http::{RootChange, ServeFiles};

use crate::error::kernel_text;
use crate::output::say;

/// Checks where the served path leads, and reports every change on standard error.
pub(crate) struct RootFollower {
    files: ServeFiles,
    path: PathBuf,
    /// The error of the last check, as it was reported. `None` if the check succeeded.
    reported: Option<String>,
}

impl RootFollower {
    pub(crate) fn new(files: ServeFiles, path: PathBuf) -> Self {
        Self {
            files,
            path,
            reported: None,
        }
    }

    /// Serves the directory that the path leads to now. May be called at any time, for example on a
    /// signal, and is called every second. Prints a line if another directory is served, and if
    /// there is none, but not again as long as the reason stays the same.
    pub(crate) fn check(&mut self) {
        let path = self.path.display();
        match self.files.follow_root() {
            Ok(change) => {
                self.reported = None;
                if change == RootChange::Followed {
                    say(&format_args!(
                        "{path} leads to another directory, which is served now"
                    ));
                }
            }
            Err(error) => {
                let reason = kernel_text(&error);
                if self.reported.as_ref() != Some(&reason) {
                    say(&format_args!(
                        "cannot serve {path}: {reason}; requests get status 503 until a directory is there"
                    ));
                    self.reported = Some(reason);
                }
            }
        }
    }
}
