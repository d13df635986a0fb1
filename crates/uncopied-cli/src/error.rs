//! Errors that the command reports to the user, with advice on what to do about them.

use std::io;
use std::path::PathBuf;

use http::StatusCode;
use uncopied::TuningError;
use uncopied::interface::InterfaceError;

use crate::commands::bench::BenchError;
use crate::commands::get::GetError;
use crate::commands::relay::ConfigError;

/// An error that ends the command. Its `Display` text is the one line that is printed on standard
/// error.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The path to serve cannot be opened, or is neither a directory nor a regular file.
    #[error("cannot serve {path}{}: {}{}", origin(.variable.as_deref()), kernel_text(.source), path_hint(.source))]
    Path {
        /// The environment variable that holds the path, if it came from there.
        variable: Option<String>,
        /// The path, as the user gave it.
        path: String,
        /// The underlying I/O error.
        source: io::Error,
    },
    /// A file named by `--spa` or `--error-page` cannot be used.
    #[error("{flag} {path}: {}; name a regular file inside the directory served", kernel_text(.source))]
    NamedFile {
        /// The flag that names the file, or its environment variable.
        flag: String,
        /// The path, as the user gave it.
        path: String,
        /// The underlying I/O error.
        source: io::Error,
    },
    /// The server cannot listen on an address.
    #[error("cannot listen on {address}: {}{}", kernel_text(.source), listen_hint(.source, .flag))]
    Listen {
        /// The address, as the user gave it.
        address: String,
        /// The flag or argument that gives it.
        flag: &'static str,
        /// The underlying I/O error.
        source: io::Error,
    },
    /// The file for the access log cannot be opened.
    #[error("cannot open the access log {path}: {}; create its directory and make it writable, or choose another file with --access-log-file", kernel_text(.source))]
    LogFile {
        /// The path, as the user gave it.
        path: String,
        /// The underlying I/O error.
        source: io::Error,
    },
    /// The path given for a Unix socket exists, but is not a socket.
    #[error("cannot listen on unix:{}: the path exists and is not a socket; choose another path or remove it", .0.display())]
    NotASocket(PathBuf),
    /// `LISTEN_FDS` is not a valid number, or a passed descriptor is not a listening stream socket.
    #[error("LISTEN_FDS: {0}; pass listening stream sockets, starting at descriptor 3")]
    PassedSockets(String),
    /// `--error-page` names a status that is not an error (4xx or 5xx).
    #[error("{flag} {}: only 4xx and 5xx statuses have error pages", .status.as_str())]
    NotAnErrorStatus {
        /// The flag, or its environment variable.
        flag: String,
        /// The status that it names.
        status: StatusCode,
    },
    /// `UNCOPIED_SEND` or `UNCOPIED_RECEIVE` holds neither "on" nor "off".
    #[error("{variable}: '{value}' is not a switch; set it to on or off, or unset it")]
    NotASwitch {
        /// The environment variable.
        variable: &'static str,
        /// Its value.
        value: String,
    },
    /// The file that `UNCOPIED_TUNING` names cannot be used.
    #[error("UNCOPIED_TUNING: {}; correct the file, or unset the variable to use the defaults", tuning_text(.0))]
    Tuning(TuningError),
    /// `--max-connections` needs more descriptors than the limit allows.
    #[error(
        "{flag} {requested} needs a descriptor limit of at least {needed}, but the limit is {limit}; \
         raise it (ulimit -n, LimitNOFILE=) or lower --max-connections"
    )]
    TooManyConnections {
        /// The flag, or its environment variable.
        flag: String,
        /// The value of the flag.
        requested: usize,
        /// The descriptor limit that this number of connections needs.
        needed: usize,
        /// The descriptor limit (`RLIMIT_NOFILE`), after the soft limit has been raised to the hard
        /// limit.
        limit: usize,
    },
    /// A part of the server, such as a thread, an event loop or a signal handler, cannot be set up.
    #[error("cannot {what}: {}", kernel_text(.source))]
    Setup {
        /// The step that failed, worded to follow "cannot" in the message.
        what: &'static str,
        /// The underlying I/O error.
        source: io::Error,
    },
    /// A worker thread panicked.
    #[error("a worker thread stopped unexpectedly; this is a bug, please report it")]
    WorkerLost,
    /// A download failed.
    #[error("{url}: {error}{kept}")]
    Get {
        /// The URL, without its credentials.
        url: String,
        /// Why it failed.
        error: GetError,
        /// How many bytes were received, and whether they can be used. Empty if there were none.
        kept: String,
    },
    /// Some of several downloads failed. Each failure was printed when it happened.
    #[error("{failed} of {total} downloads failed")]
    SomeFailed {
        /// How many have failed.
        failed: usize,
        /// How many there were.
        total: usize,
    },
    /// A file with URLs or headers cannot be read.
    #[error("{flag} {path}: {}; name a file that this user can read", kernel_text(.source))]
    InputFile {
        /// The flag that names the file.
        flag: &'static str,
        /// The path, as the user gave it.
        path: String,
        /// The underlying I/O error.
        source: io::Error,
    },
    /// The flags of `get` contradict each other.
    #[error("{0}")]
    GetUsage(String),
    /// A measurement fails.
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// The configuration of a relay cannot be used.
    #[error(transparent)]
    RelayConfig(#[from] ConfigError),
    /// The path to probe cannot be opened, or is neither a directory nor a regular file.
    #[error("cannot probe {path}: {}; name a file that this user can read, or a directory, with --path", kernel_text(.source))]
    ProbePath {
        /// The path, as the user gave it.
        path: String,
        /// The underlying I/O error.
        source: io::Error,
    },
    /// The program to audit cannot be started.
    #[error("cannot start {command}: {}{}", kernel_text(.source), command_hint(.source))]
    StartCommand {
        /// The program, as the user gave it.
        command: String,
        /// The underlying I/O error.
        source: io::Error,
    },
    /// The process to audit does not exist.
    #[error("there is no process {0}; `ps -e` lists the processes")]
    NoProcess(i32),
    /// The file for a report cannot be written.
    #[error("cannot write the report to {path}: {}; choose a file that this user can write", kernel_text(.source))]
    ReportFile {
        /// The path, as the user gave it.
        path: String,
        /// The underlying I/O error.
        source: io::Error,
    },
    /// The network interface to probe cannot be described.
    #[error("cannot probe the interface {name}: {}; run `ip link` to list the interfaces", interface_text(.source))]
    ProbeInterface {
        /// The name, as the user gave it.
        name: String,
        /// Why not.
        source: InterfaceError,
    },
    /// Rows of `--require` are missing.
    #[error("required, but missing here: {0}")]
    ProbeMissing(String),
    /// Writing to standard output failed.
    #[error("cannot write to standard output: {}", kernel_text(.0))]
    Output(io::Error),
}

