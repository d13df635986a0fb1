//! Why a transfer failed, and how far it got.

use std::fmt;
use std::io;

use rustix::io::Errno;

use crate::report::Report;

/// A transfer that did not reach its end.
///
/// The bytes that the socket had accepted may have reached the peer: [`report`](Self::report)
/// counts them. If the caller's protocol promised more, it must close the connection.
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
    /// The source has no offsets, like a pipe or a terminal, and cannot be sent by range.
    SourceNotSeekable,
    /// The peer has closed or reset the connection.
    PeerClosed,
    /// The socket accepted nothing for the duration of its send timeout (`SO_SNDTIMEO`).
    TimedOut,
    /// Writing to the socket failed for another reason.
    Sink,
    /// The sink is not a stream socket.
    NotAStreamSocket,
    /// Every mechanism of the plan was refused. This happens only to forced plans, because `copy`
    /// is never refused.
    Unsupported,
}

impl ErrorKind {
    /// The kind of an errno of the sink.
    pub(crate) fn of_sink(errno: Errno) -> Self {
        match errno {
            // The connection is gone, whichever call reports it.
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

    /// The cause.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The system call that failed.
    #[must_use]
    pub fn call(&self) -> &'static str {
        self.call
    }

    /// How many bytes the socket had accepted.
    #[must_use]
    pub fn moved(&self) -> u64 {
        self.report.bytes()
    }

    /// The bytes that the socket had accepted, by mechanism, and the fallbacks up to then.
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
