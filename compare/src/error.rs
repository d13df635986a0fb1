//! The error type. Its variants are grouped by what the user can do about them.

use std::io;

use uncopied_measure::error::chain;

/// The reason why a whole run failed, or why one contender failed during a run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Ctrl-C or SIGTERM has arrived. The run ends without a report, after it has stopped its child
    /// processes and restored the settings that it changed.
    #[error("interrupted; no report was written")]
    Interrupted,
    /// The command line asks for something that cannot be done.
    #[error("{0}")]
    Usage(String),
    /// A system call failed.
    #[error("{what}: {}", chain(.source))]
    Io {
        /// The operation that failed and its object, as in `cannot open FILE`.
        what: String,
        /// The error that the kernel returned.
        source: io::Error,
    },
    /// A contender is not installed, was not built, or did not start.
    #[error("{0}")]
    Unavailable(String),
    /// A contender sent bytes that differ from the expected ones, or reported figures that
    /// contradict what was received.
    #[error("wrong result: {0}")]
    WrongResult(String),
    /// Some contenders failed while being measured. The report with the results of the others has
    /// been written.
    #[error("failed during the measurement: {0}; the results of the other contenders are complete")]
    Failed(String),
}

/// Adds to an I/O error a description of the operation that failed.
pub(crate) trait Context<T> {
    /// Converts an error to [`Error::Io`] with the description that `what` returns. Calls `what`
    /// only if there is an error.
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// The text of an `uncopied::Error` does not contain the kernel's message, which is the text of
    /// its source. Fails if [`chain`] does not add the texts of the sources.
    #[test]
    fn the_text_contains_the_kernels_message() {
        let file = File::open("Cargo.toml").expect("opened");
        let (socket, peer) = UnixStream::pair().expect("a pair");
        drop(peer);
        let sent = uncopied::send_file(&file, .., &socket);
        let error = sent.context(|| "cannot send".into()).expect_err("closed");
        assert_eq!(
            error.to_string(),
            "cannot send: the peer closed the connection after 0 bytes (sendfile): \
             Broken pipe (os error 32)"
        );
    }
}
