//! The failures of the command, and what the user can do about them.

use std::io;
use std::path::PathBuf;

use http::StatusCode;

/// A failure of the command. Its text is the one line that is printed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The path to serve cannot be opened.
    #[error("cannot serve {path}: {}{}", kernel_text(.source), path_hint(.source))]
    Path {
        /// As given by the user.
        path: String,
        /// The error of the kernel.
        source: io::Error,
    },
    /// A file named by a flag cannot be used.
    #[error("{flag} {path}: {}; name a regular file inside the directory served", kernel_text(.source))]
    NamedFile {
        /// The flag that names it.
        flag: &'static str,
        /// As given by the user.
        path: String,
        /// The error of the kernel.
        source: io::Error,
    },
    /// No socket could be opened at an address.
    #[error("cannot listen on {address}: {}{}", kernel_text(.source), listen_hint(.source))]
    Listen {
        /// As given by the user.
        address: String,
        /// The error of the kernel.
        source: io::Error,
    },
    /// The path for the Unix socket exists and is not a socket.
    #[error("cannot listen on unix:{}: the path exists and is not a socket; choose another path or remove it", .0.display())]
    NotASocket(PathBuf),
    /// LISTEN_FDS names descriptors that are not listening sockets.
    #[error("LISTEN_FDS: {0}; pass listening stream sockets, starting at descriptor 3")]
    PassedSockets(String),
    /// An error page for a status that is not an error status.
    #[error("--error-page {}: only 4xx and 5xx statuses have error pages", .0.as_str())]
    NotAnErrorStatus(StatusCode),
    /// More connections than the descriptor limit allows.
    #[error(
        "--max-connections {requested} needs a descriptor limit of at least {needed}, but the limit is {limit}; \
         raise it (ulimit -n, LimitNOFILE=) or lower --max-connections"
    )]
    TooManyConnections {
        /// The value of the flag.
        requested: usize,
        /// The number of descriptors that it needs.
        needed: usize,
        /// RLIMIT_NOFILE, after the soft limit has been raised to the hard one.
        limit: usize,
    },
    /// A thread, event loop or signal handler could not be set up.
    #[error("cannot {what}: {}", kernel_text(.source))]
    Setup {
        /// The step that failed.
        what: &'static str,
        /// The error of the kernel.
        source: io::Error,
    },
    /// A worker thread has panicked.
    #[error("a worker thread stopped unexpectedly; this is a bug, please report it")]
    WorkerLost,
    /// Standard output cannot be written.
    #[error("cannot write to standard output: {}", kernel_text(.0))]
    Output(io::Error),
}

impl Error {
    /// Wraps the error of a step of the setup, for `map_err`.
    pub(crate) fn setup(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Setup { what, source }
    }

    /// The exit status: 2 for wrong usage, 1 for any other failure.
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            Self::NotAnErrorStatus(_) => 2,
            _ => 1,
        }
    }
}

/// The kernel's message in lower case, without "(os error 98)".
pub(crate) fn kernel_text(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "the address is in use".into(),
        io::ErrorKind::AddrNotAvailable => "this machine does not have that address".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        io::ErrorKind::NotFound => "no such file or directory".into(),
        _ => match error.to_string().split_once(" (os error") {
            Some((text, _)) => text.to_lowercase(),
            None => error.to_string(),
        },
    }
}

fn listen_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; stop the other process or choose another address with --listen"
        }
        io::ErrorKind::AddrNotAvailable => "; run `ip address` to list its addresses",
        io::ErrorKind::PermissionDenied => {
            "; a port below 1024 needs CAP_NET_BIND_SERVICE, and a Unix socket needs a writable \
             directory; choose another address with --listen, or let the service manager pass the \
             socket (LISTEN_FDS)"
        }
        io::ErrorKind::NotFound => "; create the socket's directory first",
        _ => "",
    }
}

fn path_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; give a file or a directory that exists",
        io::ErrorKind::PermissionDenied => {
            "; make it readable by this user, or run as a user that can read it"
        }
        _ => "",
    }
}
