//! The targets of a listener.
//!
//! ```text
//!   Pool ── attempts(client) ──► Attempt ── connected() ──► Connection
//!    │                              └── failed(error): the next attempt; the health
//!    └─ Target, Target, …   addresses, health, counters
//!          ▲          ▲
//!          └─ resolve └─ health      tasks of the control thread (Upkeep)
//! ```
//!
//! # The order of attempts
//!
//! A connection tries each target at most once. Targets that are up come first, in the order of the
//! balancing rule, and then those that are down. So if all are down, they are tried all the same.
//! Other load balancers refuse the connection at once in this case. But that a target is down is
//! an observation from outside that is up to one interval old. If the observation is wrong, for
//! example because only the checks are blocked, refusing would turn it into an outage. If it is
//! right, an attempt costs only time: most dead targets refuse within a round trip, and the connect
//! timeout limits the others.
//!
//! # Reload
//!
//! A pool never changes. A new configuration makes new pools, which take over the [`Target`]s that
//! stay, with their addresses, health, connections and counters. A connection keeps its target
//! alive, so a target that was removed lasts until its last connection has ended.

pub(crate) mod resolve;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use rustix::io::Errno;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinSet;

use crate::error::kernel_text;
use crate::flags::{Balance, ListenAddress, ProxyVersion, TargetAddress};

use super::balance::{Balancer, hash_of_client};
use super::config::{HealthConfig, ListenerConfig};
use super::health::{self, Health, Streak};

use resolve::ResolveSchedule;

/// An address to connect to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ConnectAddress {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for ConnectAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A server to which connections are relayed. Shared by all threads.
#[derive(Debug)]
pub(crate) struct Target {
    address: TargetAddress,
    /// In order, without duplicates. Empty if the name has not been resolved yet.
    addresses: RwLock<Arc<[ConnectAddress]>>,
    /// The number of the next attempt, which says with which address it begins.
    next_address: AtomicUsize,
    health: Mutex<Streak>,
    connections: AtomicUsize,
    connected: AtomicU64,
    failed: AtomicU64,
    failed_checks: AtomicU64,
}

impl Target {
    fn new(address: TargetAddress) -> Self {
        let addresses: Arc<[ConnectAddress]> = match &address {
            TargetAddress::Ip(address) => [ConnectAddress::Tcp(*address)].into(),
            TargetAddress::Unix(path) => [ConnectAddress::Unix(path.clone())].into(),
            TargetAddress::Name { .. } => [].into(),
        };
        Self {
            address,
            addresses: RwLock::new(addresses),
            next_address: AtomicUsize::new(0),
            health: Mutex::default(),
            connections: AtomicUsize::new(0),
            connected: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            failed_checks: AtomicU64::new(0),
        }
    }

    /// Returns what the configuration says. Its `Display` text identifies the target in logs and
    /// metrics.
    pub(crate) fn address(&self) -> &TargetAddress {
        &self.address
    }

