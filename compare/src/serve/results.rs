//! What a run has measured, and what follows from it.

use super::idle::Footprint;
use crate::load::Sample;
use crate::rounds::{Rounds, Shares};
use crate::table::Spread;

/// All measurements of a run.
#[derive(Default)]
pub(crate) struct Results {
    /// Under load.
    pub(crate) loads: Rounds<Sample>,
    /// Of idle connections.
    pub(crate) idles: Vec<Idle>,
}

/// One measurement of idle connections.
pub(crate) struct Idle {
    pub(crate) round: usize,
    pub(crate) contender: &'static str,
    pub(crate) footprint: Footprint,
}

/// A figure that follows from a [`Sample`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measure {
    /// Requests a second.
    Requests,
    /// CPU seconds of the server's process per GB (10⁹ bytes) of body.
    ServerCpu,
    /// Busy CPU seconds of the whole machine per GB, the load generator's among them.
    MachineBusy,
    /// Requests per CPU second of the server's process.
    RequestsPerCpuSecond,
    /// Share of a CPU that the server's process used.
    ServerShare,
    /// Share of a CPU that the load generator used.
    LoadShare,
    /// Share of a CPU that went to anything else: other programs, and kernel threads.
    OtherShare,
}

impl Measure {
    /// In the order of the raw data.
    pub(crate) const ALL: [Self; 7] = [
        Self::Requests,
        Self::ServerCpu,
        Self::MachineBusy,
        Self::RequestsPerCpuSecond,
        Self::ServerShare,
        Self::LoadShare,
        Self::OtherShare,
    ];

    /// As a column's head.
    pub(crate) fn name(self) -> &'static str {
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

    /// As a key of the raw data, with its unit.
    pub(crate) fn key(self) -> &'static str {
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

    /// Its value; not finite where nothing moved or no clock tick fell on the server.
    pub(crate) fn of(self, sample: &Sample) -> f64 {
        let gigabytes = sample.body_bytes / 1e9;
        let other =
            sample.machine_busy_seconds - sample.server_cpu_seconds - sample.load_cpu_seconds;
        match self {
            Self::Requests => sample.requests / sample.seconds,
            Self::ServerCpu => sample.server_cpu_seconds / gigabytes,
            Self::MachineBusy => sample.machine_busy_seconds / gigabytes,
            Self::RequestsPerCpuSecond => sample.requests / sample.server_cpu_seconds,
            Self::ServerShare => sample.server_cpu_seconds / sample.seconds,
            Self::LoadShare => sample.load_cpu_seconds / sample.seconds,
            Self::OtherShare => other / sample.seconds,
        }
    }
}

impl Results {
    /// The spread of a measure over the rounds.
    pub(crate) fn spread(&self, measure: Measure, size: u64, contender: &str) -> Option<Spread> {
        self.loads
            .spread(size, contender, |sample| measure.of(sample))
    }

    /// The spread of the per-round ratios of two contenders; rounds that only one finished do not
    /// count.
    pub(crate) fn ratio(
        &self,
        measure: Measure,
        size: u64,
        above: &str,
        below: &str,
    ) -> Option<Spread> {
        self.loads
            .ratio(size, above, below, |sample| measure.of(sample))
    }

    /// KiB of resident memory per idle connection.
    pub(crate) fn idle_kib(&self, contender: &str) -> Option<Spread> {
        let of_contender = self.idles.iter().filter(|idle| idle.contender == contender);
        Spread::of(of_contender.map(|idle| idle.footprint.bytes_each() / 1024.0))
    }

    /// What makes a row less than it seems, by the medians of its shares.
    pub(crate) fn remark(&self, size: u64, contender: &str) -> String {
        let median = |measure| {
            self.spread(measure, size, contender)
                .map_or(0.0, |spread| spread.median)
        };
        let shares = Shares {
            contender: median(Measure::ServerShare),
            other_side: median(Measure::LoadShare),
            elsewhere: median(Measure::OtherShare),
        };
        shares.remark("the load generator")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rounds::Row;

    fn load(round: usize, contender: &'static str, requests: f64, server: f64) -> Row<Sample> {
        Row {
            round,
            size: 1_000_000,
            contender,
            sample: Sample {
                seconds: 2.0,
                requests,
                body_bytes: requests * 1e6,
                server_cpu_seconds: server,
                machine_busy_seconds: 4.0,
                load_cpu_seconds: 1.92,
            },
        }
    }

    #[test]
    fn measures_follow_from_a_sample() {
        let sample = load(1, "a", 4000.0, 1.6).sample;
        let close = |measure: Measure, value: f64| {
            let got = measure.of(&sample);
            assert!((got - value).abs() < 1e-9, "{measure:?}: {got}");
        };
        close(Measure::Requests, 2000.0);
        close(Measure::ServerCpu, 0.4);
        close(Measure::MachineBusy, 1.0);
        close(Measure::RequestsPerCpuSecond, 2500.0);
        close(Measure::ServerShare, 0.8);
        close(Measure::LoadShare, 0.96);
        close(Measure::OtherShare, 0.24);
    }

    #[test]
    fn a_busy_load_generator_is_remarked() {
        let remark = |server| {
            let mut results = Results::default();
            results.loads.push(load(1, "a", 1000.0, server));
            results.remark(1_000_000, "a")
        };
        assert!(remark(1.7).contains("the load generator was the limit"));
        assert_eq!(remark(1.95), "");
    }

    #[test]
    fn a_server_without_a_clock_tick_has_no_figure() {
        let mut results = Results::default();
        results.loads.push(load(1, "a", 1000.0, 0.0));
        assert!(
            results
                .spread(Measure::RequestsPerCpuSecond, 1_000_000, "a")
                .is_none()
        );
    }
}
