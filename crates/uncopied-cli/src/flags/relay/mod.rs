//! The flags of `uncopied relay`.
//!
//! The settings that a listener of the configuration file can have as well are in
//! [`RelaySettings`]. They are optional, because a flag that is given overrides the file.

mod values;

use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{ArgAction, Args};

use super::environment::FromEnvironment;
use super::values::{ListenAddress, SocketMode, TimeSpan};

pub(crate) use values::{
    AcceptProxy, Balance, KeepAlive, ProxyVersion, ProxyVersions, RateLimit, RelayLogFormat,
    RelayMechanism, SendProxy, Switch, TargetAddress, TimeOrOff, WeightedTarget,
};

pub(super) const RELAY_USAGE: &str = "uncopied relay [OPTIONS] <LISTEN> <TARGET>...
       uncopied relay [OPTIONS] --config <FILE>";

pub(super) const RELAY_HELP: &str = "\
Targets:
  HOST:PORT, IP:PORT, [IPv6]:PORT or unix:PATH, each with an optional weight
  from 1 to 256: db1:5432=3. Names are resolved again (--resolve-interval); if
  that fails, the last addresses stay in use. If a target refuses, the next
  one is tried. Targets that are down are tried last.

Configuration file (TOML):
  The keys are the names of the flags. A flag overrides the file.

    connect-timeout = \"3s\"               # for all listeners
    [[listener]]
    listen = \":5432\"
    targets = [\"db1:5432=3\", \"db2:5432\"]
    balance = \"least-connections\"        # for this one

Signals:
  SIGTERM, SIGINT, SIGQUIT
                   Stop accepting connections, let open ones finish (see
                   --grace), then exit with status 0. A second signal closes
                   all connections at once.
  SIGHUP           Read --config again, and open --access-log-file again. If
                   the file has an error, the old configuration stays in use.
                   If the signal comes because the terminal was closed, the
                   same as SIGTERM.
  SIGUSR1          Print the totals.

Environment:
  A flag on the command line overrides its environment variable. Separate
  several targets with commas. UNCOPIED_TUNING names a file with the sizes
  from which each mechanism is used on this machine.

Times:
  500ms, 30s, 5m, 1h, 1d; a plain number is seconds; 0 disables a limit.";

const LISTEN_HELP: &str = "Address to listen on: IP:PORT, [IPv6]:PORT, PORT (on 127.0.0.1), :PORT (on \
    all addresses), unix:PATH";

const TARGET_HELP: &str = "Where to connect to: HOST:PORT, IP:PORT, [IPv6]:PORT, unix:PATH, each with an \
    optional weight, such as db1:5432=3";

/// The flags of `uncopied relay`.
#[derive(Args, Debug)]
pub(crate) struct RelayFlags {
    // The help is in attributes instead of a doc comment, because rustdoc would read [IPv6] as a
    // link.
    #[arg(
        value_name = "LISTEN",
        env = "UNCOPIED_RELAY_LISTEN",
        required_unless_present = "config",
        conflicts_with = "config",
        help = LISTEN_HELP
    )]
    pub(crate) listen: Option<ListenAddress>,

    #[arg(
        value_name = "TARGET",
        env = "UNCOPIED_RELAY_TARGETS",
        value_delimiter = ',',
        required_unless_present = "config",
        conflicts_with = "config",
        help = TARGET_HELP
    )]
    pub(crate) targets: Vec<WeightedTarget>,

    /// File (TOML) with listeners, their targets and settings; read again on SIGHUP
    #[arg(long, value_name = "FILE", env = "UNCOPIED_RELAY_CONFIG")]
    pub(crate) config: Option<PathBuf>,

    /// Check flags and --config, print what they define, and exit; nothing is opened or resolved
    #[arg(long, env = "UNCOPIED_RELAY_CHECK", action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) check: bool,

    #[command(flatten)]
    pub(crate) settings: RelaySettings,

    #[command(flatten)]
    pub(crate) process: RelayProcessSettings,

    /// Which of these flags were set by environment variables.
    #[arg(skip)]
    pub(crate) environment: FromEnvironment,
}

