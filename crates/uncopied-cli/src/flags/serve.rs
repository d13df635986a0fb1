//! The flags of `uncopied serve`.

use std::path::PathBuf;

use clap::builder::{BoolishValueParser, PossibleValue};
use clap::{ArgAction, Args, ValueEnum};
use http::HeaderValue;
use uncopied::Mechanism;

use super::values::{ErrorPage, HeaderLine, ListenAddress, Time, header_value};

pub(super) const SERVE_HELP: &str = "\
Signals:
  SIGTERM, SIGINT  Stop accepting, let what is under way finish (--grace), then
                   exit 0; a second one cuts at once
  SIGUSR1          Print the totals now

Totals, in bytes, on standard error at exit and at SIGUSR1:
  uncopied: 3 requests, 3146611 bytes sent: sendfile 3145728, splice 0, mmap_write 0, copy 883

Socket activation:
  Sockets passed by LISTEN_FDS and LISTEN_PID (TCP or Unix, from descriptor 3 on)
  are served in place of the default address, and besides those of --listen.

Environment:
  A flag on the command line wins over its variable. Several values in one
  variable are separated by commas (LISTEN, INDEX) or line feeds (HEADER,
  ERROR_PAGE). UNCOPIED_SEND=off sends every byte by copy, whatever
  --mechanism says.

Times:
  500ms, 30s, 5m, 1h, 1d; a plain number is seconds; 0 switches a limit off.";

const LISTEN_HELP: &str = "Where to listen: IP:PORT, [IPv6]:PORT, PORT (on 127.0.0.1), :PORT (every \
    address), unix:PATH; repeatable [default: 127.0.0.1:8080]";

const LISTEN_LONG_HELP: &str = "\
Where to listen: IP:PORT, [IPv6]:PORT, PORT (on 127.0.0.1), :PORT (every address), unix:PATH; repeatable \
[default: 127.0.0.1:8080]

Port 0 takes a free port. A Unix socket that nobody listens on any more is replaced; the socket is removed \
at exit.";

/// The flags of `uncopied serve`.
#[derive(Args, Debug)]
pub(crate) struct ServeFlags {
    /// The directory to serve, or a single file
    #[arg(env = "UNCOPIED_PATH", default_value = ".")]
    pub(crate) path: PathBuf,

    // An attribute and not a doc comment, in which [IPv6] would be a link.
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

    /// Threads, one event loop each [default: the number of cores]
    #[arg(long, value_name = "N", env = "UNCOPIED_THREADS",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,

