//! The control thread: signals, deadlines, and the orderly end.

mod deadlines;
mod signals;
mod totals;

use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep, timeout};

use crate::error::Error;
use crate::output::say;

use super::access_log::AccessLog;
use super::connection::Order;
use super::listening::Bound;
use super::worker::{Ended, ServingThread};

pub(crate) use deadlines::Deadlines;
pub(crate) use signals::Signals;
pub(crate) use totals::Report;

/// How long the threads have to drop what was cut, before the process ends without them.
const CUT_PATIENCE: Duration = Duration::from_secs(1);
/// How often the order to cut is repeated meanwhile, for connections accepted at the last moment.
const CUT_TICK: Duration = Duration::from_millis(50);

/// What the control thread watches over.
pub(crate) struct Control<'a> {
    pub(crate) signals: Signals,
    pub(crate) threads: &'a [ServingThread],
    /// Closed, and their files removed, when accepting stops.
    pub(crate) listeners: Vec<Bound>,
    /// One message for each thread that ends.
    pub(crate) ended: mpsc::UnboundedReceiver<Ended>,
    /// Set to true, it makes the threads stop accepting.
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) deadlines: Deadlines,
    pub(crate) log: Option<&'a AccessLog>,
}

impl Control<'_> {
    /// Keeps deadlines until a signal says to end, then ends in order.
    pub(crate) async fn run(mut self) -> Result<(), Error> {
        self.serve().await?;
        self.finish().await
    }

    async fn serve(&mut self) -> Result<(), Error> {
        let mut tick = every(self.deadlines.tick());
        loop {
            tokio::select! {
                _ = self.signals.terminate.recv() => return Ok(()),
                _ = self.signals.interrupt.recv() => return Ok(()),
                _ = self.signals.totals.recv() => self.print_totals(),
                _ = self.ended.recv() => return Err(Error::ThreadLost),
                _ = tick.tick() => self.sweep(false),
            }
        }
    }

    /// Stops accepting and waits for what is under way: for the grace period, or until a second
    /// signal; then cuts the rest.
    async fn finish(&mut self) -> Result<(), Error> {
        self.stop.send_replace(true);
        self.listeners.clear();
        for thread in self.threads {
            thread.shared.table.finish_all();
        }
        let mut running = Running {
            count: self.threads.len(),
            is_one_lost: false,
        };
        let mut tick = every(self.deadlines.tick());
        let grace = sleep(self.deadlines.grace);
        tokio::pin!(grace);
        while running.count > 0 {
            tokio::select! {
                ended = self.ended.recv() => running.note(ended),
                () = &mut grace => break,
                _ = self.signals.terminate.recv() => break,
                _ = self.signals.interrupt.recv() => break,
                _ = self.signals.totals.recv() => self.print_totals(),
                _ = tick.tick() => self.sweep(true),
            }
        }
        if running.count > 0 {
            // A thread that a call to the kernel holds is left behind: it ends with the process.
            let _ = timeout(CUT_PATIENCE, self.cut(&mut running)).await;
        }
        match running.is_one_lost {
            true => Err(Error::ThreadLost),
            false => Ok(()),
        }
    }

    async fn cut(&mut self, running: &mut Running) {
        let mut connections = 0;
        for thread in self.threads {
            thread.shared.table.for_each(|_| connections += 1);
        }
        if connections > 0 {
            say(&format_args!(
                "cutting the connections that are still open: {connections}"
            ));
        }
        let mut tick = every(CUT_TICK);
        while running.count > 0 {
            tokio::select! {
                ended = self.ended.recv() => running.note(ended),
                _ = tick.tick() => for thread in self.threads {
                    thread.shared.table.for_each(|seat| seat.give(Order::Cut));
                },
            }
        }
    }

    fn sweep(&self, is_finishing: bool) {
        let now = Instant::now();
        for thread in self.threads {
            self.deadlines
                .sweep(&thread.shared.table, now, is_finishing);
        }
    }

    fn print_totals(&self) {
        say(&Report::of(self.threads, self.log));
    }
}

/// The threads that have not ended yet.
struct Running {
    count: usize,
    is_one_lost: bool,
}

impl Running {
    fn note(&mut self, ended: Option<Ended>) {
        self.count = self.count.saturating_sub(1);
        self.is_one_lost |= ended != Some(Ended::InOrder);
    }
}

fn every(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
