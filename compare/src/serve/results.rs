//! What a run has measured, and what follows from it.

use super::idle::Footprint;
use crate::load::Sample;
use crate::table::Spread;

/// All measurements of a run.
#[derive(Default)]
pub(crate) struct Results {
    /// Under load.
    pub(crate) loads: Vec<Load>,
    /// Of idle connections.
    pub(crate) idles: Vec<Idle>,
}

/// One measurement under load.
pub(crate) struct Load {
    pub(crate) round: usize,
    pub(crate) size: u64,
    pub(crate) contender: &'static str,
    pub(crate) sample: Sample,
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

/// The load generator is the limit if it is busier than this…
const LOAD_BUSY: f64 = 0.95;

/// …while the server is less busy than this.
const SERVER_IDLE: f64 = 0.90;

/// More than this much of a CPU elsewhere, and a measurement was disturbed.
const DISTURBED: f64 = 0.10;

impl Results {
    fn samples(&self, size: u64, contender: &str) -> impl Iterator<Item = (usize, &Sample)> {
        self.loads
            .iter()
            .filter(move |load| load.size == size && load.contender == contender)
            .map(|load| (load.round, &load.sample))
    }

    /// The spread of a measure over the rounds.
    pub(crate) fn spread(&self, measure: Measure, size: u64, contender: &str) -> Option<Spread> {
        let values = self.samples(size, contender);
        Spread::of(
            values
                .map(|(_, sample)| measure.of(sample))
                .filter(|value| value.is_finite()),
        )
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
        let pairs = self.samples(size, above).filter_map(|(round, sample)| {
            let other = self
                .samples(size, below)
                .find(|&(other_round, _)| other_round == round)?
                .1;
            let pair = (measure.of(sample), measure.of(other));
            (pair.0.is_finite() && pair.1.is_finite()).then_some(pair)
        });
        Spread::of_ratios(pairs)
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
        let mut remarks = Vec::new();
        if median(Measure::LoadShare) >= LOAD_BUSY && median(Measure::ServerShare) < SERVER_IDLE {
            remarks.push("the load generator was the limit: ratios are compressed".to_owned());
        }
        let other = median(Measure::OtherShare);
        if other > DISTURBED {
            remarks.push(format!("{:.0} % of a CPU went elsewhere", other * 100.0));
        }
        remarks.join("; ")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn load(round: usize, contender: &'static str, requests: f64, server: f64) -> Load {
        Load {
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
    fn only_rounds_that_both_finished_make_ratios() {
        let results = Results {
            loads: vec![
                load(1, "a", 3000.0, 1.0),
                load(1, "b", 1000.0, 1.0),
                load(2, "a", 9000.0, 1.0),
                load(3, "b", 1000.0, 1.0),
            ],
            idles: Vec::new(),
        };
        let ratio = results
            .ratio(Measure::Requests, 1_000_000, "a", "b")
            .unwrap();
        assert_eq!((ratio.min, ratio.max), (3.0, 3.0));
        assert!(results.ratio(Measure::Requests, 7, "a", "b").is_none());
    }

    #[test]
    fn a_busy_load_generator_and_a_busy_machine_are_remarked() {
        let results = |server| Results {
            loads: vec![load(1, "a", 1000.0, server)],
            idles: Vec::new(),
        };
        let limited = results(1.7).remark(1_000_000, "a");
        assert!(limited.contains("load generator"), "{limited}");
        assert!(limited.contains("19 % of a CPU"), "{limited}");
        assert_eq!(results(1.95).remark(1_000_000, "a"), "");
    }

    #[test]
    fn a_server_without_a_clock_tick_has_no_figure() {
        let results = Results {
            loads: vec![load(1, "a", 1000.0, 0.0)],
            idles: Vec::new(),
        };
        assert!(
            results
                .spread(Measure::RequestsPerCpuSecond, 1_000_000, "a")
                .is_none()
        );
    }
}