/// The settings that each listener can have.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct RelaySettings {
    /// How the target of a connection is chosen [default: round-robin]
    #[arg(long, value_name = "RULE", env = "UNCOPIED_RELAY_BALANCE")]
    pub(crate) balance: Option<Balance>,

    /// Time between two checks of a target, each a TCP connection [default: 5s, or off with a
    /// single target]
    ///
    /// Each pause is randomly up to a tenth shorter or longer. With --send-proxy, a check sends a
    /// header that says that there is no client.
    #[arg(long, value_name = "TIME|off", env = "UNCOPIED_RELAY_HEALTH_INTERVAL")]
    pub(crate) health_interval: Option<TimeOrOff>,

    /// Time limit for the connection of a check [default: 2s]
    #[arg(long, value_name = "TIME", env = "UNCOPIED_RELAY_HEALTH_TIMEOUT")]
    pub(crate) health_timeout: Option<TimeSpan>,

    /// Number of successful checks in a row after which a target is up again [default: 2]
    #[arg(long, value_name = "N", env = "UNCOPIED_RELAY_RISE",
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) rise: Option<u16>,

    /// Number of failures in a row, of checks or connections, after which a target is down
    /// [default: 3]
    #[arg(long, value_name = "N", env = "UNCOPIED_RELAY_FALL",
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) fall: Option<u16>,

    /// Time limit for connecting to a target; then the next one is tried. Also the time limit for
    /// receiving the header of --accept-proxy [default: 5s]
    #[arg(long, value_name = "TIME", env = "UNCOPIED_RELAY_CONNECT_TIMEOUT")]
    pub(crate) connect_timeout: Option<TimeSpan>,

    /// Close a connection on which no byte has moved for this long [default: 1h]
    #[arg(long, value_name = "TIME", env = "UNCOPIED_RELAY_IDLE_TIMEOUT")]
    pub(crate) idle_timeout: Option<TimeSpan>,

    /// The same, once one side has ended its stream [default: 1m]
    #[arg(long, value_name = "TIME", env = "UNCOPIED_RELAY_HALF_CLOSE_TIMEOUT")]
    pub(crate) half_close_timeout: Option<TimeSpan>,

    /// Time after which TCP keep-alive probes an idle peer, on both sides [default: 1m]
    #[arg(long, value_name = "TIME|off", env = "UNCOPIED_RELAY_KEEPALIVE")]
    pub(crate) keepalive: Option<KeepAlive>,

    /// Send small messages at once (TCP_NODELAY), on both sides [default: on]
    #[arg(
        long,
        value_name = "on|off",
        env = "UNCOPIED_RELAY_NODELAY",
        hide_possible_values = true
    )]
    pub(crate) nodelay: Option<Switch>,

    /// Header of the PROXY protocol with which every connection must begin [default: off]
    ///
    /// Its addresses replace those of the client in logs, for source-hash and for --send-proxy. Any
    /// client that can connect can claim any address, so let only proxies connect.
    #[arg(long, value_name = "VERSION", env = "UNCOPIED_RELAY_ACCEPT_PROXY")]
    pub(crate) accept_proxy: Option<AcceptProxy>,

    /// Header of the PROXY protocol to send to targets [default: off]
    #[arg(long, value_name = "VERSION", env = "UNCOPIED_RELAY_SEND_PROXY")]
    pub(crate) send_proxy: Option<SendProxy>,

    /// How bytes move from socket to socket [default: auto]
    #[arg(long, value_name = "HOW", env = "UNCOPIED_RELAY_MECHANISM")]
    pub(crate) mechanism: Option<RelayMechanism>,

    /// Maximum number of bytes per second in each direction of each connection, such as 500k or
    /// 10M [default: off]
    #[arg(long, value_name = "RATE|off", env = "UNCOPIED_RELAY_LIMIT_RATE")]
    pub(crate) limit_rate: Option<RateLimit>,

    /// Time between two look-ups of a target's name; 0 looks it up only once [default: 30s]
    #[arg(long, value_name = "TIME", env = "UNCOPIED_RELAY_RESOLVE_INTERVAL")]
    pub(crate) resolve_interval: Option<TimeSpan>,
}

