//! The error of a transfer: why it failed, and how many bytes had been sent.

use std::fmt;
use std::io;

use rustix::io::Errno;

use crate::report::Report;

/// The error of a transfer that stopped before its end.
///
/// The bytes that the socket accepted before the error may have reached the peer.
/// [`report`](Self::report) counts them. If the caller has promised the peer more bytes than that,
/// for example in a `Content-Length` header, it must close the connection.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    call: &'static str,
    report: Box<Report>,
    cause: Option<io::Error>,
}

/// The cause of an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The file ended before the promised length, for example because it was truncated.
    SourceTooShort {
        /// How many bytes were promised.
        promised: u64,
    },
    /// The source could not be read.
    Source,
    /// The source cannot be read at an offset, because it is a pipe or a terminal, for example.
    /// Only seekable files can be sent.
    SourceNotSeekable,
    /// The peer has closed or reset the connection.
    PeerClosed,
    /// The socket accepted nothing for the duration of its send timeout (`SO_SNDTIMEO`).
    TimedOut,
    /// Writing to the socket failed for another reason.
    Sink,
    /// The sink is not a stream socket.
    NotAStreamSocket,
    /// No mechanism of the plan is supported here. This happens only with forced mechanisms that do
    /// not include `copy`, because `copy` is always supported.
    Unsupported,
}

impl ErrorKind {
    /// Returns the kind of error for an errno that a write to the sink has returned.
    pub(crate) fn of_sink(errno: Errno) -> Self {
        match errno {
            // Each of these means that the connection is gone. The errno depends on the call that
            // finds out.
            Errno::PIPE | Errno::CONNRESET | Errno::CONNABORTED | Errno::NOTCONN => {
                Self::PeerClosed
            }
            Errno::NOTSOCK => Self::NotAStreamSocket,
            _ => Self::Sink,
        }
    }
}

impl Error {
    pub(crate) fn new(
        kind: ErrorKind,
        call: &'static str,
        report: Report,
        cause: Option<io::Error>,
    ) -> Self {
        Self {
            kind,
            call,
            report: Box::new(report),
            cause,
        }
    }

    /// Returns the kind of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Returns the name of the mechanism or system call that failed.
    #[must_use]
    pub fn call(&self) -> &'static str {
        self.call
    }

    /// Returns how many bytes the socket had accepted before the error.
    #[must_use]
    pub fn moved(&self) -> u64 {
        self.report.bytes()
    }

    /// Returns the report of the transfer up to the error: the bytes that each mechanism had moved,
    /// and the fallbacks.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { call, .. } = self;
        let moved = self.moved();
        match self.kind {
            ErrorKind::SourceTooShort { promised } => write!(
                f,
                "the file ended after {moved} of {promised} bytes ({call}): \
                 close the connection, the peer waits for the rest"
            ),
            ErrorKind::Source => write!(f, "{call} could not read the file after {moved} bytes"),
            ErrorKind::SourceNotSeekable => {
                write!(f, "the source has no offsets ({call}): send a file")
            }
            ErrorKind::PeerClosed => {
                write!(
                    f,
                    "the peer closed the connection after {moved} bytes ({call})"
                )
            }
            ErrorKind::TimedOut => {
                write!(
                    f,
                    "the socket accepted nothing within its send timeout, after {moved} bytes"
                )
            }
            ErrorKind::Sink => write!(
                f,
                "{call} could not write to the socket after {moved} bytes"
            ),
            ErrorKind::NotAStreamSocket => {
                write!(
                    f,
                    "the sink is not a stream socket ({call}): connect a TCP or Unix stream"
                )
            }
            ErrorKind::Unsupported => write!(
                f,
                "no mechanism of the plan is supported here ({call}), after {moved} bytes: \
                 add copy to the list"
            ),
        }?;
        match &self.cause {
            Some(cause) => write!(f, ": {cause}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match error.kind {
            ErrorKind::SourceTooShort { .. } => io::ErrorKind::UnexpectedEof,
            ErrorKind::TimedOut => io::ErrorKind::TimedOut,
            ErrorKind::Unsupported => io::ErrorKind::Unsupported,
            ErrorKind::SourceNotSeekable | ErrorKind::NotAStreamSocket => {
                io::ErrorKind::InvalidInput
            }
            ErrorKind::Source | ErrorKind::Sink | ErrorKind::PeerClosed => error
                .cause
                .as_ref()
                .map_or(io::ErrorKind::Other, io::Error::kind),
        };
        Self::new(kind, error)
    }
}
