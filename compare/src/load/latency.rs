//! How long clients wait, as measured by [`super::open_loop`], and the figures computed from that.

use crate::rounds::Measure;
use crate::table::{Spread, grouped, percent_with_tenths};

/// The result of one measurement.
///
/// A latency is the time from the moment when a request was due to the end of its response. If the
/// server is slow, a request has to wait until a connection is idle. This time counts too, because
/// a client would have to wait. (A closed loop sends fewer requests to a slow server, and so hides
/// how long the server makes clients wait. This is called coordinated omission.)
#[derive(Debug, Clone, Copy)]
pub(crate) struct LatencySample {
    /// Mean number of requests that were due per second.
    pub(crate) rate: f64,
    /// The number of requests that were due during the measurement.
    pub(crate) due: u64,
    /// The number of these requests whose response was complete at the end of the measurement. For
    /// each of the others, the time until the end counts as its latency.
    pub(crate) completed: u64,
    /// Latencies in seconds, at [`QUANTILES`].
    pub(crate) latencies: [f64; 4],
}

/// The fractions of requests that have at most the latencies of a [`LatencySample`].
pub(super) const QUANTILES: [f64; 4] = [0.5, 0.9, 0.99, 0.999];

/// A kind of figure that is computed from a [`LatencySample`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LatencyMeasure {
    /// Mean number of requests that were due per second.
    Rate,
    /// The latency that half of the requests did not exceed, in microseconds.
    P50,
    /// The same for 90 % of the requests.
    P90,
    /// The same for 99 % of the requests.
    P99,
    /// The same for 99.9 % of the requests.
    P999,
    /// The fraction of requests whose response was complete at the end of the measurement.
    Completed,
}

impl LatencyMeasure {
    /// All figures, in the order in which the raw data lists them.
    pub(crate) const ALL: [Self; 6] = [
        Self::Rate,
        Self::P50,
        Self::P90,
        Self::P99,
        Self::P999,
        Self::Completed,
    ];

    /// The latencies.
    pub(crate) const LATENCIES: [Self; 4] = [Self::P50, Self::P90, Self::P99, Self::P999];
}

impl Measure for LatencyMeasure {
    type Sample = LatencySample;

    fn name(self) -> &'static str {
        match self {
            Self::Rate => "requests due/s",
            Self::P50 => "p50 µs",
            Self::P90 => "p90 µs",
            Self::P99 => "p99 µs",
            Self::P999 => "p99.9 µs",
            Self::Completed => "completed",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::Rate => "latency_requests_due_per_second",
            Self::P50 => "latency_p50_microseconds",
            Self::P90 => "latency_p90_microseconds",
            Self::P99 => "latency_p99_microseconds",
            Self::P999 => "latency_p999_microseconds",
            Self::Completed => "latency_completed_share",
        }
    }

    fn value(self, sample: &LatencySample) -> f64 {
        match self {
            Self::Rate => sample.rate,
            Self::P50 => sample.latencies[0] * 1e6,
            Self::P90 => sample.latencies[1] * 1e6,
            Self::P99 => sample.latencies[2] * 1e6,
            Self::P999 => sample.latencies[3] * 1e6,
            Self::Completed => sample.completed as f64 / sample.due as f64,
        }
    }

    fn cell(self, spread: Spread) -> String {
        match self {
            Self::Rate => grouped(spread.median),
            Self::P50 | Self::P90 | Self::P99 | Self::P999 => spread.text(grouped),
            Self::Completed => percent_with_tenths(spread.median),
        }
    }
}
