//! What the load generators of `serve` and `relay` share: polling without sleeping ([`poller`]),
//! closed and open loops, and the measurement of a contender under load.
//!
//! A load generator has to use less CPU time than any contender. Otherwise it would be the
//! bottleneck, and the run would measure the load generator. So it has one thread, and allocates no
//! memory for a message.

pub(crate) mod closed_loop;
pub(crate) mod latency;
pub(crate) mod open_loop;
pub(crate) mod poller;

use std::time::{Duration, Instant};

use crate::error::Error;
use crate::measure::{Snapshot, Usage};

/// A load that can be kept running.
pub(crate) trait Load {
    /// Keeps the load running until the time `end`.
    fn run_until(&mut self, end: Instant) -> Result<(), Error>;

    /// The number of bytes received so far.
    fn received_bytes(&self) -> u64;

    /// The time so far in which the load generator found nothing to do.
    fn idle(&self) -> Duration;
}

/// The duration of a load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LoadTimes {
    /// Duration of the load before the measurement.
    pub(crate) warm_up: Duration,
    /// Duration of the measurement.
    pub(crate) window: Duration,
}

/// What was used and received under load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LoadUsage {
    /// CPU times and received bytes.
    pub(crate) usage: Usage,
    /// The part of the load generator's CPU time in which it found nothing to do.
    pub(crate) idle_seconds: f64,
}

/// Puts the process `pid` under load and measures it.
pub(crate) fn measure(
    load: &mut impl Load,
    pid: u32,
    times: LoadTimes,
) -> Result<LoadUsage, Error> {
    load.run_until(Instant::now() + times.warm_up)?;
    let before = Snapshot::take(pid, load.received_bytes())?;
    let idle_before = load.idle();
    load.run_until(before.at + times.window)?;
    let after = Snapshot::take(pid, load.received_bytes())?;
    Ok(LoadUsage {
        usage: after.since(&before),
        idle_seconds: (load.idle() - idle_before).as_secs_f64(),
    })
}

impl LoadUsage {
    /// CPU time of the load generator, without the time in which it found nothing to do, as a
    /// fraction of one CPU.
    pub(crate) fn load_share(&self) -> f64 {
        (1.0 - self.idle_seconds / self.usage.seconds).max(0.0)
    }
}
