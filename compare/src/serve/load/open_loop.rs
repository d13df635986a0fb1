//! The load that shows how long clients wait for a response: requests are sent at a fixed mean
//! rate, however quickly the server responds.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::generator::Generator;
use super::{LoadSettings, Served};
use crate::error::Error;
use crate::serve::popularity::Random;

/// The largest latency that is told apart from larger ones, in nanoseconds. No measurement is this
/// long.
const MAX_LATENCY_NANOS: u64 = 3600 * 1_000_000_000;

/// The number of significant decimal digits of a latency.
const LATENCY_DIGITS: u8 = 3;

/// The result of one measurement.
///
/// A latency is the time from the moment when a request was due to the end of its response. If the
/// server is slow, a request has to wait until a connection is idle. This time counts too, because
/// a client would have to wait. (A closed loop sends fewer requests to a slow server, and so hides
/// how long the server makes clients wait. This is called coordinated omission.)
#[derive(Debug, Clone, Copy)]
pub(in crate::serve) struct LatencySample {
    /// Mean number of requests that were due per second.
    pub(in crate::serve) rate: f64,
    /// The number of requests that were due during the measurement.
    pub(in crate::serve) due: u64,
    /// The number of these requests whose response was complete at the end of the measurement. For
    /// each of the others, the time until the end counts as its latency.
    pub(in crate::serve) completed: u64,
    /// Latencies in seconds, at [`QUANTILES`].
    pub(in crate::serve) latencies: [f64; 4],
}

/// The fractions of requests that have at most the latencies of a [`LatencySample`].
const QUANTILES: [f64; 4] = [0.5, 0.9, 0.99, 0.999];

/// Sends requests to `served` at a mean rate of `rate` per second, and measures the latencies.
///
/// # Errors
///
/// See [`super::closed_loop::run`].
pub(in crate::serve) fn run(
    served: &Served<'_>,
    settings: LoadSettings,
    rate: f64,
) -> Result<LatencySample, Error> {
    let mut generator = Generator::connect(served, settings)?;
    let connections = generator.connections();
    let start = Instant::now();
    let mut schedule = Schedule::new(rate, start);
    let mut recorder = Recorder::new(start + settings.warm_up, settings.window)?;
    let mut idle: VecDeque<usize> = (0..connections).collect();
    let mut due = vec![None; connections];
    let mut ready = Vec::with_capacity(connections);
    loop {
        let now = generator.poll(&mut ready)?;
        if now >= recorder.end {
            break;
        }
        for index in ready.drain(..) {
            if generator.receive(index)? {
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
            generator.send(index)?;
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
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::test_server;
    use super::*;
    use crate::serve::case::Receiver;
    use crate::serve::site::FileSet;

    /// Runs an open loop against a server that takes `pause` for each response.
    fn latencies(pause: Duration, rate: f64) -> LatencySample {
        let set = FileSet::new(100, 1);
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n";
        let response = [&head[..], &set.bytes(0)].concat();
        let (address, server) = test_server::start(usize::MAX, move |_| {
            std::thread::sleep(pause);
            response.clone()
        });
        let served = test_server::served(address, &set);
        let settings = LoadSettings {
            warm_up: Duration::from_millis(20),
            window: Duration::from_millis(400),
            ..test_server::settings(Receiver::Copy)
        };
        let sample = run(&served, settings, rate).unwrap();
        server.join().unwrap();
        sample
    }

    #[test]
    fn a_server_that_keeps_up_has_the_latency_of_a_response() {
        let sample = latencies(Duration::from_millis(1), 50.0);
        assert!((5..50).contains(&sample.due), "{sample:?}");
        assert!(sample.due - sample.completed <= 2, "{sample:?}");
        assert!(sample.latencies[0] > 0.001, "{sample:?}");
        assert!(sample.latencies.is_sorted(), "{sample:?}");
    }

    /// The server could respond to at most 100 requests per second, and 1000 are due. Each response
    /// takes 10 ms, but the requests wait much longer until they are sent.
    #[test]
    fn waiting_for_a_slow_server_counts() {
        let sample = latencies(Duration::from_millis(10), 1000.0);
        assert!((200..600).contains(&sample.due), "{sample:?}");
        assert!(sample.completed < 50, "{sample:?}");
        assert!(sample.latencies[0] > 0.1, "{sample:?}");
    }

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
