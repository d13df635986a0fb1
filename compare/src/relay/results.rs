//! The measurements of a run of `compare relay`, and the figures computed from them.

use super::case::RelayCase;
use crate::load::LoadUsage;
use crate::load::latency::{LatencyMeasure, LatencySample};
use crate::rounds::{CpuShares, Measure, Rounds};
use crate::table::{Spread, grouped, percent, three_digits, three_significant, two_digits};

/// All measurements of a run.
pub(super) type RelayResults = Rounds<RelaySample, RelayCase>;

/// One measurement.
#[derive(Debug, Clone, Copy)]
pub(super) enum RelaySample {
    /// Of a load that is as high as the relay can take.
    Load {
        /// CPU times and received bytes.
        load: LoadUsage,
        /// What was done.
        work: Work,
    },
    /// Of a load with a fixed rate.
    Latency(LatencySample),
}

/// What a relay did under load, and in which unit that is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// It moved bytes.
    Bytes,
    /// It moved messages of this size in bytes, to the server and back.
    RoundTrips(u64),
    /// It opened and closed connections, each with a round trip of one byte.
    Connections,
}

/// A kind of figure that is computed from a [`RelaySample`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RelayMeasure {
    /// GB (10⁹ bytes) that arrived per second.
    Throughput,
    /// CPU seconds of the relay's process per GB.
    CpuPerGb,
    /// Busy seconds of all CPUs of the machine per GB, without the time in which the load generator
    /// found nothing to do.
    MachineBusyPerGb,
    /// Round trips per second.
    RoundTrips,
    /// CPU microseconds of the relay's process per round trip.
    CpuPerRoundTrip,
    /// Connections per second.
    Connections,
    /// CPU microseconds of the relay's process per connection.
    CpuPerConnection,
    /// CPU time of the relay's process, as a fraction of one CPU.
    RelayShare,
    /// CPU time of the load generator, without the time in which it found nothing to do, as a
    /// fraction of one CPU.
    LoadShare,
    /// CPU time of everything else (other programs and kernel threads), as a fraction of one CPU.
    OtherShare,
    /// A figure of a measurement of latency.
    Latency(LatencyMeasure),
}

impl RelayCase {
    /// What a relay does in the case, or `None` if latencies are measured.
    pub(super) fn work(self) -> Option<Work> {
        match self {
            Self::Bulk { .. } => Some(Work::Bytes),
            Self::RoundTrips { bytes, .. } => Some(Work::RoundTrips(bytes)),
            Self::Latency { .. } => None,
            Self::Connections => Some(Work::Connections),
        }
    }

    /// Returns the figures of the case, in the order in which the tables and the raw data list
    /// them.
    pub(super) fn measures(self) -> Vec<RelayMeasure> {
        match self.work() {
            Some(work) => [work.measures(), &RelayMeasure::SHARES].concat(),
            None => LatencyMeasure::ALL.map(RelayMeasure::Latency).to_vec(),
        }
    }
}

impl Work {
    /// Returns the figures of this kind of work, in the order in which the tables list them.
    fn measures(self) -> &'static [RelayMeasure] {
        match self {
            Self::Bytes => &[
                RelayMeasure::Throughput,
                RelayMeasure::CpuPerGb,
                RelayMeasure::MachineBusyPerGb,
            ],
            Self::RoundTrips(_) => &[RelayMeasure::RoundTrips, RelayMeasure::CpuPerRoundTrip],
            Self::Connections => &[RelayMeasure::Connections, RelayMeasure::CpuPerConnection],
        }
    }
}

impl RelayMeasure {
    /// The shares of CPU time.
    const SHARES: [Self; 3] = [Self::RelayShare, Self::LoadShare, Self::OtherShare];

