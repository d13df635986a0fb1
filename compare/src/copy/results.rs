//! What a run measures, and the figures derived from it.

use crate::measure::Usage;
use crate::rounds::{CpuShares, Measure, Rounds};
use crate::table::{Spread, percent, three_digits, three_significant, two_digits};

/// All measurements of a run.
pub(super) type CopyResults = Rounds<Usage>;

/// A figure that is derived from a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CopyMeasure {
    /// CPU seconds of the sender's process for the transfer.
    TransferCpu,
    /// CPU seconds of the sender's process per GB (10⁹ bytes).
    SenderCpu,
    /// Busy CPU seconds of the whole machine per GB, including the receiver's.
    MachineBusy,
    /// GB received per second.
    Throughput,
    /// Share of a CPU that the sender's process used.
    SenderShare,
    /// Share of a CPU that the receiver used.
    ReceiverShare,
    /// Share of a CPU that everything else used: other programs and kernel threads.
    OtherShare,
}

impl CopyMeasure {
    /// All figures, in the order of the raw data.
    pub(super) const ALL: [Self; 7] = [
        Self::TransferCpu,
        Self::SenderCpu,
        Self::MachineBusy,
        Self::Throughput,
        Self::SenderShare,
        Self::ReceiverShare,
        Self::OtherShare,
    ];
}

impl Measure for CopyMeasure {
    type Sample = Usage;

    fn name(self) -> &'static str {
        match self {
            Self::TransferCpu => "sender CPU s",
            Self::SenderCpu => "sender CPU s/GB",
            Self::MachineBusy => "machine busy s/GB",
            Self::Throughput => "GB/s",
            Self::SenderShare => "sender CPU",
            Self::ReceiverShare => "receiver CPU",
            Self::OtherShare => "other CPU",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::TransferCpu => "sender_cpu_seconds",
            Self::SenderCpu => "sender_cpu_seconds_per_gb",
            Self::MachineBusy => "machine_busy_seconds_per_gb",
            Self::Throughput => "gb_per_second",
            Self::SenderShare => "sender_cpu_share",
            Self::ReceiverShare => "receiver_cpu_share",
            Self::OtherShare => "other_cpu_share",
        }
    }

    fn value(self, usage: &Usage) -> f64 {
        match self {
            Self::TransferCpu => usage.process_cpu_seconds,
            Self::SenderCpu => usage.process_cpu_per_gb(),
            Self::MachineBusy => usage.machine_busy_per_gb(),
            Self::Throughput => usage.gb_per_second(),
            Self::SenderShare => usage.process_share(),
            Self::ReceiverShare => usage.own_share(),
            Self::OtherShare => usage.other_share(),
        }
    }

    fn cell(self, spread: Spread) -> String {
        match self {
            Self::TransferCpu => spread.text(three_significant),
            Self::SenderCpu | Self::MachineBusy => spread.text(three_digits),
            Self::Throughput => spread.text(two_digits),
            Self::SenderShare | Self::ReceiverShare | Self::OtherShare => percent(spread.median),
        }
    }
}

/// Minimum duration of all rounds together from which the share that went elsewhere can be judged.
const MIN_JUDGED_SECONDS: f64 = 0.5;

/// What distorts a row of the report.
///
/// The kernel counts the machine's busy time in clock ticks, and a transfer takes only a few of
/// them. So the share that went elsewhere is taken over all rounds together, not as a median, and
/// only if they are long enough.
pub(super) fn remark(results: &CopyResults, size: u64, contender: &str) -> String {
    let (mut other_cpu_seconds, mut seconds) = (0.0, 0.0);
    for (_, usage) in results.samples(size, contender) {
        other_cpu_seconds += usage.other_cpu_seconds();
        seconds += usage.seconds;
    }
    let elsewhere = match seconds >= MIN_JUDGED_SECONDS {
        true => other_cpu_seconds / seconds,
        false => 0.0,
    };
    let shares = CpuShares {
        contender: results.median(CopyMeasure::SenderShare, size, contender),
        other_side: results.median(CopyMeasure::ReceiverShare, size, contender),
        elsewhere,
    };
    shares.remark("the receiver")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rounds::Measurement;

    fn usage(machine_busy_seconds: f64) -> Usage {
        Usage {
            seconds: 0.1,
            received_bytes: 200_000_000,
            process_cpu_seconds: 0.08,
            machine_busy_seconds,
            own_cpu_seconds: 0.04,
        }
    }

    #[test]
    fn figures_are_derived_from_a_transfer() {
        for (measure, value) in [
            (CopyMeasure::TransferCpu, 0.08),
            (CopyMeasure::SenderCpu, 0.4),
            (CopyMeasure::MachineBusy, 0.7),
            (CopyMeasure::Throughput, 2.0),
            (CopyMeasure::SenderShare, 0.8),
            (CopyMeasure::ReceiverShare, 0.4),
            (CopyMeasure::OtherShare, 0.2),
        ] {
            let got = measure.value(&usage(0.14));
            assert!((got - value).abs() < 1e-9, "{measure:?}: {got}");
        }
    }

    #[test]
    fn the_share_that_went_elsewhere_is_taken_over_all_rounds() {
        let remark = |busy: &[f64]| {
            let mut results = CopyResults::default();
            for (round, busy) in busy.iter().enumerate() {
                results.push(Measurement {
                    round,
                    size: 7,
                    contender: "a",
                    sample: usage(*busy),
                });
            }
            remark(&results, 7, "a")
        };
        // Two ticks more than expected in most rounds, and fewer in the others.
        assert_eq!(remark(&[0.14, 0.14, 0.14, 0.08, 0.10]), "");
        assert!(remark(&[0.14; 5]).contains("20 % of a CPU"));
        // Too short to judge.
        assert_eq!(remark(&[0.14; 4]), "");
    }
}
