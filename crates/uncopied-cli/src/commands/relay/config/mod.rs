//! The configuration of a relay: from flags alone, or from flags and a file.
//!
//! A setting comes from the first of these places that has it:
//!
//! 1. a flag, or its environment variable
//! 2. the listener's table in the file
//! 3. the top of the file, which is for all listeners
//! 4. the defaults in this module

mod file;

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use uncopied::Mechanism;

use crate::flags::{
    Balance, ListenAddress, ProxyVersion, ProxyVersions, RelayFlags, RelayLogFormat,
    RelayMechanism, RelayProcessSettings, RelaySettings, SocketMode, Switch, TargetAddress,
    TimeOrOff, WeightedTarget,
};

pub(crate) use file::ConfigError;

const DEFAULT_HEALTH_INTERVAL: Duration = Duration::from_secs(5);
const DEFAULT_HEALTH_TIMEOUT: Duration = Duration::from_secs(2);
const DEFAULT_RISE: u16 = 2;
const DEFAULT_FALL: u16 = 3;
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(60 * 60);
const DEFAULT_HALF_CLOSE_TIMEOUT: Duration = Duration::from_secs(60);
const DEFAULT_KEEPALIVE: Duration = Duration::from_secs(60);
const DEFAULT_RESOLVE_INTERVAL: Duration = Duration::from_secs(30);
const DEFAULT_GRACE: Duration = Duration::from_secs(30);

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RelayConfig {
    /// At least one listener, with different addresses.
    pub(crate) listeners: Vec<ListenerConfig>,
    /// The settings of the whole process.
    pub(crate) process: ProcessConfig,
}

/// A listener, its targets and its settings. For all times, `None` means no limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListenerConfig {
    /// The address to listen on.
    pub(crate) listen: ListenAddress,
    /// At least one target, with different addresses.
    pub(crate) targets: Vec<WeightedTarget>,
    /// How the target of a connection is chosen.
    pub(crate) balance: Balance,
    /// How targets are checked. `None` if they are not.
    pub(crate) health: Option<HealthConfig>,
    /// The limit for one attempt to connect, and for receiving a PROXY header.
    pub(crate) connect_timeout: Option<Duration>,
    /// The limit on the time without any byte.
    pub(crate) idle_timeout: Option<Duration>,
    /// The same, once one side has ended its stream.
    pub(crate) half_close_timeout: Option<Duration>,
    /// The idle time after which TCP keep-alive probes a peer. `None` if it does not.
    pub(crate) keepalive: Option<Duration>,
    /// Whether `TCP_NODELAY` is set on both sides.
    pub(crate) nodelay: bool,
    /// The versions of the PROXY header with which every connection must begin. `None` if there is
    /// no such header.
    pub(crate) accept_proxy: Option<ProxyVersions>,
    /// The version of the PROXY header to send to targets.
    pub(crate) send_proxy: Option<ProxyVersion>,
    /// The only mechanism to use. `None` lets the library choose.
    pub(crate) mechanism: Option<Mechanism>,
    /// The limit on each direction of each connection, in bytes per second.
    pub(crate) limit_rate: Option<u64>,
    /// The time between two look-ups of a name. `None` if it is looked up only once.
    pub(crate) resolve_interval: Option<Duration>,
}

/// How targets are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HealthConfig {
    /// The time between two checks.
    pub(crate) interval: Duration,
    /// The limit on the time for connecting. `None` leaves it to the kernel.
    pub(crate) timeout: Option<Duration>,
    /// The number of successes in a row after which a target is up again, at least 1.
    pub(crate) rise: u16,
    /// The number of failures in a row after which a target is down, at least 1.
    pub(crate) fall: u16,
}

/// The settings of the whole process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProcessConfig {
    /// The maximum number of connections. `None` if the descriptor limit decides.
    pub(crate) max_connections: Option<u32>,
    /// The number of threads. `None` for one per core.
    pub(crate) threads: Option<u16>,
    /// The time that open connections have to finish.
    pub(crate) grace: Duration,
    /// The format of the access log. `None` if a log file or a terminal decides.
    pub(crate) access_log: Option<RelayLogFormat>,
    /// The file for the access log. `None` for standard output.
    pub(crate) access_log_file: Option<PathBuf>,
    /// Where metrics are served.
    pub(crate) metrics: Option<ListenAddress>,
    /// The permissions of Unix sockets.
    pub(crate) socket_mode: Option<SocketMode>,
    /// Whether other processes may listen on the same addresses.
    pub(crate) reuse_port: bool,
}

