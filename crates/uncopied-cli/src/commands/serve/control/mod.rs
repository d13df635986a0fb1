//! The control thread: signals, deadlines, totals, and the shutdown.

mod deadlines;
mod root;
mod totals;

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::error::Error;
use crate::flags::TimeSpan;
use crate::output::say;
use crate::server::access_log::AccessLog;
use crate::server::connections::{Commanded as _, ConnectionCommand};
use crate::server::control::{Received, Supervised, Supervisor, every};
use crate::server::listening::BoundListener;
use crate::server::warning::{WarningKind, tell_suppressed, warn_limited};

use super::connection::{ConnectionState, Phase};
use super::worker::Worker;

pub(crate) use deadlines::Deadlines;
pub(crate) use root::RootFollower;
pub(crate) use totals::TotalsLine;

/// The interval at which the control thread checks where the served path leads.
const ROOT_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The control thread of `serve`.
pub(crate) struct Control<'a> {
    pub(crate) supervisor: Supervisor,
    /// Receives a message when a connection waits for a permit; see `--max-connections`.
    pub(crate) room_requested: mpsc::UnboundedReceiver<()>,
    pub(crate) server: Server<'a>,
}

/// What the control thread supervises.
pub(crate) struct Server<'a> {
    pub(crate) workers: &'a [Worker],
    /// The listeners. When the server stops accepting, they are dropped, which closes them and
    /// removes the files of Unix sockets.
    pub(crate) listeners: Vec<BoundListener>,
    pub(crate) max_connections: usize,
    pub(crate) deadlines: Deadlines,
    pub(crate) log: Option<&'a AccessLog>,
    pub(crate) root: RootFollower,
    /// Whether standard error was a terminal at the start.
    pub(crate) is_on_terminal: bool,
}

impl Control<'_> {
    /// Enforces deadlines until a signal to stop arrives, then shuts the server down.
    pub(crate) async fn run(mut self) -> Result<(), Error> {
        self.supervise().await?;
        let Deadlines { grace, .. } = self.server.deadlines;
        let sweep_interval = self.server.deadlines.sweep_interval();
        self.supervisor
            .shut_down(&mut self.server, grace, sweep_interval)
            .await
    }

    async fn supervise(&mut self) -> Result<(), Error> {
        let mut sweeps = every(self.server.deadlines.sweep_interval());
        let mut root_checks = every(ROOT_CHECK_INTERVAL);
        loop {
            tokio::select! {
                signal = self.supervisor.next() => match signal? {
                    Received::Stop => return Ok(()),
                    Received::Reload => self.server.reload(),
                    Received::Totals => self.server.print_totals(),
                },
                Some(()) = self.room_requested.recv() => self.server.make_room(),
                _ = sweeps.tick() => self.server.sweep(false),
                _ = root_checks.tick() => self.server.root.check(),
            }
        }
    }
}

impl Supervised for Server<'_> {
    fn begin_draining(&mut self) {
        self.listeners.clear();
        for worker in self.workers {
            worker.stats.connections.drain_all();
        }
        self.say_what_is_finishing();
    }

    fn sweep(&mut self, is_draining: bool) {
        tell_suppressed(false);
        let now = Instant::now();
        for worker in self.workers {
            self.deadlines
                .sweep(&worker.stats.connections, now, is_draining);
        }
    }

    fn reload_draining(&mut self) {
        self.reload();
    }

    fn print_totals(&self) {
        say(&TotalsLine::of(self.workers, self.log));
    }

    fn open_connections(&self) -> usize {
        let mut count = 0;
        self.for_each_connection(|_| count += 1);
        count
    }

    fn abort_connections(&self) {
        self.for_each_connection(|connection| {
            connection.commands().send(ConnectionCommand::Abort);
        });
    }
}

impl Server<'_> {
    fn for_each_connection(&self, mut visit: impl FnMut(&ConnectionState)) {
        for worker in self.workers {
            worker.stats.connections.for_each(&mut visit);
        }
    }

    /// Closes the connection that has been idle for the longest time between two requests, because
    /// another one waits for its place.
    fn make_room(&self) {
        let longest = self
            .workers
            .iter()
            .filter_map(|worker| {
                let connections = &worker.stats.connections;
                connections.greatest(ConnectionState::idle_time_if_open)
            })
            .max_by_key(|(time, _)| *time);
        let closes = if longest.is_some() {
            "the longest idle one is closed for each new one"
        } else {
            "none is idle, and new ones wait"
        };
        let message = format_args!(
            "all {} connections are in use: {closes}; raise --max-connections, or lower \
             --keepalive-timeout",
            self.max_connections
        );
        warn_limited(WarningKind::TableFull, &message);
        if let Some((_, connection)) = longest {
            connection.send(ConnectionCommand::Drain);
        }
    }

    /// Carries out SIGHUP: opens again what may have been replaced.
    fn reload(&mut self) {
        if let Some(log) = self.log {
            log.reopen();
        }
        self.root.check();
    }

    /// Tells the user at a terminal what the server waits for.
    fn say_what_is_finishing(&self) {
        let mut requests = 0;
        self.for_each_connection(|connection| {
            requests += u64::from(!matches!(connection.phase(), Phase::Idle | Phase::Closing));
        });
        if self.is_on_terminal && requests > 0 && !self.deadlines.grace.is_zero() {
            let s = if requests == 1 { "" } else { "s" };
            let grace = TimeSpan(self.deadlines.grace);
            say(&format_args!(
                "finishing {requests} request{s}, up to {grace}; Ctrl-C again to cut"
            ));
        }
    }
}
