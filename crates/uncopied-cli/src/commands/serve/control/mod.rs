//! The control thread: signals, deadlines, totals, and the shutdown.

mod deadlines;
mod root;
mod signals;
mod totals;

use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep, timeout};

use crate::error::Error;
use crate::flags::TimeSpan;
use crate::output::say;

use super::access_log::AccessLog;
use super::connection::{ConnectionCommand, Phase};
use super::listening::BoundListener;
use super::warning::{WarningKind, tell_suppressed, warn_limited};
use super::worker::{Worker, WorkerExit};

pub(crate) use deadlines::Deadlines;
pub(crate) use root::RootFollower;
use signals::Received;
pub(crate) use signals::Signals;
pub(crate) use totals::TotalsLine;

/// The interval at which the control thread checks where the served path leads.
const ROOT_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The maximum time that the workers may take to drop aborted connections. After that, the process
/// exits without waiting for them.
const ABORT_TIMEOUT: Duration = Duration::from_secs(1);
/// The interval at which all connections are told to abort during [`ABORT_TIMEOUT`]. The command is
/// repeated, because a worker may have accepted another connection just before it stopped
/// accepting.
const ABORT_INTERVAL: Duration = Duration::from_millis(50);

/// The state of the control thread: the workers that it supervises, and the means to stop them.
pub(crate) struct Control<'a> {
    pub(crate) signals: Signals,
    pub(crate) workers: &'a [Worker],
    /// The listeners. When the server stops accepting, they are dropped, which closes them and
    /// removes the files of Unix sockets.
    pub(crate) listeners: Vec<BoundListener>,
    /// Receives one message for each worker that ends.
    pub(crate) worker_exits: mpsc::UnboundedReceiver<WorkerExit>,
    /// Receives a message when a connection waits for a permit; see `--max-connections`.
    pub(crate) room_requested: mpsc::UnboundedReceiver<()>,
    pub(crate) max_connections: usize,
    /// Tells the workers to stop accepting connections when set to true.
    pub(crate) stop: watch::Sender<bool>,
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
        self.shut_down().await
    }

    async fn supervise(&mut self) -> Result<(), Error> {
        let mut sweeps = every(self.deadlines.sweep_interval());
        let mut root_checks = every(ROOT_CHECK_INTERVAL);
        loop {
            tokio::select! {
                signal = self.signals.next() => match signal {
                    Received::Stop => return Ok(()),
                    Received::Reload if self.has_lost_terminal() => return Ok(()),
                    Received::Reload => self.reload(),
                    Received::Totals => self.print_totals(),
                },
                _ = self.worker_exits.recv() => return Err(Error::WorkerLost),
                Some(()) = self.room_requested.recv() => self.make_room(),
                _ = sweeps.tick() => self.sweep(false),
                _ = root_checks.tick() => self.root.check(),
            }
        }
    }

    /// Stops accepting connections, and waits until no request is in progress, the grace period is
    /// over, or a second signal arrives. Then aborts the remaining connections.
    async fn shut_down(&mut self) -> Result<(), Error> {
        self.stop.send_replace(true);
        self.listeners.clear();
        for worker in self.workers {
            worker.stats.connections.drain_all();
        }
        self.say_what_is_finishing();
        let mut running = RunningWorkers {
            count: self.workers.len(),
            has_lost_one: false,
        };
        let mut sweeps = every(self.deadlines.sweep_interval());
        let grace = sleep(self.deadlines.grace);
        tokio::pin!(grace);
        while running.count > 0 {
            tokio::select! {
                exit = self.worker_exits.recv() => running.remove_one(exit),
                () = &mut grace => break,
                signal = self.signals.next() => match signal {
                    Received::Stop => break,
                    Received::Reload => self.reload(),
                    Received::Totals => self.print_totals(),
                },
                _ = sweeps.tick() => self.sweep(true),
            }
        }
        if running.count > 0 {
            // Ignore a timeout: a worker that is stuck in a system call ends when the process
            // exits.
            let _ = timeout(ABORT_TIMEOUT, self.abort(&mut running)).await;
        }
        match running.has_lost_one {
            true => Err(Error::WorkerLost),
            false => Ok(()),
        }
    }

    async fn abort(&mut self, running: &mut RunningWorkers) {
        let mut connections = 0;
        for worker in self.workers {
            worker.stats.connections.for_each(|_| connections += 1);
        }
        if connections > 0 {
            say(&format_args!(
                "closing connections that are still open: {connections}"
            ));
        }
        let mut aborts = every(ABORT_INTERVAL);
        while running.count > 0 {
            tokio::select! {
                exit = self.worker_exits.recv() => running.remove_one(exit),
                _ = aborts.tick() => for worker in self.workers {
                    worker
                        .stats
                        .connections
                        .for_each(|connection| connection.send(ConnectionCommand::Abort));
                },
            }
        }
    }

    /// Closes the connection that has been idle for the longest time between two requests, because
    /// another one waits for its place.
    fn make_room(&self) {
        let longest = self
            .workers
            .iter()
            .filter_map(|worker| worker.stats.connections.longest_idle())
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

    /// Whether SIGHUP means that the terminal has gone, and not that somebody wants a reload. A
    /// terminal that has hung up is not a terminal any more.
    fn has_lost_terminal(&self) -> bool {
        self.is_on_terminal && !io::stderr().is_terminal()
    }

    /// Tells the user at a terminal what the server waits for.
    fn say_what_is_finishing(&self) {
        let mut requests = 0;
        for worker in self.workers {
            worker.stats.connections.for_each(|connection| {
                requests += u64::from(!matches!(connection.phase(), Phase::Idle | Phase::Closing));
            });
        }
        if self.is_on_terminal && requests > 0 && !self.deadlines.grace.is_zero() {
            let s = if requests == 1 { "" } else { "s" };
            let grace = TimeSpan(self.deadlines.grace);
            say(&format_args!(
                "finishing {requests} request{s}, up to {grace}; Ctrl-C again to cut"
            ));
        }
    }

    fn sweep(&self, is_draining: bool) {
        tell_suppressed(false);
        let now = Instant::now();
        for worker in self.workers {
            self.deadlines
                .sweep(&worker.stats.connections, now, is_draining);
        }
    }

    fn print_totals(&self) {
        say(&TotalsLine::of(self.workers, self.log));
    }
}

/// The workers that have not ended yet.
struct RunningWorkers {
    count: usize,
    has_lost_one: bool,
}

impl RunningWorkers {
    fn remove_one(&mut self, exit: Option<WorkerExit>) {
        self.count = self.count.saturating_sub(1);
        self.has_lost_one |= exit != Some(WorkerExit::Clean);
    }
}

fn every(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
