//! The flags of `uncopied serve`.

use std::path::PathBuf;

use clap::builder::{BoolishValueParser, PossibleValue};
use clap::{ArgAction, Args, ValueEnum};
use http::HeaderValue;
use uncopied::Mechanism;
use uncopied_http::EntityTags;

use super::environment::FromEnvironment;
use super::values::{
    ErrorPage, ExtensionType, HeaderLine, ListenAddress, SocketMode, TimeSpan, header_value,
};

pub(super) const SERVE_HELP: &str = "\
Signals:
  SIGTERM, SIGINT, SIGQUIT
                   Stop accepting connections, let requests in progress finish
                   (see --grace), then exit with status 0. A second signal
                   closes all connections at once.
  SIGHUP           Open --access-log-file again. If it comes because the
                   terminal was closed, the same as SIGTERM.
  SIGUSR1          Print the totals.

Totals, in bytes, printed on standard error at exit and on SIGUSR1:
  uncopied: 3 requests, 3146611 bytes sent: sendfile 3145728, splice 0, mmap_write 0, copy 883

Socket activation:
  Sockets passed with LISTEN_FDS and LISTEN_PID (TCP or Unix, starting at
  descriptor 3) replace the default address. Addresses given with --listen
  are served as well.

Environment:
  A flag on the command line overrides its environment variable. Separate
  several values in one variable with commas (LISTEN, INDEX) or line feeds
  (HEADER, ERROR_PAGE, MIME). With UNCOPIED_SEND=off, every byte is copied,
  regardless of --mechanism; the other value is on. UNCOPIED_TUNING names a
  file with the sizes from which each mechanism is used on this machine.

Times:
  500ms, 30s, 5m, 1h, 1d; a plain number is seconds; 0 disables a limit.";

const LISTEN_HELP: &str = "Address to listen on: IP:PORT, [IPv6]:PORT, PORT (on 127.0.0.1), :PORT (on \
    all addresses), unix:PATH; repeatable [default: 127.0.0.1:8080]";

const LISTEN_LONG_HELP: &str = "\
Address to listen on: IP:PORT, [IPv6]:PORT, PORT (on 127.0.0.1), :PORT (on all addresses), unix:PATH; repeatable \
[default: 127.0.0.1:8080]

Port 0 selects a free port. An existing Unix socket is replaced if no process listens on it. The socket is removed \
at exit.";

/// The flags of `uncopied serve`.
#[derive(Args, Debug)]
pub(crate) struct ServeFlags {
    /// Directory or single file to serve
    ///
    /// If the path later leads to another directory, for example because a deployment switches a
    /// link, the server follows it within a second. While there is no directory, requests get
    /// status 503.
    #[arg(env = "UNCOPIED_PATH", default_value = ".")]
    pub(crate) path: PathBuf,

