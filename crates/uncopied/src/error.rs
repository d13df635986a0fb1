//! The error of a transfer: why it failed, and how many bytes had been sent.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use crate::endpoint::{self, Side};
use crate::policy::{Direction, Length, Mechanism};
use crate::report::Report;

/// The error of a transfer that stopped before its end.
///
/// When sending, the bytes that the socket accepted before the error may have reached the peer.
/// [`report`](Self::report) counts them. If the caller has promised the peer more bytes than that,
/// for example in a `Content-Length` header, it must close the connection.
///
/// # Cause
///
/// [`source`](std::error::Error::source) returns the error of the system call that failed, and
/// [`raw_os_error`](Self::raw_os_error) its errno. The text of this error does not repeat the text
/// of its source, so print the whole chain.
///
/// # In an `io::Error`
///
/// `io::Error::from` keeps this error as the inner error, and chooses the [`io::ErrorKind`] that
/// fits best. An `io::Error` that has an inner error has no errno of its own: its `raw_os_error`
/// returns `None`. The errno is available from the inner error:
///
/// ```
/// use std::{fs::File, io, os::unix::net::UnixStream};
///
/// let file = File::open("Cargo.toml")?;
/// let (socket, peer) = UnixStream::pair()?;
/// drop(peer);
/// let error = io::Error::from(uncopied::send_file(&file, .., &socket).unwrap_err());
/// assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
///
/// let inner = error.get_ref().and_then(|it| it.downcast_ref::<uncopied::Error>());
/// let errno = inner.and_then(uncopied::Error::raw_os_error);
/// assert_eq!(errno, Some(32), "EPIPE");
/// # Ok::<(), io::Error>(())
/// ```
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    mechanism: Option<Mechanism>,
    call: Option<&'static str>,
    /// The text depends on the direction. It is the same for all that send.
    direction: Direction,
    side: Option<Side>,
    report: Box<Report>,
    cause: Option<io::Error>,
}

/// The cause of an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The file ended before the promised length, for example because it was truncated. When
    /// receiving: the peer ended the stream before it.
    SourceTooShort {
        /// How many bytes were promised. When sending, with those of the header and the trailer.
        promised: u64,
    },
    /// The file could not be read, or receiving from the socket failed for another reason than
    /// those below.
    Source,
    /// The source cannot be read at an offset, because it is a pipe or a terminal, for example.
    /// Only seekable files can be sent.
    SourceNotSeekable,
    /// The [range](crate::SendFile::range) of bytes to send ends before it starts.
    RangeEndsBeforeStart {
        /// The offset of the first byte of the range.
        start: u64,
        /// The offset of the byte after the last one of the range.
        end: u64,
    },
    /// The [range](crate::SendFile::range) has an end, and the [length](crate::SendFile::length) of
    /// the transfer is not the number of bytes in the range.
    LengthContradictsRange {
        /// The number of bytes in the range.
        range: u64,
        /// The length of the transfer.
        length: Length,
    },
    /// The peer has closed or reset the connection.
    PeerClosed,
    /// The socket has no peer: it is a listening socket, or it was never connected.
    NotConnected,
    /// The socket accepted nothing for the duration of its send timeout (`SO_SNDTIMEO`), or
    /// delivered nothing for the duration of its receive timeout (`SO_RCVTIMEO`).
    TimedOut,
    /// The socket is full, or has no bytes to receive. Try again once it is writable, or readable.
    /// Only calls that must not wait return this, such as
    /// [`Sender::try_send`](crate::Sender::try_send).
    WouldBlock,
    /// No more bytes may be in flight, and the sender's [`LimitAction`](crate::LimitAction) is to
    /// wait. Try again once an earlier send is complete: await its
    /// [`Completion`](crate::Completion), not the socket, which may be writable. Only calls that
    /// must not wait return this.
    InFlightLimit,
    /// Writing to the socket failed for another reason. When receiving into a file, a pipe or a
    /// device: writing to it failed, for example because the disk is full (`ENOSPC`), a quota is
    /// used up (`EDQUOT`), the file would be larger than the process may make it (`EFBIG`,
    /// `RLIMIT_FSIZE`), or nobody reads the pipe (`EPIPE`). The
    /// [`io::ErrorKind`] of an `io::Error` made from this error tells which.
    Sink,
    /// The sink has no offsets, because it is a pipe, a terminal or a device, or was opened with
    /// `O_APPEND`, and an [offset](crate::ReceiveFile::at) was given.
    SinkNotSeekable,
    /// The descriptor is not that of a stream socket.
    NotAStreamSocket,
    /// The memory to send belongs to a [`FileMapping`](crate::arena::FileMapping), so the kernel
    /// cannot read it. Send the file instead.
    MappedFile,
    /// No mechanism of the plan is supported here. This happens only with forced mechanisms that do
    /// not include `copy`, because `copy` is always supported.
    Unsupported,
}