/// The settings of the whole process.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct RelayProcessSettings {
    /// Maximum number of concurrent connections; further ones are closed at once, and a warning
    /// says so [default: 10000, or less if the descriptor limit (ulimit -n) is low]
    #[arg(long, value_name = "N", env = "UNCOPIED_RELAY_MAX_CONNECTIONS",
          value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) max_connections: Option<u32>,

    /// Number of threads, each with one event loop [default: the number of cores]
    #[arg(long, value_name = "N", env = "UNCOPIED_RELAY_THREADS",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,

    /// How long open connections may take to finish after SIGTERM or SIGINT; 0 closes them at once
    /// [default: 30s]
    #[arg(long, value_name = "TIME", env = "UNCOPIED_RELAY_GRACE")]
    pub(crate) grace: Option<TimeSpan>,

    /// Write one line per connection to standard output, or to --access-log-file [default: text if
    /// there is such a file or on a terminal, otherwise off]
    #[arg(long, value_name = "FORMAT", env = "UNCOPIED_RELAY_ACCESS_LOG")]
    pub(crate) access_log: Option<RelayLogFormat>,

    /// File to append the access log to; opened again on SIGHUP, for example after it was renamed
    #[arg(long, value_name = "FILE", env = "UNCOPIED_RELAY_ACCESS_LOG_FILE")]
    pub(crate) access_log_file: Option<PathBuf>,

    /// Address at which to serve metrics for Prometheus over HTTP, at /metrics
    #[arg(long, value_name = "ADDR", env = "UNCOPIED_RELAY_METRICS")]
    pub(crate) metrics: Option<ListenAddress>,

    /// Permissions of Unix sockets, in octal, such as 660 [default: 777 without the bits of the
    /// umask]
    #[arg(long, value_name = "MODE", env = "UNCOPIED_RELAY_SOCKET_MODE")]
    pub(crate) socket_mode: Option<SocketMode>,

    /// Let several processes of this user listen on the same TCP addresses (SO_REUSEPORT), so that
    /// a new process can take over from an old one [default: off]
    #[arg(long, value_name = "on|off", env = "UNCOPIED_RELAY_REUSE_PORT",
          num_args = 0..=1, require_equals = true, default_missing_value = "on", hide_possible_values = true)]
    pub(crate) reuse_port: Option<Switch>,
}

impl RelaySettings {
    /// Returns these settings, with those of `fallback` where there are none.
    pub(crate) fn or(self, fallback: Self) -> Self {
        Self {
            balance: self.balance.or(fallback.balance),
            health_interval: self.health_interval.or(fallback.health_interval),
            health_timeout: self.health_timeout.or(fallback.health_timeout),
            rise: self.rise.or(fallback.rise),
            fall: self.fall.or(fallback.fall),
            connect_timeout: self.connect_timeout.or(fallback.connect_timeout),
            idle_timeout: self.idle_timeout.or(fallback.idle_timeout),
            half_close_timeout: self.half_close_timeout.or(fallback.half_close_timeout),
            keepalive: self.keepalive.or(fallback.keepalive),
            nodelay: self.nodelay.or(fallback.nodelay),
            accept_proxy: self.accept_proxy.or(fallback.accept_proxy),
            send_proxy: self.send_proxy.or(fallback.send_proxy),
            mechanism: self.mechanism.or(fallback.mechanism),
            limit_rate: self.limit_rate.or(fallback.limit_rate),
            resolve_interval: self.resolve_interval.or(fallback.resolve_interval),
        }
    }
}

impl RelayProcessSettings {
    /// Returns these settings, with those of `fallback` where there are none.
    pub(crate) fn or(self, fallback: Self) -> Self {
        Self {
            max_connections: self.max_connections.or(fallback.max_connections),
            threads: self.threads.or(fallback.threads),
            grace: self.grace.or(fallback.grace),
            access_log: self.access_log.or(fallback.access_log),
            access_log_file: self.access_log_file.or(fallback.access_log_file),
            metrics: self.metrics.or(fallback.metrics),
            socket_mode: self.socket_mode.or(fallback.socket_mode),
            reuse_port: self.reuse_port.or(fallback.reuse_port),
        }
    }
}