    /// Formats a value.
    fn text(self, value: f64) -> String {
        match self {
            Self::Throughput => two_digits(value),
            Self::CpuPerGb | Self::MachineBusyPerGb => three_digits(value),
            Self::CpuPerRoundTrip | Self::CpuPerConnection => three_significant(value),
            Self::RoundTrips | Self::Connections => grouped(value),
            Self::RelayShare | Self::LoadShare | Self::OtherShare => percent(value),
            Self::Latency(LatencyMeasure::Completed) => percent(value),
            Self::Latency(_) => grouped(value),
        }
    }
}

impl RelaySample {
    /// Formats the sample for the progress that is printed on standard error.
    pub(super) fn describe(&self) -> String {
        let measures = match self {
            Self::Load { work, .. } => [work.measures(), &RelayMeasure::SHARES].concat(),
            Self::Latency(_) => LatencyMeasure::ALL.map(RelayMeasure::Latency).to_vec(),
        };
        let text = |measure: RelayMeasure| {
            let value = measure.value(self);
            format!("{} {}", measure.text(value), measure.name())
        };
        measures
            .into_iter()
            .map(text)
            .collect::<Vec<_>>()
            .join(", ")
    }
}

impl Measure for RelayMeasure {
    type Sample = RelaySample;

    fn name(self) -> &'static str {
        match self {
            Self::Throughput => "GB/s",
            Self::CpuPerGb => "relay CPU s/GB",
            Self::MachineBusyPerGb => "machine busy s/GB",
            Self::RoundTrips => "round trips/s",
            Self::CpuPerRoundTrip => "relay CPU µs per round trip",
            Self::Connections => "connections/s",
            Self::CpuPerConnection => "relay CPU µs per connection",
            Self::RelayShare => "relay CPU",
            Self::LoadShare => "load CPU",
            Self::OtherShare => "other CPU",
            Self::Latency(LatencyMeasure::Rate) => "round trips due/s",
            Self::Latency(measure) => measure.name(),
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::Throughput => "gb_per_second",
            Self::CpuPerGb => "relay_cpu_seconds_per_gb",
            Self::MachineBusyPerGb => "machine_busy_seconds_per_gb",
            Self::RoundTrips => "round_trips_per_second",
            Self::CpuPerRoundTrip => "relay_cpu_microseconds_per_round_trip",
            Self::Connections => "connections_per_second",
            Self::CpuPerConnection => "relay_cpu_microseconds_per_connection",
            Self::RelayShare => "relay_cpu_share",
            Self::LoadShare => "load_cpu_share",
            Self::OtherShare => "other_cpu_share",
            Self::Latency(measure) => measure.key(),
        }
    }

    /// The result is not a number if the figure does not belong to the sample's kind of work.
    fn value(self, sample: &RelaySample) -> f64 {
        let (load, work) = match (self, sample) {
            (Self::Latency(measure), RelaySample::Latency(sample)) => return measure.value(sample),
            (_, RelaySample::Latency(_)) => return f64::NAN,
            (_, RelaySample::Load { load, work }) => (load, *work),
        };
        let usage = &load.usage;
        let gigabytes = usage.received_bytes as f64 / 1e9;
        let count = usage.received_bytes as f64;
        match (self, work) {
            (Self::Throughput, Work::Bytes) => usage.gb_per_second(),
            (Self::CpuPerGb, Work::Bytes) => usage.process_cpu_per_gb(),
            (Self::MachineBusyPerGb, Work::Bytes) => {
                (usage.machine_busy_seconds - load.idle_seconds) / gigabytes
            }
            (Self::RoundTrips, Work::RoundTrips(size)) => count / size as f64 / usage.seconds,
            (Self::CpuPerRoundTrip, Work::RoundTrips(size)) => {
                usage.process_cpu_seconds * 1e6 / (count / size as f64)
            }
            // Each connection has received one byte.
            (Self::Connections, Work::Connections) => count / usage.seconds,
            (Self::CpuPerConnection, Work::Connections) => usage.process_cpu_seconds * 1e6 / count,
            (Self::RelayShare, _) => usage.process_share(),
            (Self::LoadShare, _) => load.load_share(),
            (Self::OtherShare, _) => usage.other_share(),
            _ => f64::NAN,
        }
    }

    fn cell(self, spread: Spread) -> String {
        match self {
            Self::RelayShare | Self::LoadShare | Self::OtherShare => self.text(spread.median),
            Self::Latency(measure) => measure.cell(spread),
            _ => spread.text(|value| self.text(value)),
        }
    }
}

