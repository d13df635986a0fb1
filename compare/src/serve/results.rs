//! The measurements of a run of `compare serve`, and the figures computed from them.

use super::case::ServeCase;
use super::idle::Footprint;
use super::load::closed_loop::LoadSample;
use crate::load::latency::{LatencyMeasure, LatencySample};
use crate::rounds::{CpuShares, Measure, Rounds};
use crate::table::{Spread, grouped, percent, three_digits};

/// All measurements of a run.
#[derive(Default)]
pub(super) struct ServeResults {
    /// The measurements under load.
    pub(super) loads: Rounds<LoadSample, ServeCase>,
    /// The measurements of latencies.
    pub(super) latencies: Rounds<LatencySample, ServeCase>,
    /// The measurements with idle connections.
    pub(super) idles: Vec<IdleMeasurement>,
}

/// One measurement with idle connections.
pub(super) struct IdleMeasurement {
    /// The round, counted from 1.
    pub(super) round: usize,
    /// The contender's name.
    pub(super) contender: &'static str,
    /// The measured memory.
    pub(super) footprint: Footprint,
}

/// A kind of figure that is computed from a [`LoadSample`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LoadMeasure {
    /// Requests per second.
    Requests,
    /// CPU seconds of the server's process per GB (10⁹ bytes) of response bodies.
    ServerCpu,
    /// Busy seconds of all CPUs of the machine per GB. Does not include the time in which the load
    /// generator only looked for something to receive.
    MachineBusy,
    /// Requests per CPU second of the server's process.
    RequestsPerCpuSecond,
    /// CPU time of the server's process, as a fraction of one CPU.
    ServerShare,
    /// CPU time of the load generator, without the time in which it only looked for something to
    /// receive, as a fraction of one CPU.
    LoadShare,
    /// CPU time of everything else (other programs and kernel threads), as a fraction of one CPU.
    OtherShare,
}

impl LoadMeasure {
    /// All figures, in the order in which the raw data lists them.
    pub(super) const ALL: [Self; 7] = [
        Self::Requests,
        Self::ServerCpu,
        Self::MachineBusy,
        Self::RequestsPerCpuSecond,
        Self::ServerShare,
        Self::LoadShare,
        Self::OtherShare,
    ];
}

impl Measure for LoadMeasure {
    type Sample = LoadSample;

    fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests/s",
            Self::ServerCpu => "server CPU s/GB",
            Self::MachineBusy => "machine busy s/GB",
            Self::RequestsPerCpuSecond => "requests per server CPU s",
            Self::ServerShare => "server CPU",
            Self::LoadShare => "load CPU",
            Self::OtherShare => "other CPU",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::Requests => "requests_per_second",
            Self::ServerCpu => "server_cpu_seconds_per_gb",
            Self::MachineBusy => "machine_busy_seconds_per_gb",
            Self::RequestsPerCpuSecond => "requests_per_server_cpu_second",
            Self::ServerShare => "server_cpu_share",
            Self::LoadShare => "load_cpu_share",
            Self::OtherShare => "other_cpu_share",
        }
    }

    fn value(self, sample: &LoadSample) -> f64 {
        let gigabytes = sample.body_bytes / 1e9;
        let other =
            sample.machine_busy_seconds - sample.server_cpu_seconds - sample.load_cpu_seconds;
        match self {
            Self::Requests => sample.requests / sample.seconds,
            Self::ServerCpu => sample.server_cpu_seconds / gigabytes,
            Self::MachineBusy => {
                (sample.machine_busy_seconds - sample.load_idle_seconds) / gigabytes
            }
            Self::RequestsPerCpuSecond => sample.requests / sample.server_cpu_seconds,
            Self::ServerShare => sample.server_cpu_seconds / sample.seconds,
            Self::LoadShare => (1.0 - sample.load_idle_seconds / sample.seconds).max(0.0),
            Self::OtherShare => other / sample.seconds,
        }
    }

    fn cell(self, spread: Spread) -> String {
        match self {
            Self::Requests => spread.text(grouped),
            Self::ServerCpu | Self::MachineBusy => spread.text(three_digits),
            Self::RequestsPerCpuSecond => grouped(spread.median),
            Self::ServerShare | Self::LoadShare | Self::OtherShare => percent(spread.median),
        }
    }
}