    // The help is in attributes instead of a doc comment, because rustdoc would read [IPv6] as a
    // link.
    #[arg(
        long,
        short,
        value_name = "ADDR",
        env = "UNCOPIED_LISTEN",
        value_delimiter = ',',
        help = LISTEN_HELP,
        long_help = LISTEN_LONG_HELP
    )]
    pub(crate) listen: Vec<ListenAddress>,

    /// Permissions of Unix sockets, in octal, such as 660 [default: 777 without the bits of the
    /// umask]
    #[arg(long, value_name = "MODE", env = "UNCOPIED_SOCKET_MODE")]
    pub(crate) socket_mode: Option<SocketMode>,

    /// Number of threads, each with one event loop [default: the number of cores]
    #[arg(long, value_name = "N", env = "UNCOPIED_THREADS",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,

    /// Mechanism used to send file data to the socket
    #[arg(
        long,
        value_name = "HOW",
        env = "UNCOPIED_MECHANISM",
        default_value = "auto"
    )]
    pub(crate) mechanism: MechanismChoice,

    /// Name of a directory's index file; repeatable: the first that exists is sent
    #[arg(
        long,
        value_name = "NAME",
        env = "UNCOPIED_INDEX",
        value_delimiter = ',',
        default_value = "index.html"
    )]
    pub(crate) index: Vec<String>,

    /// List directories without an index file (as HTML, or as JSON if the client asks for it)
    #[arg(long, env = "UNCOPIED_LIST", action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) list: bool,

    /// Serve files whose name begins with a dot (404 by default)
    #[arg(long, env = "UNCOPIED_HIDDEN", action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) hidden: bool,

    /// Follow symbolic links that lead outside PATH (404 by default)
    #[arg(long, env = "UNCOPIED_FOLLOW_LINKS", action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) follow_links: bool,

    /// File inside PATH to send with status 200 for paths that do not exist (for single-page
    /// applications)
    ///
    /// Sent only if the last name in the path has no dot, or if the client asks for HTML. Always
    /// has "Cache-Control: no-cache", unless --header sets another value.
    #[arg(long, value_name = "FILE", env = "UNCOPIED_SPA")]
    pub(crate) spa: Option<PathBuf>,

    /// File inside PATH to send as the body of an error status, such as 404=404.html; repeatable
    #[arg(
        long,
        value_name = "CODE=FILE",
        env = "UNCOPIED_ERROR_PAGE",
        value_delimiter = '\n'
    )]
    pub(crate) error_page: Vec<ErrorPage>,

    /// Header to add to every response; repeatable
    #[arg(
        long,
        value_name = "NAME: VALUE",
        env = "UNCOPIED_HEADER",
        value_delimiter = '\n'
    )]
    pub(crate) header: Vec<HeaderLine>,

    /// Cache-Control header for files except that of --spa, for example "public, max-age=3600"
    /// [default: none]
    #[arg(long, value_name = "VALUE", env = "UNCOPIED_CACHE_CONTROL", value_parser = header_value)]
    pub(crate) cache_control: Option<HeaderValue>,

    /// What the ETag of a file is made from
    #[arg(
        long,
        value_name = "KIND",
        env = "UNCOPIED_ETAG",
        default_value = "mtime"
    )]
    pub(crate) etag: EtagKind,

    /// Content-Type of files with an extension, such as glb=model/gltf-binary; repeatable
    #[arg(
        long,
        value_name = "EXT=TYPE",
        env = "UNCOPIED_MIME",
        value_delimiter = '\n'
    )]
    pub(crate) mime: Vec<ExtensionType>,

    /// Do not look for FILE.br, FILE.zst and FILE.gz next to a file (used unless they are older)
    #[arg(long, env = "UNCOPIED_NO_PRECOMPRESSED", action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) no_precompressed: bool,

    /// Write one line per request to standard output, or to --access-log-file [default: text if
    /// there is such a file, short on a terminal, otherwise off]
    ///
    /// A slow reader of the log never delays a connection: lines that do not fit into a buffer of 4
    /// MiB are dropped, and their number is reported with the totals. The same holds for a full
    /// disk: the log goes on once there is room.
    ///
    /// "bytes" is the number of body bytes that the socket accepted, even if the response was cut
    /// short. The client may not have read all of them. JSON lines also report whether the socket
    /// accepted the whole response ("complete") and the time from the end of the request's head to
    /// the last byte of the response ("seconds"). Status 499 means that the connection ended before
    /// there was a response.
    ///
    /// Both formats end with the mechanism that sent the body, and with the reason if the response
    /// was cut short ("error"). Text lines show "-" for what there is not.
    #[arg(long, value_name = "FORMAT", env = "UNCOPIED_ACCESS_LOG")]
    pub(crate) access_log: Option<LogFormat>,

    /// File to append the access log to; opened again on SIGHUP, for example after it was renamed
    #[arg(long, value_name = "FILE", env = "UNCOPIED_ACCESS_LOG_FILE")]
    pub(crate) access_log_file: Option<PathBuf>,

    /// Maximum number of concurrent connections; a further one takes the place of the longest idle
    /// one, or waits if none is idle [default: 10000, or less if the descriptor limit (ulimit -n)
    /// is low]
    #[arg(long, value_name = "N", env = "UNCOPIED_MAX_CONNECTIONS",
          value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) max_connections: Option<u32>,

    /// Time limit for receiving a complete request head
    #[arg(
        long,
        value_name = "TIME",
        env = "UNCOPIED_HEADER_TIMEOUT",
        default_value = "30s"
    )]
    pub(crate) header_timeout: TimeSpan,

    /// Close a connection whose client has read no byte of a response for this long
    ///
    /// The time counts from the moment at which the client's host last accepted bytes. A slow
    /// client that keeps reading is never disconnected, however long the response takes. A host
    /// with a large receive buffer accepts bytes in large steps: it may wait until half of the
    /// buffer is free. So if a client reads less than half of its receive buffer within this time,
    /// it may be taken for one that has stopped reading.
    #[arg(
        long,
        value_name = "TIME",
        env = "UNCOPIED_SEND_TIMEOUT",
        default_value = "60s"
    )]
    pub(crate) send_timeout: TimeSpan,

    /// Close a connection that has been idle between two requests for this long
    #[arg(
        long,
        value_name = "TIME",
        env = "UNCOPIED_KEEPALIVE_TIMEOUT",
        default_value = "75s"
    )]
    pub(crate) keepalive_timeout: TimeSpan,

    /// Maximum age of a connection; an older one is closed after its current request
    #[arg(
        long,
        value_name = "TIME",
        env = "UNCOPIED_KEEPALIVE_TIME",
        default_value = "1h"
    )]
    pub(crate) keepalive_time: TimeSpan,

    /// How long requests in progress may take to finish after SIGTERM or SIGINT; 0 closes all
    /// connections at once
    #[arg(
        long,
        value_name = "TIME",
        env = "UNCOPIED_GRACE",
        default_value = "30s"
    )]
    pub(crate) grace: TimeSpan,

    /// Which of these flags were set by environment variables.
    #[arg(skip)]
    pub(crate) environment: FromEnvironment,
}

