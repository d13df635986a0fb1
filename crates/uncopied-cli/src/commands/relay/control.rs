//! The control thread of `relay`: deadlines, reloads, metrics, totals, and the shutdown.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::error::Error;
use crate::flags::RelayFlags;
use crate::output::say;
use crate::server::access_log::AccessLog;
use crate::server::connections::{Commanded as _, ConnectionCommand};
use crate::server::control::{Received, Supervised, Supervisor, every};
use crate::server::listening::BoundListener;
use crate::server::warning::tell_suppressed;

use super::config::{ProcessConfig, RelayConfig};
use super::connection::sweep_interval;
use super::listener::{OpenListener, RelayListener, open};
use super::metrics::Observed;
use super::stats::{Totals, WorkerStats};
use super::target::resolve::resolve_all;
use super::target::{Pool, TargetEvent, Upkeep};
use super::totals::TotalsLine;

/// The maximum time that the start and a reload wait for names to be resolved.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The control thread of `relay`.
pub(super) struct Control<'a> {
    pub(super) supervisor: Supervisor,
    /// Receives what is worth telling about targets.
    pub(super) target_events: mpsc::UnboundedReceiver<TargetEvent>,
    pub(super) server: Server<'a>,
}

/// What the control thread supervises.
pub(super) struct Server<'a> {
    pub(super) flags: &'a RelayFlags,
    pub(super) workers: Vec<Arc<WorkerStats>>,
    /// The current listeners, which every worker accepts on. When the relay stops accepting, they
    /// are dropped, which closes them and removes the files of Unix sockets.
    pub(super) listeners: watch::Sender<Arc<[OpenListener]>>,
    pub(super) targets: Targets,
    pub(super) process: ProcessConfig,
    pub(super) log: Option<Arc<AccessLog>>,
}

/// The targets of all listeners, and the tasks that check and resolve them.
pub(super) struct Targets {
    pools: watch::Sender<Vec<Arc<Pool>>>,
    events: mpsc::UnboundedSender<TargetEvent>,
    upkeep: Option<Upkeep>,
}

impl Targets {
    /// Creates the targets of a configuration.
    pub(super) fn new(config: &RelayConfig, events: mpsc::UnboundedSender<TargetEvent>) -> Self {
        Self {
            pools: watch::Sender::new(Pool::all(&config.listeners, &[], &events)),
            events,
            upkeep: None,
        }
    }

    pub(super) fn pools(&self) -> Vec<Arc<Pool>> {
        self.pools.borrow().clone()
    }

    /// Resolves the names that have no address yet, and starts the tasks.
    pub(super) async fn start(&mut self) {
        let pools = self.pools();
        resolve_all(&pools, RESOLVE_TIMEOUT).await;
        self.upkeep = Some(Upkeep::start(&pools));
    }
}

impl Control<'_> {
    /// Enforces deadlines until a signal to stop arrives, then shuts the relay down.
    pub(super) async fn run(&mut self) -> Result<(), Error> {
        self.supervise().await?;
        let (grace, interval) = (self.server.process.grace, self.server.sweep_interval());
        self.supervisor
            .shut_down(&mut self.server, grace, interval)
            .await
    }

    async fn supervise(&mut self) -> Result<(), Error> {
        let mut sweeps = every(self.server.sweep_interval());
        loop {
            tokio::select! {
                signal = self.supervisor.next() => match signal? {
                    Received::Stop => return Ok(()),
                    Received::Reload => {
                        self.server.reload().await;
                        sweeps = every(self.server.sweep_interval());
                    }
                    Received::Totals => self.server.print_totals(),
                },
                Some(event) = self.target_events.recv() => say(&event),
                _ = sweeps.tick() => self.server.sweep(false),
            }
        }
    }
}