    /// How file bytes go to the socket
    #[arg(
        long,
        value_name = "HOW",
        env = "UNCOPIED_MECHANISM",
        default_value = "auto"
    )]
    pub(crate) mechanism: MechanismChoice,

    /// A file that stands for its directory; repeatable, the first that exists is sent
    #[arg(
        long,
        value_name = "NAME",
        env = "UNCOPIED_INDEX",
        value_delimiter = ',',
        default_value = "index.html"
    )]
    pub(crate) index: Vec<String>,

    /// List directories that have no index file (HTML, or JSON if the client asks for it)
    #[arg(long, env = "UNCOPIED_LIST", action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) list: bool,

    /// Serve names that begin with a dot (otherwise 404)
    #[arg(long, env = "UNCOPIED_HIDDEN", action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) hidden: bool,

    /// Follow symbolic links that leave PATH (otherwise 404)
    #[arg(long, env = "UNCOPIED_FOLLOW_LINKS", action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) follow_links: bool,

    /// Answer paths that do not exist with this file inside PATH and status 200 (single-page applications)
    #[arg(long, value_name = "FILE", env = "UNCOPIED_SPA")]
    pub(crate) spa: Option<PathBuf>,

    /// The body for an error status: a file inside PATH, for example 404=404.html; repeatable
    #[arg(
        long,
        value_name = "CODE=FILE",
        env = "UNCOPIED_ERROR_PAGE",
        value_delimiter = '\n'
    )]
    pub(crate) error_page: Vec<ErrorPage>,

    /// A header for every answer; repeatable
    #[arg(
        long,
        value_name = "NAME: VALUE",
        env = "UNCOPIED_HEADER",
        value_delimiter = '\n'
    )]
    pub(crate) header: Vec<HeaderLine>,

    /// The Cache-Control header of files, for example "public, max-age=3600" [default: none]
    #[arg(long, value_name = "VALUE", env = "UNCOPIED_CACHE_CONTROL", value_parser = header_value)]
    pub(crate) cache_control: Option<HeaderValue>,

    /// Do not look for FILE.br, FILE.zst and FILE.gz next to a file
    #[arg(long, env = "UNCOPIED_NO_PRECOMPRESSED", action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) no_precompressed: bool,

    /// Write a line for each request to standard output
    ///
    /// A reader that is too slow never holds up a connection: lines that do not fit into 4 MiB are dropped,
    /// and their number is reported.
    ///
    /// "bytes" are those of the body that the connection's socket took: of an answer that was cut short, as
    /// many as went out. JSON lines also say whether that was all, head and body ("complete"), and how long it
    /// took from the request's head to the last byte ("seconds"). What the socket took, the peer need not have
    /// read: nobody can know that. A request that was given up before its answer has status 499.
    #[arg(
        long,
        value_name = "FORMAT",
        env = "UNCOPIED_ACCESS_LOG",
        default_value = "off"
    )]
    pub(crate) access_log: LogFormat,

    /// Connections at a time; further ones wait to be accepted [default: 10000, or less if the descriptor
    /// limit (ulimit -n) is low]
    #[arg(long, value_name = "N", env = "UNCOPIED_MAX_CONNECTIONS",
          value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) max_connections: Option<u32>,

    /// Close a connection whose request head is not complete after this time
    #[arg(
        long,
        value_name = "TIME",
        env = "UNCOPIED_HEADER_TIMEOUT",
        default_value = "30s"
    )]
    pub(crate) header_timeout: Time,

    /// Close a connection whose peer has taken no byte of the answer for this time
    ///
    /// It runs from the last byte that the peer acknowledged. A slow client that keeps reading is never cut,
    /// however long it takes.
    #[arg(
        long,
        value_name = "TIME",
        env = "UNCOPIED_SEND_TIMEOUT",
        default_value = "60s"
    )]
    pub(crate) send_timeout: Time,

    /// Close a connection that has been idle between two requests for this time
    #[arg(
        long,
        value_name = "TIME",
        env = "UNCOPIED_KEEPALIVE_TIMEOUT",
        default_value = "75s"
    )]
    pub(crate) keepalive_timeout: Time,

    /// Close a connection of this age after the request under way
    #[arg(
        long,
        value_name = "TIME",
        env = "UNCOPIED_KEEPALIVE_TIME",
        default_value = "1h"
    )]
    pub(crate) keepalive_time: Time,

    /// After SIGTERM or SIGINT, how long requests under way may take to finish; 0 cuts them at once
    #[arg(
        long,
        value_name = "TIME",
        env = "UNCOPIED_GRACE",
        default_value = "30s"
    )]
    pub(crate) grace: Time,
}

/// The mechanism to prefer for the bytes of files; `None` leaves the choice to the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MechanismChoice(pub(crate) Option<Mechanism>);

impl MechanismChoice {
    /// `auto`, and then every mechanism that sends files.
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
            None => "The best that works for each file, sendfile first",
            Some(Mechanism::Sendfile) => "File to socket inside the kernel",
            Some(Mechanism::Splice) => "File to socket through a pipe",
            Some(Mechanism::MmapWrite) => "The socket reads the mapped file: one copy",
            Some(Mechanism::Copy) => "read and write: two copies",
            Some(_) => "",
        };
        Some(PossibleValue::new(name).help(help))
    }
}

/// What the access log looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// No access log
    Off,
    /// The combined format of Apache and nginx, times in UTC
    Text,
    /// One JSON object a line
    Json,
}