impl ErrorKind {
    /// Returns the kind of error for an errno that a write to the sink has returned.
    pub(crate) fn of_sink(errno: Errno) -> Self {
        Self::of_socket(errno).unwrap_or(Self::Sink)
    }

    /// Returns the kind of error for an errno that a read from a socket has returned.
    pub(crate) fn of_received(errno: Errno) -> Self {
        Self::of_socket(errno).unwrap_or(Self::Source)
    }

    fn of_socket(errno: Errno) -> Option<Self> {
        match errno {
            // Each of these means that the connection is gone. Which of them is returned depends
            // on the system call that detects it.
            Errno::PIPE | Errno::CONNRESET | Errno::CONNABORTED => Some(Self::PeerClosed),
            Errno::NOTCONN => Some(Self::NotConnected),
            Errno::NOTSOCK => Some(Self::NotAStreamSocket),
            _ => None,
        }
    }
}

impl Error {
    /// Creates the error of a transfer that stopped while it used `mechanism`.
    pub(crate) fn of_transfer(
        kind: ErrorKind,
        mechanism: Mechanism,
        call: &'static str,
        report: Report,
        cause: Option<io::Error>,
    ) -> Self {
        Self {
            kind,
            mechanism: Some(mechanism),
            call: Some(call),
            direction: Direction::FileToSocket,
            side: None,
            report: Box::new(report),
            cause,
        }
    }

    /// Creates the error of a transfer that failed before it used any mechanism.
    pub(crate) fn before_transfer(
        kind: ErrorKind,
        call: Option<&'static str>,
        cause: Option<io::Error>,
    ) -> Self {
        Self {
            kind,
            mechanism: None,
            call,
            direction: Direction::FileToSocket,
            side: None,
            report: Box::default(),
            cause,
        }
    }

    /// Makes this the error of a transfer in another direction than from a file.
    pub(crate) fn in_direction(mut self, direction: Direction) -> Self {
        self.direction = direction;
        if self.kind == ErrorKind::Source
            && direction.receives()
            && let Some(errno) = self.raw_os_error()
        {
            self.kind = ErrorKind::of_received(Errno::from_raw_os_error(errno));
        }
        self
    }

    /// Makes this an error of one of the two ends.
    pub(crate) fn at_side(mut self, side: Side) -> Self {
        self.side = Some(side);
        self
    }

    /// Changes the kind from [`PeerClosed`](ErrorKind::PeerClosed) to
    /// [`NotConnected`](ErrorKind::NotConnected) if `sink` never had a peer. The errno cannot
    /// tell these two cases apart: for TCP, it is `EPIPE` in both.
    pub(crate) fn recognise_unconnected(mut self, sink: BorrowedFd<'_>) -> Self {
        if self.kind == ErrorKind::PeerClosed && endpoint::was_never_connected(sink) {
            self.kind = ErrorKind::NotConnected;
        }
        self
    }

    /// Makes an error of writing to a sink that is a socket as precise as for other sends.
    pub(crate) fn of_socket_sink(mut self) -> Self {
        if self.kind == ErrorKind::Sink
            && let Some(errno) = self.raw_os_error()
        {
            self.kind = ErrorKind::of_sink(Errno::from_raw_os_error(errno));
        }
        self
    }

