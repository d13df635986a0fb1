//! What can stop the command, and what the user can do about it.

use std::io;
use std::path::PathBuf;

use http::StatusCode;

/// A failure of the command. Its text is the one line that the user reads.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The path to serve cannot be opened.
    #[error("cannot serve {path}: {}{}", kernel_text(.source), path_hint(.source))]
    Path {
        /// As the user gave it.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file named by a flag cannot be used.
    #[error("{flag} {path}: {}; name a regular file inside the directory served", kernel_text(.source))]
    NamedFile {
        /// The flag that names it.
        flag: &'static str,
        /// As the user gave it.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// No socket could be opened at an address.
    #[error("cannot listen on {address}: {}{}", kernel_text(.source), listen_hint(.source))]
    Listen {
        /// As the user gave it.
        address: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The Unix socket's path is taken by something that is not a socket.
    #[error("cannot listen on unix:{}: the path exists and is not a socket; choose another path or remove it", .0.display())]
    NotASocket(PathBuf),
    /// LISTEN_FDS names descriptors that cannot be served on.
    #[error("LISTEN_FDS: {0}; pass stream sockets that listen, from descriptor 3 on")]
    PassedSockets(String),
    /// An error page for a status that is not an error.
    #[error("--error-page {}: only 4xx and 5xx answers have error pages", .0.as_str())]
    NotAnErrorStatus(StatusCode),
    /// More connections than descriptors.
    #[error(
        "--max-connections {wanted} needs a descriptor limit of at least {needed}, and it is {limit}: raise it \
         (ulimit -n, LimitNOFILE=) or lower --max-connections"
    )]
    TooManyConnections {
        /// What the flag says.
        wanted: usize,
        /// The descriptors that this takes.
        needed: usize,
        /// RLIMIT_NOFILE, after the soft limit has been raised to the hard one.
        limit: usize,
    },
    /// The process could not be set up: threads, event loops, signals.
    #[error("cannot {what}: {}", kernel_text(.source))]
    Setup {
        /// What was being done.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A thread that serves connections has ended by itself.
    #[error("a serving thread stopped unexpectedly; this is a bug, please report it")]
    ThreadLost,
    /// Standard output cannot be written.
    #[error("cannot write to standard output: {}", kernel_text(.0))]
    Output(io::Error),
}

impl Error {
    /// The exit status: 2 for wrong usage, 1 for any other failure.
    pub(crate) fn status(&self) -> u8 {
        match self {
            Self::NotAnErrorStatus(_) => 2,
            _ => 1,
        }
    }
}

/// The kernel's words in lower case, without "(os error 98)".
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
        io::ErrorKind::AddrNotAvailable => "; `ip address` lists those that it has",
        io::ErrorKind::PermissionDenied => {
            "; a port below 1024 needs CAP_NET_BIND_SERVICE, a Unix socket a directory that you \
             may write to: choose another with --listen, or let the service manager pass the \
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
            "; make it readable for this user or run as one that may read it"
        }
        _ => "",
    }
}