impl RelayConfig {
    /// Makes a configuration from the flags, and from the file that they name. Opens nothing else,
    /// and resolves no names.
    ///
    /// # Errors
    ///
    /// The file cannot be read or has a mistake, or the flags have one. The text of the error names
    /// the file, the line and the key.
    pub(crate) fn load(flags: &RelayFlags) -> Result<Self, ConfigError> {
        match &flags.config {
            Some(path) => file::load(path, flags),
            None => Self::from_flags(flags),
        }
    }

    fn from_flags(flags: &RelayFlags) -> Result<Self, ConfigError> {
        // clap requires both arguments if there is no file.
        let listen = flags.listen.clone().unwrap_or_default();
        if let Some(twice) = first_duplicate(flags.targets.iter().map(|target| &target.address)) {
            return Err(ConfigError::DuplicateTarget(twice.to_string()));
        }
        let targets = flags.targets.clone();
        Ok(Self {
            listeners: vec![ListenerConfig::new(listen, targets, flags.settings.clone())],
            process: ProcessConfig::new(flags.process.clone()),
        })
    }
}

impl fmt::Display for RelayConfig {
    /// Writes what `--check` prints.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |n: usize, what: &str| match n {
            1 => format!("1 {what}"),
            n => format!("{n} {what}s"),
        };
        let targets = self.listeners.iter().map(|listener| listener.targets.len());
        let (listeners, targets) = (self.listeners.len(), targets.sum());
        write!(
            f,
            "{}, {}",
            count(listeners, "listener"),
            count(targets, "target")
        )
    }
}

impl ListenerConfig {
    /// Fills in the defaults.
    pub(super) fn new(
        listen: ListenAddress,
        targets: Vec<WeightedTarget>,
        settings: RelaySettings,
    ) -> Self {
        // With a single target, a check changes nothing: the target is tried even if it is down.
        let default_interval = (targets.len() > 1).then_some(DEFAULT_HEALTH_INTERVAL);
        let interval = match settings.health_interval {
            None => default_interval,
            Some(TimeOrOff(interval)) => interval,
        };
        let limit = |time: Option<crate::flags::TimeSpan>, default| {
            time.map_or(Some(default), |time| time.limit())
        };
        Self {
            listen,
            targets,
            balance: settings.balance.unwrap_or(Balance::RoundRobin),
            health: interval.map(|interval| HealthConfig {
                interval,
                timeout: limit(settings.health_timeout, DEFAULT_HEALTH_TIMEOUT),
                rise: settings.rise.unwrap_or(DEFAULT_RISE),
                fall: settings.fall.unwrap_or(DEFAULT_FALL),
            }),
            connect_timeout: limit(settings.connect_timeout, DEFAULT_CONNECT_TIMEOUT),
            idle_timeout: limit(settings.idle_timeout, DEFAULT_IDLE_TIMEOUT),
            half_close_timeout: limit(settings.half_close_timeout, DEFAULT_HALF_CLOSE_TIMEOUT),
            keepalive: settings
                .keepalive
                .map_or(Some(DEFAULT_KEEPALIVE), |keepalive| keepalive.0),
            nodelay: settings.nodelay != Some(Switch::Off),
            accept_proxy: settings.accept_proxy.and_then(|accept| accept.versions()),
            send_proxy: settings.send_proxy.and_then(|send| send.version()),
            mechanism: settings.mechanism.and_then(RelayMechanism::forced),
            limit_rate: settings.limit_rate.and_then(|limit| limit.0),
            resolve_interval: limit(settings.resolve_interval, DEFAULT_RESOLVE_INTERVAL),
        }
    }
}

impl ProcessConfig {
    /// Fills in the defaults.
    pub(super) fn new(settings: RelayProcessSettings) -> Self {
        Self {
            max_connections: settings.max_connections,
            threads: settings.threads,
            grace: settings.grace.map_or(DEFAULT_GRACE, |grace| grace.0),
            access_log: settings.access_log,
            access_log_file: settings.access_log_file,
            metrics: settings.metrics,
            socket_mode: settings.socket_mode,
            reuse_port: settings.reuse_port == Some(Switch::On),
        }
    }
}

/// Returns the first address that occurs a second time.
fn first_duplicate<'a>(
    addresses: impl IntoIterator<Item = &'a TargetAddress>,
) -> Option<&'a TargetAddress> {
    let mut seen = HashSet::new();
    addresses.into_iter().find(|address| !seen.insert(*address))
}

#[cfg(test)]
mod tests;