    /// Returns the kind of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Returns the name of the system call that failed, such as `sendfile` or `pread`. Returns
    /// `None` if none was made, because the arguments of the transfer are invalid.
    #[must_use]
    pub fn call(&self) -> Option<&'static str> {
        self.call
    }

    /// Returns the mechanism that the transfer was using. Returns `None` if the transfer failed
    /// before it used one.
    #[must_use]
    pub fn mechanism(&self) -> Option<Mechanism> {
        self.mechanism
    }

    /// Returns the end that has failed. Returns `None` if it is neither of the two, because the
    /// arguments of the transfer are invalid or no mechanism is supported, for example.
    #[must_use]
    pub fn side(&self) -> Option<Side> {
        self.side
    }

    /// Returns the errno of the system call that failed, if the error has one.
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        self.cause.as_ref()?.raw_os_error()
    }

    /// Returns how many bytes the socket had accepted, or delivered, before the error. When
    /// receiving into a file, a pipe or a device: how many bytes are in it.
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

    fn fmt_kind(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moved = self.moved();
        match self.kind {
            ErrorKind::SourceTooShort { promised } if self.direction.receives() => write!(
                f,
                "the peer ended the stream after {moved} of {promised} bytes"
            ),
            ErrorKind::SourceTooShort { promised } => write!(
                f,
                "the file ended after {moved} of {promised} bytes: \
                 close the connection, the peer waits for the rest"
            ),
            ErrorKind::Source if self.direction.receives() => {
                write!(f, "the socket could not be read from after {moved} bytes")
            }
            ErrorKind::Source if self.direction == Direction::DescriptorToDescriptor => {
                write!(f, "the source could not be read after {moved} bytes")
            }
            ErrorKind::Source => write!(f, "the file could not be read after {moved} bytes"),
            ErrorKind::SourceNotSeekable => write!(f, "the source has no offsets: send a file"),
            ErrorKind::RangeEndsBeforeStart { start, end } => {
                write!(f, "the range {start}..{end} ends before it starts")
            }
            ErrorKind::LengthContradictsRange { range, length } => match length {
                Length::Exact(length) => {
                    write!(f, "the length is {length} bytes, but the range has {range}")
                }
                Length::UntilEof => write!(
                    f,
                    "the length is that of the rest of the file, but the range has {range} bytes"
                ),
            },
            ErrorKind::PeerClosed => {
                let of = match self.side {
                    Some(Side::Source) if self.direction == Direction::SocketToSocket => {
                        " of the source"
                    }
                    Some(Side::Sink) if self.direction == Direction::SocketToSocket => {
                        " of the sink"
                    }
                    _ => "",
                };
                write!(f, "the peer{of} closed the connection after {moved} bytes")
            }
            ErrorKind::NotConnected => {
                write!(
                    f,
                    "the socket has no peer: connect it, or accept a connection"
                )
            }
            ErrorKind::TimedOut if self.direction.receives() => write!(
                f,
                "the socket delivered nothing within its receive timeout, after {moved} bytes"
            ),
            ErrorKind::TimedOut => write!(
                f,
                "the socket accepted nothing within its send timeout, after {moved} bytes"
            ),
            ErrorKind::WouldBlock if self.direction.receives() => {
                write!(f, "the socket has no bytes: wait until it is readable")
            }
            ErrorKind::WouldBlock => write!(f, "the socket is full: wait until it is writable"),
            ErrorKind::InFlightLimit => write!(
                f,
                "no more bytes may be in flight: wait until an earlier send is complete"
            ),
            ErrorKind::Sink
                if matches!(
                    self.direction,
                    Direction::SocketToFile | Direction::DescriptorToDescriptor
                ) =>
            {
                let hint = self.hint_for_file();
                write!(
                    f,
                    "the sink could not be written to after {moved} bytes{hint}"
                )
            }
            ErrorKind::SinkNotSeekable => write!(
                f,
                "the sink has no offsets: open a file without O_APPEND, or give no offset"
            ),
            ErrorKind::Sink => write!(f, "the socket could not be written to after {moved} bytes"),
            ErrorKind::NotAStreamSocket => write!(
                f,
                "the descriptor is not a stream socket: connect a TCP or Unix stream"
            ),
            ErrorKind::MappedFile => write!(
                f,
                "the bytes are those of a mapped file: send the file instead"
            ),
            ErrorKind::Unsupported => write!(
                f,
                "no mechanism of the plan is supported here, after {moved} bytes: \
                 add copy to the list"
            ),
        }
    }
}

impl Error {
    /// Returns what to do if a file, a pipe or a device could not be written to.
    fn hint_for_file(&self) -> &'static str {
        match self.raw_os_error() {
            Some(libc::ENOSPC) => ": free some space on the disk",
            Some(libc::EDQUOT) => ": remove some files, or raise the quota",
            Some(libc::EFBIG) => ": raise RLIMIT_FSIZE, or use a file system with larger files",
            Some(libc::EPIPE) => ": its reader has closed the pipe",
            _ => "",
        }
    }
}

/// Describes what failed, followed by the mechanism and the system call in parentheses. The text of
/// the [source](std::error::Error::source) is not included.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fmt_kind(f)?;
        match (self.mechanism, self.call) {
            (Some(mechanism), Some(call)) if mechanism.name() != call => {
                write!(f, " ({mechanism}: {call})")
            }
            (_, Some(call)) => write!(f, " ({call})"),
            (_, None) => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        let cause = self.cause.as_ref()?;
        Some(cause)
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match error.kind {
            ErrorKind::SourceTooShort { .. } => io::ErrorKind::UnexpectedEof,
            ErrorKind::TimedOut => io::ErrorKind::TimedOut,
            ErrorKind::Unsupported => io::ErrorKind::Unsupported,
            ErrorKind::NotConnected => io::ErrorKind::NotConnected,
            ErrorKind::WouldBlock => io::ErrorKind::WouldBlock,
            // Not `WouldBlock`, which would make tokio wait for the socket to become writable,
            // although it is.
            ErrorKind::InFlightLimit => io::ErrorKind::ResourceBusy,
            ErrorKind::SourceNotSeekable
            | ErrorKind::SinkNotSeekable
            | ErrorKind::NotAStreamSocket
            | ErrorKind::MappedFile
            | ErrorKind::RangeEndsBeforeStart { .. }
            | ErrorKind::LengthContradictsRange { .. } => io::ErrorKind::InvalidInput,
            ErrorKind::Source | ErrorKind::Sink | ErrorKind::PeerClosed => error
                .cause
                .as_ref()
                .map_or(io::ErrorKind::Other, io::Error::kind),
        };
        Self::new(kind, error)
    }
}
