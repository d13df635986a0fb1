//! Why a download failed, in words, and whether trying again can help.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::kernel_text;
use crate::flags::{Checksum, TimeSpan};

/// The reason why one download failed. Its `Display` text follows the URL in the line that is
/// printed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GetError {
    /// The word is not a URL that can be fetched.
    #[error("{0}")]
    Url(String),
    /// The path of the URL has no last name that can be the name of a file.
    #[error("'{0}' cannot be the name of a file; give one with -o")]
    NoName(String),
    /// Two URLs would be saved in the same file.
    #[error("{}: another URL is saved there; fetch it into another directory with -o", .0.display())]
    SameFile(PathBuf),
    /// The file exists.
    #[error("{} exists; replace it with -f, or choose another name with -o", .0.display())]
    Exists(PathBuf),
    /// What has the final name is no ordinary file.
    #[error("{} is not a regular file; choose another name with -o", .0.display())]
    NotAFile(PathBuf),
    /// Another process writes to the temporary file.
    #[error("{} is in use by another download; wait for it, or choose another name with -o", .0.display())]
    Busy(PathBuf),
    /// What is at the temporary name is no ordinary file, or was exchanged during the download.
    #[error("{} is not the file of this download; remove it, or choose another name with -o", .0.display())]
    NotOurs(PathBuf),
    /// A file operation failed.
    #[error("cannot {what} {}: {}{}", .path.display(), kernel_text(.source), file_hint(.source))]
    File {
        /// The step that failed, worded to follow "cannot".
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The name of the host does not resolve.
    #[error("cannot resolve {host}: {}; check the name and the network", kernel_text(.source))]
    Resolve { host: String, source: io::Error },
    /// No address of the host accepts a connection.
    #[error("cannot connect to {to}: {}; check the port, and that the server is running", kernel_text(.source))]
    Connect { to: String, source: io::Error },
    /// The TLS handshake failed.
    #[error("no TLS with {host}: {}{}", kernel_text(.source), tls_hint(.source))]
    Tls { host: String, source: io::Error },
    /// The certificates to trust cannot be loaded.
    #[error("cannot load certificates: {0}; name a file of PEM certificates with --cacert")]
    Certificates(String),
    /// The proxy cannot be used, or refuses.
    #[error(
        "proxy {proxy}: {why}; change or unset the proxy variable, or add the host to no_proxy"
    )]
    Proxy { proxy: String, why: String },
    /// The request cannot be sent.
    #[error("cannot send the request: {}; try again", kernel_text(.0))]
    Send(io::Error),
    /// The connection failed.
    #[error("the connection failed: {}; try again", kernel_text(.0))]
    Receive(io::Error),
    /// Nothing arrived for too long.
    #[error("{what} took more than {limit}; try again, or raise {flag}")]
    Timeout {
        what: &'static str,
        limit: TimeSpan,
        flag: &'static str,
    },
    /// The connection was closed before the whole head of a response had arrived.
    #[error("the server closed the connection without a response; try again")]
    NoResponse,
    /// The head of the response is not HTTP/1.x, or contradicts itself.
    #[error("the server sent an invalid response: {0}; report this to its operator")]
    BadHead(&'static str),
    /// The status is not a success.
    #[error("the server responded with status {status}{}", status_hint(*.status))]
    Status {
        status: u16,
        /// How long the server asks to wait.
        retry_after: Option<Duration>,
    },
    /// The redirects do not end.
    #[error("more than {0} redirects; raise --max-redirects if they are expected")]
    TooManyRedirects(u32),
    /// A redirect leads to something that must not or cannot be fetched.
    #[error("a redirect leads to {to}: {why}")]
    Redirect { to: String, why: &'static str },
    /// The connection ended before the body did.
    #[error("the connection ended after {got} of {expected} bytes; try again")]
    ShortBody { got: u64, expected: u64 },
    /// The connection ended within a chunked body.
    #[error("the connection ended before the last chunk; try again")]
    CutChunks,
    /// More bytes arrived than the head had announced.
    #[error("the server sent more bytes than it had announced; report this to its operator")]
    LongBody,
    /// The framing of a chunked body is wrong.
    #[error("the server sent an invalid chunked body: {0}; report this to its operator")]
    BadChunk(&'static str),
    /// The server sent another part of the file than it was asked for.
    #[error(
        "the server sent a wrong range ({0}); fetch the whole file, without -c and --connections"
    )]
    WrongRange(String),
    /// A part of the file has failed as often as `--retries` allows.
    #[error("{0}")]
    GivenUp(Box<Self>),
    /// The file changed on the server during the download.
    #[error("the file changed on the server during the download; try again")]
    Changed,
    /// The server sends the whole file although it has not changed.
    #[error("the server does not send parts of the file; fetch it over one connection")]
    NoParts,
    /// The bytes do not have the expected checksum.
    #[error("the checksum is {actual} instead of {expected}; the bytes were discarded")]
    Checksum {
        expected: Checksum,
        actual: Checksum,
    },
    /// The download took too long.
    #[error("it took more than {0}; raise --max-time")]
    MaxTime(TimeSpan),
    /// The reader of standard output has closed the pipe, which is no failure.
    #[error("the reader of the output has gone away")]
    ReaderGone,
}

impl GetError {
    /// Returns a closure for `map_err` that says which file operation failed.
    pub(super) fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File {
            what,
            path: path.to_owned(),
            source,
        }
    }

    /// Whether the same request may succeed later. `began` tells whether bytes of this download
    /// have arrived before: then the host exists, and a name that does not resolve or a refused
    /// connection is a fault of the network or of a server that is starting again.
    pub(super) fn is_transient(&self, began: bool) -> bool {
        match self {
            Self::Send(_)
            | Self::Receive(_)
            | Self::Timeout { .. }
            | Self::NoResponse
            | Self::ShortBody { .. }
            | Self::CutChunks
            | Self::Changed => true,
            Self::Resolve { .. } => began,
            Self::Connect { source, .. } => {
                began || source.kind() != io::ErrorKind::ConnectionRefused
            }
            // A handshake that the peer cut, in contrast to one that cannot succeed.
            Self::Tls { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::BrokenPipe
            ),
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }

    /// Whether what was received is worth keeping for `-c`: the server has kept to the protocol.
    pub(super) fn leaves_resumable(&self) -> bool {
        !matches!(
            self,
            Self::LongBody
                | Self::BadChunk(_)
                | Self::Checksum { .. }
                | Self::Changed
                | Self::NotOurs(_)
        )
    }
}

fn file_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; create the directory first, or choose another with -o",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; choose a directory that you can write to with -o"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; make room, or choose another directory with -o"
        }
        _ => "",
    }
}

fn tls_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::InvalidData => "; trust a private authority with --cacert",
        _ => "; try again",
    }
}

fn status_hint(status: u16) -> &'static str {
    match status {
        401 => " (unauthorized); give credentials with --header @FILE",
        403 => " (forbidden)",
        404 => " (not found); check the URL",
        407 => " (the proxy asks for credentials); put them into the proxy's URL",
        410 => " (gone)",
        416 => " (range not satisfiable); fetch the whole file, without -c",
        429 => " (too many requests); try again later",
        500..=599 => "; try again later",
        _ => "",
    }
}