/// A contender has not kept up with the rate of a latency measurement if it has completed less than
/// this share of the responses at its end. A few responses are always incomplete then.
const KEPT_UP_SHARE: f64 = 0.98;

impl ServeResults {
    /// Returns a remark about a row of the latencies, or an empty string.
    pub(super) fn latency_remark(&self, case: ServeCase, contender: &str) -> String {
        let completed = self
            .latencies
            .spread(LatencyMeasure::Completed, case, contender);
        match completed {
            Some(share) if share.median < KEPT_UP_SHARE => {
                "could not keep up: the latencies would grow with the length of the measurement"
                    .to_owned()
            }
            Some(_) | None => String::new(),
        }
    }

    /// Returns the spread, over the rounds, of a contender's resident memory in KiB per idle
    /// connection.
    pub(super) fn idle_kib(&self, contender: &str) -> Option<Spread> {
        let of_contender = self.idles.iter().filter(|idle| idle.contender == contender);
        Spread::of(of_contender.map(|idle| idle.footprint.bytes_per_connection() / 1024.0))
    }

    /// Returns a remark about what distorts a row of the report, or an empty string. The remark is
    /// based on the medians of the CPU shares over the rounds.
    pub(super) fn remark(&self, case: ServeCase, contender: &str) -> String {
        let median = |measure| self.loads.median(measure, case, contender);
        let shares = CpuShares {
            contender: median(LoadMeasure::ServerShare),
            other_side: median(LoadMeasure::LoadShare),
            elsewhere: median(LoadMeasure::OtherShare),
        };
        shares.remark("the load generator")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rounds::Measurement;

    fn load(
        round: usize,
        contender: &'static str,
        requests: f64,
        server: f64,
    ) -> Measurement<LoadSample, ServeCase> {
        Measurement {
            round,
            case: ServeCase::one_file(1_000_000),
            contender,
            sample: LoadSample {
                seconds: 2.0,
                requests,
                body_bytes: requests * 1e6,
                server_cpu_seconds: server,
                machine_busy_seconds: 4.08,
                load_cpu_seconds: 2.0,
                load_idle_seconds: 0.08,
            },
        }
    }

    #[test]
    fn figures_are_derived_from_a_sample() {
        let sample = load(1, "a", 4000.0, 1.6).sample;
        for (measure, value) in [
            (LoadMeasure::Requests, 2000.0),
            (LoadMeasure::ServerCpu, 0.4),
            (LoadMeasure::MachineBusy, 1.0),
            (LoadMeasure::RequestsPerCpuSecond, 2500.0),
            (LoadMeasure::ServerShare, 0.8),
            (LoadMeasure::LoadShare, 0.96),
            (LoadMeasure::OtherShare, 0.24),
        ] {
            let got = measure.value(&sample);
            assert!((got - value).abs() < 1e-9, "{measure:?}: {got}");
        }
    }

    #[test]
    fn a_contender_that_falls_behind_gets_a_remark() {
        let remark = |completed| {
            let sample = LatencySample {
                rate: 1000.0,
                due: 1000,
                completed,
                latencies: [0.001, 0.002, 0.003, 0.004],
            };
            assert_eq!(LatencyMeasure::P999.value(&sample), 4000.0);
            let case = ServeCase::one_file(1);
            let mut results = ServeResults::default();
            results.latencies.push(Measurement {
                round: 1,
                case,
                contender: "a",
                sample,
            });
            results.latency_remark(case, "a")
        };
        assert!(remark(700).contains("could not keep up"));
        assert_eq!(remark(998), "");
    }

    #[test]
    fn a_busy_load_generator_gets_a_remark() {
        let remark = |server| {
            let mut results = ServeResults::default();
            results.loads.push(load(1, "a", 1000.0, server));
            results.remark(ServeCase::one_file(1_000_000), "a")
        };
        assert!(remark(1.7).contains("the load generator was the limit"));
        assert_eq!(remark(1.95), "");
    }

    #[test]
    fn a_server_without_a_clock_tick_has_no_figure() {
        let mut results = ServeResults::default();
        results.loads.push(load(1, "a", 1000.0, 0.0));
        let (measure, case) = (
            LoadMeasure::RequestsPerCpuSecond,
            ServeCase::one_file(1_000_000),
        );
        assert!(results.loads.spread(measure, case, "a").is_none());
    }
}