impl Error {
    /// Returns a closure for `map_err` that wraps an I/O error in [`Error::Setup`].
    pub(crate) fn setup(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Setup { what, source }
    }

    /// Returns the exit status: 2 for wrong usage, 1 for any other failure.
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            Self::NotAnErrorStatus { .. }
            | Self::NotASwitch { .. }
            | Self::GetUsage(_)
            | Self::Bench(BenchError::NothingToMeasure)
            | Self::RelayConfig(ConfigError::DuplicateTarget(_)) => 2,
            _ => 1,
        }
    }
}

/// Returns the text of an I/O error, in lower case: our own words for common errors, and otherwise
/// the kernel's message, without a suffix such as "(os error 98)".
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

/// Returns the text of an error about a network interface, with that of the system call.
pub(crate) fn interface_text(error: &InterfaceError) -> String {
    match error {
        InterfaceError::Io(source) => format!("{error}: {}", kernel_text(source)),
        _ => error.to_string(),
    }
}

fn tuning_text(error: &TuningError) -> String {
    match error {
        TuningError::Read { source, .. } => format!("{error}: {}", kernel_text(source)),
        _ => error.to_string(),
    }
}

fn listen_hint(error: &io::Error, flag: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("; stop the other process or choose another address with {flag}")
        }
        io::ErrorKind::AddrNotAvailable => "; run `ip address` to list its addresses".to_owned(),
        io::ErrorKind::PermissionDenied => format!(
            "; a port below 1024 needs CAP_NET_BIND_SERVICE, and a Unix socket needs a writable \
             directory; choose another address with {flag}, or let the service manager pass the \
             socket (LISTEN_FDS)"
        ),
        io::ErrorKind::NotFound => "; create the socket's directory first".to_owned(),
        _ => String::new(),
    }
}

fn command_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; check its name, or give its path",
        io::ErrorKind::PermissionDenied => "; it must be a file that this user can execute",
        _ => "",
    }
}

fn origin(variable: Option<&str>) -> String {
    variable.map_or_else(String::new, |variable| format!(" (from {variable})"))
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