    /// Returns the addresses to connect to. Empty if the name has not been resolved yet.
    pub(crate) fn addresses(&self) -> Arc<[ConnectAddress]> {
        Arc::clone(
            &self
                .addresses
                .read()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    fn has_address(&self) -> bool {
        let addresses = self.addresses.read();
        !addresses.unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Replaces the addresses. Returns whether they have changed.
    fn set_addresses(&self, addresses: Vec<ConnectAddress>) -> bool {
        let mut current = self
            .addresses
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let is_new = current[..] != addresses[..];
        if is_new {
            *current = addresses.into();
        }
        is_new
    }

    /// Returns what is known about the target's health.
    pub(crate) fn health(&self) -> Health {
        self.lock_health().health()
    }

    /// Returns the number of open connections, and of attempts in progress.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }

    /// Returns the number of connections that were established. Never decreases.
    pub(crate) fn connected(&self) -> u64 {
        self.connected.load(Relaxed)
    }

    /// Returns the number of attempts to connect that failed. Never decreases.
    pub(crate) fn failed(&self) -> u64 {
        self.failed.load(Relaxed)
    }

    /// Returns the number of checks that failed. Never decreases.
    pub(crate) fn failed_checks(&self) -> u64 {
        self.failed_checks.load(Relaxed)
    }

    fn lock_health(&self) -> MutexGuard<'_, Streak> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The targets of one listener. Shared by all threads.
#[derive(Debug)]
pub(crate) struct Pool {
    listen: ListenAddress,
    targets: Vec<Arc<Target>>,
    balance: Balance,
    balancer: Mutex<Balancer>,
    health: Option<HealthConfig>,
    send_proxy: Option<ProxyVersion>,
    resolve: ResolveSchedule,
    events: UnboundedSender<TargetEvent>,
}

impl Pool {
    /// Creates the pools of a configuration, in the order of its listeners. A target of a listener
    /// with the same address in `previous` is taken over.
    ///
    /// `events` receives what is worth telling the user.
    pub(crate) fn all(
        listeners: &[ListenerConfig],
        previous: &[Arc<Self>],
        events: &UnboundedSender<TargetEvent>,
    ) -> Vec<Arc<Self>> {
        let pool = |config: &ListenerConfig| {
            let previous = previous.iter().find(|pool| pool.listen == config.listen);
            Arc::new(Self::new(config, previous.map(Arc::as_ref), events.clone()))
        };
        listeners.iter().map(pool).collect()
    }

    fn new(
        config: &ListenerConfig,
        previous: Option<&Self>,
        events: UnboundedSender<TargetEvent>,
    ) -> Self {
        let old = previous.map_or(&[][..], |pool| &pool.targets);
        let target = |address: &TargetAddress| {
            let same = old.iter().find(|target| target.address == *address);
            same.map_or_else(|| Arc::new(Target::new(address.clone())), Arc::clone)
        };
        let weights = config.targets.iter().map(|t| (&t.address, t.weight));
        let balancer = Balancer::new(config.balance, weights);
        let targets = config.targets.iter().map(|t| target(&t.address)).collect();
        Self {
            listen: config.listen.clone(),
            targets,
            balance: config.balance,
            balancer: Mutex::new(balancer),
            health: config.health,
            send_proxy: config.send_proxy,
            resolve: ResolveSchedule::every(config.resolve_interval),
            events,
        }
    }

    /// Returns the address of the listener.
    pub(crate) fn listen(&self) -> &ListenAddress {
        &self.listen
    }

    /// Returns the targets, in the order of the configuration.
    pub(crate) fn targets(&self) -> &[Arc<Target>] {
        &self.targets
    }

    /// Returns the attempts for one connection. An attempt is chosen only when the one before has
    /// failed, so it depends on what is known by then.
    ///
    /// `client` is the client's IP address, from the connection or from its PROXY header. `None` if
    /// it has none.
    pub(crate) fn attempts(self: &Arc<Self>, client: Option<IpAddr>) -> Attempts {
        Attempts {
            pool: Arc::clone(self),
            client,
            is_tried: vec![false; self.targets.len()],
        }
    }

    /// Returns whether connections are sent to a target before those that are down.
    fn is_usable(&self, target: &Target) -> bool {
        self.health.is_none() || target.health() != Health::Down
    }

    /// Takes the result of an attempt to connect, or of a check, into account.
    fn record(&self, target: &Target, outcome: Result<(), &io::Error>) {
        let Some(config) = self.health else { return };
        if outcome.is_err_and(is_local) {
            return;
        }
        let change = target.lock_health().record(outcome.is_ok(), config);
        let state = match (change, outcome) {
            (None, _) => return,
            (Some(_), Ok(())) => TargetState::Up,
            (Some(_), Err(error)) => TargetState::Down(kernel_text(error)),
        };
        self.tell(target, state);
    }

    fn tell(&self, target: &Target, state: TargetState) {
        let is_up = |target: &&Arc<Target>| self.is_usable(target) && target.has_address();
        // Ignore an error: nobody listens any more when the process ends.
        let _ = self.events.send(TargetEvent {
            listen: self.listen.clone(),
            target: target.address.clone(),
            state,
            up: self.targets.iter().filter(is_up).count(),
            targets: self.targets.len(),
        });
    }
}

/// Whether an attempt failed because of this machine, so that it says nothing about the target.
fn is_local(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    errno.is_some_and(|errno| {
        [
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOBUFS,
            Errno::NOMEM,
            // All ports are in use.
            Errno::ADDRNOTAVAIL,
        ]
        .contains(&errno)
    })
}

/// The attempts of one connection: an iterator that chooses the next target when it is asked.
#[derive(Debug)]
pub(crate) struct Attempts {
    pool: Arc<Pool>,
    client: Option<IpAddr>,
    is_tried: Vec<bool>,
}

impl Iterator for Attempts {
    type Item = Attempt;

    /// Chooses a target that has not been tried and has an address. `None` if there is none.
    fn next(&mut self) -> Option<Attempt> {
        let Self {
            pool,
            client,
            is_tried,
        } = self;
        let targets = &pool.targets;
        let can_be_tried = |index: usize| !is_tried[index] && targets[index].has_address();
        let is_usable = |index: usize| can_be_tried(index) && pool.is_usable(&targets[index]);
        let connections = |index: usize| targets[index].connections();
        let (index, connection) = {
            let balancer = &pool.balancer;
            let mut balancer = balancer.lock().unwrap_or_else(PoisonError::into_inner);
            let index = balancer
                .choose(*client, is_usable, connections)
                .or_else(|| balancer.choose(*client, can_be_tried, connections))?;
            // Count it while the lock is held, so that other threads see it when they choose.
            (index, Connection::new(Arc::clone(&targets[index])))
        };
        is_tried[index] = true;
        let mut addresses = connection.target().addresses().to_vec();
        if addresses.len() > 1 {
            // Spread the connections over the addresses of a name, but keep those of one client
            // together if that is the rule.
            let first = match (pool.balance, *client) {
                (Balance::SourceHash, Some(client)) => hash_of_client(client) as usize,
                _ => connection.target().next_address.fetch_add(1, Relaxed),
            };
            let first = first % addresses.len();
            addresses.rotate_left(first);
        }
        Some(Attempt {
            pool: Arc::clone(pool),
            connection,
            addresses,
        })
    }
}

/// An attempt to connect to a target. It counts as a connection until it is dropped.
#[derive(Debug)]
pub(crate) struct Attempt {
    pool: Arc<Pool>,
    connection: Connection,
    addresses: Vec<ConnectAddress>,
}

impl Attempt {
    /// Returns the addresses to connect to, in order: at least one.
    pub(crate) fn addresses(&self) -> &[ConnectAddress] {
        &self.addresses
    }

    /// Returns the target.
    pub(crate) fn target(&self) -> &Arc<Target> {
        self.connection.target()
    }

    /// Records that no address could be connected to. `error` is that of the last one, and
    /// `TimedOut` after the connect timeout.
    pub(crate) fn failed(self, error: &io::Error) {
        let target = self.target();
        target.failed.fetch_add(1, Relaxed);
        self.pool.record(target, Err(error));
    }

    /// Records that a connection was established, and returns what counts it from now on.
    pub(crate) fn connected(self) -> Connection {
        let target = self.target();
        target.connected.fetch_add(1, Relaxed);
        self.pool.record(target, Ok(()));
        self.connection
    }
}

/// Counts one connection of a target until it is dropped.
#[derive(Debug)]
pub(crate) struct Connection {
    target: Arc<Target>,
}

impl Connection {
    fn new(target: Arc<Target>) -> Self {
        target.connections.fetch_add(1, Relaxed);
        Self { target }
    }

    /// Returns the target.
    pub(crate) fn target(&self) -> &Arc<Target> {
        &self.target
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.target.connections.fetch_sub(1, Relaxed);
    }
}

/// Something about a target that is worth telling the user. Its `Display` text is one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TargetEvent {
    listen: ListenAddress,
    target: TargetAddress,
    state: TargetState,
    /// How many targets of the listener are not down.
    up: usize,
    targets: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum TargetState {
    Up,
    /// Down, and why.
    Down(String),
    /// The name has other addresses.
    Resolved(Arc<[ConnectAddress]>),
    /// The look-up failed, and why. The last addresses stay in use.
    Unresolved(String, Arc<[ConnectAddress]>),
}

impl fmt::Display for TargetEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { listen, target, .. } = self;
        match &self.state {
            TargetState::Up => write!(f, "target {target} of {listen} is up")?,
            TargetState::Down(reason) => {
                write!(f, "target {target} of {listen} is down: {reason}")?;
            }
            TargetState::Resolved(addresses) => {
                return write!(
                    f,
                    "target {target} of {listen} has the addresses {}",
                    list(addresses)
                );
            }
            TargetState::Unresolved(reason, addresses) => {
                write!(f, "cannot resolve target {target} of {listen}: {reason}; ")?;
                return match addresses.is_empty() {
                    true => f.write_str("it is not used until its name resolves"),
                    false => write!(f, "its last addresses stay in use: {}", list(addresses)),
                };
            }
        }
        match (self.up, self.targets) {
            (_, 1) => Ok(()),
            (0, _) => f.write_str("; all are down, and are tried all the same"),
            (up, targets) => write!(f, "; {up} of {targets} are up"),
        }
    }
}

fn list(addresses: &[ConnectAddress]) -> String {
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    addresses.join(", ")
}

/// The tasks that check targets and resolve their names again. They end when this is dropped.
///
/// All their state is in the targets, so after a reload, new tasks go on where the old ones were.
#[derive(Debug)]
pub(crate) struct Upkeep {
    _tasks: JoinSet<()>,
}

impl Upkeep {
    /// Starts the tasks for the targets of `pools`, which are in use from now on. Must be called
    /// within a tokio runtime.
    pub(crate) fn start(pools: &[Arc<Pool>]) -> Self {
        let mut tasks = JoinSet::new();
        for pool in pools {
            for target in &pool.targets {
                match pool.health {
                    Some(config) => {
                        let (pool, target) = (Arc::clone(pool), Arc::clone(target));
                        tasks.spawn(health::check_regularly(pool, target, config));
                    }
                    // What earlier checks have found is outdated from now on.
                    None => *target.lock_health() = Streak::default(),
                }
                if let TargetAddress::Name { .. } = target.address {
                    let (pool, target) = (Arc::clone(pool), Arc::clone(target));
                    tasks.spawn(resolve::resolve_regularly(pool, target));
                }
            }
        }
        Self { _tasks: tasks }
    }
}

impl Pool {
    /// Takes the result of a check into account.
    pub(super) fn record_check(&self, target: &Target, outcome: Result<(), &io::Error>) {
        if outcome.is_err() {
            target.failed_checks.fetch_add(1, Relaxed);
        }
        self.record(target, outcome);
    }

    /// Returns the version of the PROXY header that is sent to targets.
    pub(super) fn send_proxy(&self) -> Option<ProxyVersion> {
        self.send_proxy
    }
}

#[cfg(test)]
mod tests;
