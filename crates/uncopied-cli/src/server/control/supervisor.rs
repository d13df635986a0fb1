//! Waits for signals and for the ends of workers, and shuts the workers down.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep, timeout};

use crate::error::Error;
use crate::output::say;
use crate::server::worker::WorkerExit;

use super::signals::{Received, Signals};

/// The maximum time that the workers may take to drop aborted connections. After that, the process
/// exits without waiting for them.
const ABORT_TIMEOUT: Duration = Duration::from_secs(1);
/// The interval at which all connections are told to abort during [`ABORT_TIMEOUT`]. The command is
/// repeated, because a worker may have accepted another connection just before it stopped
/// accepting.
const ABORT_INTERVAL: Duration = Duration::from_millis(50);

/// What a command does when the [`Supervisor`] asks for it.
pub(crate) trait Supervised {
    /// Closes the listeners, and tells the connections to drain. The workers have been told to stop
    /// accepting.
    fn begin_draining(&mut self);

    /// Enforces the deadlines of all connections.
    fn sweep(&mut self, is_draining: bool);

    /// Carries out SIGHUP while the server drains.
    fn reload_draining(&mut self);

    /// Carries out SIGUSR1.
    fn print_totals(&self);

    /// Returns the number of open connections.
    fn open_connections(&self) -> usize;

    /// Tells all connections to abort.
    fn abort_connections(&self);
}

/// Watches over the workers on behalf of a command.
pub(crate) struct Supervisor {
    pub(crate) signals: Signals,
    pub(crate) worker_count: usize,
    /// Receives one message for each worker that ends.
    pub(crate) worker_exits: mpsc::UnboundedReceiver<WorkerExit>,
    /// Tells the workers to stop accepting connections when set to true.
    pub(crate) stop: watch::Sender<bool>,
    /// Whether standard error was a terminal at the start.
    pub(crate) is_on_terminal: bool,
}

impl Supervisor {
    /// Waits for the next signal. If SIGHUP comes because the terminal has gone, this is the signal
    /// to stop. Dropping the future loses no signal.
    ///
    /// # Errors
    ///
    /// A worker has ended.
    pub(crate) async fn next(&mut self) -> Result<Received, Error> {
        tokio::select! {
            signal = self.signals.next() => Ok(match signal {
                Received::Reload if self.has_lost_terminal() => Received::Stop,
                other => other,
            }),
            _ = self.worker_exits.recv() => Err(Error::WorkerLost),
        }
    }

    /// Stops accepting connections, and waits until all connections have ended, the grace period is
    /// over, or a second signal arrives. Then aborts the remaining connections.
    ///
    /// # Errors
    ///
    /// A worker has panicked.
    pub(crate) async fn shut_down(
        &mut self,
        server: &mut impl Supervised,
        grace: Duration,
        sweep_interval: Duration,
    ) -> Result<(), Error> {
        self.stop.send_replace(true);
        server.begin_draining();
        let mut running = RunningWorkers {
            count: self.worker_count,
            has_lost_one: false,
        };
        let mut sweeps = every(sweep_interval);
        let grace = sleep(grace);
        tokio::pin!(grace);
        while running.count > 0 {
            tokio::select! {
                exit = self.worker_exits.recv() => running.remove_one(exit),
                () = &mut grace => break,
                signal = self.signals.next() => match signal {
                    Received::Stop => break,
                    Received::Reload => server.reload_draining(),
                    Received::Totals => server.print_totals(),
                },
                _ = sweeps.tick() => server.sweep(true),
            }
        }
        if running.count > 0 {
            // Ignore a timeout: a worker that is stuck in a system call ends when the process
            // exits.
            let _ = timeout(ABORT_TIMEOUT, self.abort(server, &mut running)).await;
        }
        match running.has_lost_one {
            true => Err(Error::WorkerLost),
            false => Ok(()),
        }
    }

    async fn abort(&mut self, server: &impl Supervised, running: &mut RunningWorkers) {
        let connections = server.open_connections();
        if connections > 0 {
            say(&format_args!(
                "closing connections that are still open: {connections}"
            ));
        }
        let mut aborts = every(ABORT_INTERVAL);
        while running.count > 0 {
            tokio::select! {
                exit = self.worker_exits.recv() => running.remove_one(exit),
                _ = aborts.tick() => server.abort_connections(),
            }
        }
    }

    /// Whether SIGHUP means that the terminal has gone, and not that somebody wants a reload. A
    /// terminal that has hung up is not a terminal any more.
    fn has_lost_terminal(&self) -> bool {
        self.is_on_terminal && !io::stderr().is_terminal()
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

/// Returns an interval that, if a tick comes late, counts the next period from there.
pub(crate) fn every(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
