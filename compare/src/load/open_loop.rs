//! The load that shows how long clients wait: requests or messages are sent at a fixed mean rate,
//! however quickly the contender responds.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::LoadTimes;
use super::closed_loop::Exchanges;
use super::latency::{LatencySample, QUANTILES};
use crate::error::Error;
use crate::random::Random;

/// The largest latency that is told apart from larger ones, in nanoseconds. No measurement is this
/// long.
const MAX_LATENCY_NANOS: u64 = 3600 * 1_000_000_000;

/// The number of significant decimal digits of a latency.
const LATENCY_DIGITS: u8 = 3;

/// Sends on connections that are all idle, at a mean rate of `rate` per second, and measures the
/// latencies.
pub(crate) fn run(
    exchanges: &mut impl Exchanges,
    times: LoadTimes,
    rate: f64,
) -> Result<LatencySample, Error> {
    let connections = exchanges.connections();
    let start = Instant::now();
    let mut schedule = Schedule::new(rate, start);
    let mut recorder = Recorder::new(start + times.warm_up, times.window)?;
    let mut idle: VecDeque<usize> = (0..connections).collect();
    let mut due = vec![None; connections];
    let mut ready = Vec::with_capacity(connections);
    loop {
        let now = exchanges.poll(&mut ready)?;
        if now >= recorder.end {
            break;
        }
        for index in ready.drain(..) {
            if exchanges.receive(index)? {
                if let Some(due) = due[index].take() {
                    recorder.complete(due, Instant::now());
                }
                idle.push_back(index);
            }
        }
        while schedule.next <= now
            && let Some(index) = idle.pop_front()
        {
            due[index] = Some(schedule.advance());
            exchanges.send(index)?;
        }
    }
    due.into_iter()
        .flatten()
        .for_each(|due| recorder.abandon(due));
    while schedule.next < recorder.end {
        recorder.abandon(schedule.advance());
    }
    Ok(recorder.sample(rate))
}

/// The times at which requests are due. The gaps between them vary at random, because clients do
/// not wait for each other (a Poisson process), but they are the same for all contenders.
struct Schedule {
    next: Instant,
    mean_gap_seconds: f64,
    random: Random,
}

impl Schedule {
    fn new(rate: f64, start: Instant) -> Self {
        Self {
            next: start,
            mean_gap_seconds: 1.0 / rate,
            random: Random::new(0),
        }
    }

    /// Returns the time at which the next request is due, and goes on to the one after it.
    fn advance(&mut self) -> Instant {
        let due = self.next;
        let gap_seconds = -self.random.fraction().ln() * self.mean_gap_seconds;
        self.next += Duration::from_secs_f64(gap_seconds);
        due
    }
}

/// Collects the latencies of the requests that are due during the measurement.
struct Recorder {
    start: Instant,
    end: Instant,
    histogram: Histogram<u64>,
    completed: u64,
}

impl Recorder {
    fn new(start: Instant, window: Duration) -> Result<Self, Error> {
        let histogram = Histogram::new_with_bounds(1, MAX_LATENCY_NANOS, LATENCY_DIGITS);
        Ok(Self {
            start,
            end: start + window,
            histogram: histogram
                .map_err(|error| Error::Unavailable(format!("no histogram: {error}")))?,
            completed: 0,
        })
    }

    /// Adds a request whose response was complete at the time `at`.
    fn complete(&mut self, due: Instant, at: Instant) {
        if due >= self.start {
            self.completed += 1;
            self.record(at - due);
        }
    }

    /// Adds a request whose response is not complete at the end of the measurement.
    fn abandon(&mut self, due: Instant) {
        if due >= self.start {
            self.record(self.end.saturating_duration_since(due));
        }
    }

    fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.histogram.saturating_record(nanos);
    }

    fn sample(&self, rate: f64) -> LatencySample {
        LatencySample {
            rate,
            due: self.histogram.len(),
            completed: self.completed,
            latencies: QUANTILES
                .map(|quantile| self.histogram.value_at_quantile(quantile) as f64 / 1e9),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_due_at_the_mean_rate_and_at_the_same_times_for_all() {
        let start = Instant::now();
        let dues = || {
            let mut schedule = Schedule::new(1000.0, start);
            (0..10_000)
                .map(|_| schedule.advance() - start)
                .collect::<Vec<_>>()
        };
        let first = dues();
        assert!((first[9999].as_secs_f64() - 10.0).abs() < 0.5);
        assert_eq!(first, dues());
    }
}
