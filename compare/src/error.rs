//! What can go wrong, by what the reader can do about it.

use std::io;

/// Why a run, or one contender's part in it, did not finish.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Ctrl-C or SIGTERM: end the servers and put the settings back, then leave.
    #[error("interrupted; nothing was written")]
    Interrupted,
    /// The command line asks for what cannot be done.
    #[error("{0}")]
    Usage(String),
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, and to what.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A contender is not installed, not built, or did not come up.
    #[error("{0}")]
    Unavailable(String),
    /// A contender answered with something other than the file.
    #[error("wrong answer: {0}")]
    WrongAnswer(String),
    /// Contenders failed while the others were measured.
    #[error("failed while it was being measured: {0}; the results without it are complete")]
    Failed(String),
}

/// Names what was being done when an I/O error came.
pub(crate) trait Context<T> {
    /// Wraps the error with `what`, which is only built if there is one.
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