impl Supervised for Server<'_> {
    fn begin_draining(&mut self) {
        self.listeners.send_replace(Arc::new([]));
        let connections = self.open_connections();
        if connections > 0 && !self.process.grace.is_zero() {
            let grace = crate::flags::TimeSpan(self.process.grace);
            say(&format_args!(
                "open connections have up to {grace} to finish: {connections}"
            ));
        }
    }

    fn sweep(&mut self, _is_draining: bool) {
        tell_suppressed(false);
        for stats in &self.workers {
            stats.connections.for_each(|connection| connection.sweep());
        }
    }

    fn reload_draining(&mut self) {
        if let Some(log) = &self.log {
            log.reopen();
        }
    }

    fn print_totals(&self) {
        say(&TotalsLine {
            totals: Totals::of(self.workers.iter().map(Arc::as_ref)),
            dropped_log_lines: self.log.as_ref().map_or(0, |log| log.dropped_lines()),
        });
    }

    fn open_connections(&self) -> usize {
        let mut count = 0;
        for stats in &self.workers {
            stats.connections.for_each(|_| count += 1);
        }
        count
    }

    fn abort_connections(&self) {
        for stats in &self.workers {
            stats.connections.for_each(|connection| {
                connection.commands().send(ConnectionCommand::Abort);
            });
        }
    }
}

impl Server<'_> {
    /// Returns what the metrics are about.
    pub(super) fn observed(&self, max_connections: usize) -> Observed {
        Observed {
            workers: self.workers.clone(),
            pools: self.targets.pools.subscribe(),
            log: self.log.clone(),
            max_connections,
        }
    }

    fn sweep_interval(&self) -> Duration {
        let listeners = self.listeners.borrow();
        let limits = listeners.iter().map(|open| open.listener.idle_limits());
        sweep_interval(limits)
    }

    /// Carries out SIGHUP: opens the access log again, and reads the configuration again. If that
    /// has an error, or an address cannot be listened on, everything stays as it is.
    async fn reload(&mut self) {
        self.reload_draining();
        if self.flags.config.is_none() {
            return;
        }
        match self.replace_configuration().await {
            Ok(config) => say(&format_args!("configuration reloaded: {config}")),
            Err(error) => say(&format_args!(
                "the configuration was not reloaded, and the old one stays in use: {error}"
            )),
        }
    }

    async fn replace_configuration(&mut self) -> Result<RelayConfig, Error> {
        let config = RelayConfig::load(self.flags)?;
        let targets = &mut self.targets;
        let pools = Pool::all(&config.listeners, &targets.pools(), &targets.events);
        let old = Arc::clone(&self.listeners.borrow());
        let listeners = open_listeners(&config, &pools, &old, &mut Vec::new())?;
        if config.process != self.process {
            say(
                &"the settings of the whole process are read only at the start; restart to change \
                  them",
            );
        }
        targets.pools.send_replace(pools);
        targets.start().await;
        self.listeners.send_replace(listeners);
        Ok(config)
    }
}

/// Opens the listeners of a configuration. Sockets that are open already, in `old` or passed to the
/// process, are used again.
pub(super) fn open_listeners(
    config: &RelayConfig,
    pools: &[Arc<Pool>],
    old: &[OpenListener],
    passed: &mut Vec<BoundListener>,
) -> Result<Arc<[OpenListener]>, Error> {
    let process = &config.process;
    let mut listeners = Vec::with_capacity(config.listeners.len());
    for (config, pool) in config.listeners.iter().zip(pools) {
        let same = old
            .iter()
            .find(|open| open.listener.config.listen == config.listen);
        let (socket, name) = match same {
            Some(open) => (Arc::clone(&open.socket), open.listener.name.clone()),
            None => {
                let (socket, name) = open(
                    &config.listen,
                    passed,
                    process.socket_mode,
                    process.reuse_port,
                )?;
                (Arc::new(socket), name)
            }
        };
        listeners.push(OpenListener {
            socket,
            listener: Arc::new(RelayListener {
                name,
                config: config.clone(),
                pool: Arc::clone(pool),
            }),
        });
    }
    // Only after all of them are open, so that a failure leaves the old ones unchanged.
    for listener in &listeners {
        listener
            .set_options()
            .map_err(Error::setup("set the options of a listening socket"))?;
    }
    Ok(listeners.into())
}
