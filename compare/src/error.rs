//! Errors, grouped by what the reader can do about them.

use std::io;

/// Why a run, or one contender's part in it, did not finish.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Ctrl-C or SIGTERM: stop the child processes, restore the settings, and exit.
    #[error("interrupted; nothing was written")]
    Interrupted,
    /// The command line asks for something that cannot be done.
    #[error("{0}")]
    Usage(String),
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, and to what.
        what: String,
        /// The error that the kernel returned.
        source: io::Error,
    },
    /// A contender is not installed, was not built, or did not start.
    #[error("{0}")]
    Unavailable(String),
    /// A contender sent something other than the expected bytes, or reported something untrue.
    #[error("wrong result: {0}")]
    WrongResult(String),
    /// Some contenders failed while they were measured.
    #[error("failed during the measurement: {0}; the results of the other contenders are complete")]
    Failed(String),
}

/// Adds what was being done to an I/O error.
pub(crate) trait Context<T> {
    /// Wraps the error with `what`, which is only built if there is an error.
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::Io {
            what: what(),
            source: source.into(),
        })
    }
}
