//! The measurements of a run of `compare get`, and the figures computed from them.

use super::case::GetCase;
use super::download::Sample;
use crate::rounds::{CpuShares, Measure, Rounds};
use crate::table::{Spread, grouped, percent, three_significant};

/// All measurements of a run.
pub(super) type GetResults = Rounds<Sample, GetCase>;

/// A kind of figure that is computed from the measurement of one download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GetMeasure {
    /// CPU seconds of the downloader's process.
    ClientCpu,
    /// Seconds from the start of the downloader's process to its exit.
    Seconds,
    /// GB (10⁹ bytes) fetched per second.
    Throughput,
    /// Files fetched per second.
    FileRate,
    /// CPU time of the downloader's process, as a fraction of one CPU.
    ClientShare,
    /// CPU time of the server's process, as a fraction of one CPU.
    ServerShare,
}

impl GetMeasure {
    /// All figures, in the order in which the tables and the raw data list them.
    pub(super) const ALL: [Self; 6] = [
        Self::ClientCpu,
        Self::Seconds,
        Self::Throughput,
        Self::FileRate,
        Self::ClientShare,
        Self::ServerShare,
    ];
}

impl Measure for GetMeasure {
    type Sample = Sample;

    fn name(self) -> &'static str {
        match self {
            Self::ClientCpu => "client CPU s",
            Self::Seconds => "seconds",
            Self::Throughput => "GB/s",
            Self::FileRate => "files/s",
            Self::ClientShare => "client CPU",
            Self::ServerShare => "server CPU",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::ClientCpu => "client_cpu_seconds",
            Self::Seconds => "seconds",
            Self::Throughput => "gb_per_second",
            Self::FileRate => "files_per_second",
            Self::ClientShare => "client_cpu_share",
            Self::ServerShare => "server_cpu_share",
        }
    }

    fn value(self, sample: &Sample) -> f64 {
        match self {
            Self::ClientCpu => sample.client_cpu_seconds,
            Self::Seconds => sample.seconds,
            Self::Throughput => sample.bytes as f64 / 1e9 / sample.seconds,
            Self::FileRate => f64::from(sample.files) / sample.seconds,
            Self::ClientShare => sample.client_cpu_seconds / sample.seconds,
            Self::ServerShare => sample.server_cpu_seconds / sample.seconds,
        }
    }

    fn cell(self, spread: Spread) -> String {
        match self {
            Self::ClientCpu | Self::Seconds | Self::Throughput => spread.text(three_significant),
            Self::FileRate => spread.text(grouped),
            Self::ClientShare | Self::ServerShare => percent(spread.median),
        }
    }
}

/// The downloads of a contender in one case must take at least this long in total for [`remark`] to
/// judge how much CPU time was used by other programs. The kernel counts it in clock ticks.
const MIN_JUDGED_SECONDS: f64 = 0.5;

/// Returns a remark about what distorts a row of the report, or an empty string. The CPU time of
/// other programs is judged by its sum over all rounds.
pub(super) fn remark(results: &GetResults, case: GetCase, contender: &str) -> String {
    let (mut other_cpu_seconds, mut seconds) = (0.0, 0.0);
    for (_, sample) in results.samples(case, contender) {
        let both_sides = sample.client_cpu_seconds + sample.server_cpu_seconds;
        other_cpu_seconds += sample.machine_busy_seconds - both_sides;
        seconds += sample.seconds;
    }
    let elsewhere = match seconds >= MIN_JUDGED_SECONDS {
        true => other_cpu_seconds / seconds,
        false => 0.0,
    };
    let shares = CpuShares {
        contender: results.median(GetMeasure::ClientShare, case, contender),
        other_side: results.median(GetMeasure::ServerShare, case, contender),
        elsewhere,
    };
    shares.remark("the server")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rounds::Measurement;

    const CASE: GetCase = GetCase::File(1 << 30);

    fn sample(machine_busy_seconds: f64) -> Sample {
        Sample {
            seconds: 0.5,
            client_cpu_seconds: 0.2,
            server_cpu_seconds: 0.1,
            machine_busy_seconds,
            bytes: 1_000_000_000,
            files: 100,
        }
    }

    #[test]
    fn figures_are_derived_from_a_download() {
        for (measure, value) in GetMeasure::ALL
            .into_iter()
            .zip([0.2, 0.5, 2.0, 200.0, 0.4, 0.2])
        {
            let got = measure.value(&sample(0.3));
            assert!((got - value).abs() < 1e-9, "{measure:?}: {got}");
        }
    }

    #[test]
    fn a_busy_machine_gets_a_remark() {
        let remark = |busy| {
            let mut results = GetResults::default();
            results.push(Measurement {
                round: 1,
                case: CASE,
                contender: "a",
                sample: sample(busy),
            });
            remark(&results, CASE, "a")
        };
        assert_eq!(remark(0.3), "");
        assert!(remark(0.4).contains("20 % of a CPU"));
    }
}