/// A contender has not kept up with the rate of a latency measurement if it has completed less than
/// this share of the round trips at its end.
const KEPT_UP_SHARE: f64 = 0.98;

/// Returns a remark about what distorts a row of the report, or an empty string. The remark is
/// based on medians over the rounds.
pub(super) fn remark(results: &RelayResults, case: RelayCase, contender: &str) -> String {
    let median = |measure| results.median(measure, case, contender);
    if matches!(case, RelayCase::Latency { .. }) {
        let completed = RelayMeasure::Latency(LatencyMeasure::Completed);
        let completed = results.spread(completed, case, contender);
        return match completed {
            Some(share) if share.median < KEPT_UP_SHARE => "could not keep up".to_owned(),
            Some(_) | None => String::new(),
        };
    }
    let shares = CpuShares {
        contender: median(RelayMeasure::RelayShare),
        other_side: median(RelayMeasure::LoadShare),
        elsewhere: median(RelayMeasure::OtherShare),
    };
    shares.remark("the load generator")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Usage;
    use crate::rounds::Measurement;

    fn sample(work: Work) -> RelaySample {
        let usage = Usage {
            seconds: 2.0,
            received_bytes: 4_000_000_000,
            process_cpu_seconds: 1.0,
            machine_busy_seconds: 3.5,
            own_cpu_seconds: 2.0,
        };
        RelaySample::Load {
            load: LoadUsage {
                usage,
                idle_seconds: 1.5,
            },
            work,
        }
    }

    #[test]
    fn figures_belong_to_a_kind_of_work() {
        let bytes = sample(Work::Bytes);
        let messages = sample(Work::RoundTrips(1000));
        let connections = sample(Work::Connections);
        for (measure, sample, value) in [
            (RelayMeasure::Throughput, bytes, 2.0),
            (RelayMeasure::CpuPerGb, bytes, 0.25),
            (RelayMeasure::MachineBusyPerGb, bytes, 0.5),
            (RelayMeasure::RelayShare, bytes, 0.5),
            (RelayMeasure::LoadShare, bytes, 0.25),
            (RelayMeasure::OtherShare, bytes, 0.25),
            (RelayMeasure::RoundTrips, messages, 2e6),
            (RelayMeasure::CpuPerRoundTrip, messages, 0.25),
            (RelayMeasure::Connections, connections, 2e9),
            (RelayMeasure::CpuPerConnection, connections, 0.000_25),
        ] {
            let got = measure.value(&sample);
            assert!((got - value).abs() < 1e-9, "{measure:?}: {got}");
        }
        assert!(RelayMeasure::Throughput.value(&messages).is_nan());
        let latency = RelayMeasure::Latency(LatencyMeasure::P50);
        assert!(latency.value(&bytes).is_nan());
    }

    #[test]
    fn a_relay_that_falls_behind_gets_a_remark() {
        let case = RelayCase::Latency {
            bytes: 1,
            connections: 1,
        };
        let remark = |completed| {
            let mut results = RelayResults::default();
            results.push(Measurement {
                round: 1,
                case,
                contender: "a",
                sample: RelaySample::Latency(LatencySample {
                    rate: 1000.0,
                    due: 1000,
                    completed,
                    latencies: [0.001; 4],
                }),
            });
            super::remark(&results, case, "a")
        };
        assert_eq!(remark(700), "could not keep up");
        assert_eq!(remark(999), "");
    }
}