/// The preferred mechanism for sending file data. `None` lets the library choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MechanismChoice(pub(crate) Option<Mechanism>);

impl MechanismChoice {
    /// `auto`, followed by every mechanism that sends files.
    const ALL: [Self; Mechanism::FILE_TO_SOCKET.len() + 1] = {
        let mut all = [Self(None); Mechanism::FILE_TO_SOCKET.len() + 1];
        let mut index = 0;
        while index < Mechanism::FILE_TO_SOCKET.len() {
            all[index + 1] = Self(Some(Mechanism::FILE_TO_SOCKET[index]));
            index += 1;
        }
        all
    };
}

impl ValueEnum for MechanismChoice {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let name = self.0.map_or("auto", Mechanism::name);
        let help = match self.0 {
            None => "The first mechanism that works for each file, starting with sendfile",
            Some(Mechanism::Sendfile) => "From file to socket inside the kernel",
            Some(Mechanism::Splice) => "From file to socket through a pipe",
            Some(Mechanism::MmapWrite) => "write from the mapped file: one copy",
            Some(Mechanism::Copy) => "read and write: two copies",
            Some(_) => "",
        };
        Some(PossibleValue::new(name).help(help))
    }
}

/// What the `ETag` of a file is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum EtagKind {
    /// Modification time and length: the same on all servers that have copies of a file
    Mtime,
    /// Also the time of the status change, which no program can set back
    Strict,
    /// No ETag; Last-Modified is the only validator
    Off,
}

impl From<EtagKind> for EntityTags {
    fn from(kind: EtagKind) -> Self {
        match kind {
            EtagKind::Mtime => Self::Mtime,
            EtagKind::Strict => Self::Strict,
            EtagKind::Off => Self::Off,
        }
    }
}

/// The format of the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// No access log
    Off,
    /// The combined format of Apache and nginx, with times in UTC, then the mechanism and the error
    Text,
    /// One JSON object per line
    Json,
    /// A few words for a person at a terminal
    Short,
}
