//! The measurements of a run of `compare copy`, and the figures computed from them.

use crate::measure::Usage;
use crate::rounds::{CpuShares, Measure, Rounds};
use crate::table::{Spread, percent, three_digits, three_significant, two_digits};

/// All measurements of a run.
pub(super) type CopyResults = Rounds<Usage>;

/// A kind of figure that is computed from the measurement of one transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CopyMeasure {
    /// CPU seconds of the sender's process for the transfer.
    TransferCpu,
    /// CPU seconds of the sender's process per GB (10⁹ bytes).
    SenderCpu,
    /// Busy seconds of all CPUs of the machine, including the receiver's CPU time, per GB.
    MachineBusy,
    /// GB received per second.
    Throughput,
    /// CPU time of the sender's process, as a fraction of one CPU.
    SenderShare,
    /// CPU time of the receiver, as a fraction of one CPU.
    ReceiverShare,
    /// CPU time of everything else (other programs and kernel threads), as a fraction of one CPU.
    OtherShare,
}

impl CopyMeasure {
    /// All figures, in the order in which the raw data lists them.
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

/// The transfers of a contender at one size must take at least this long in total for [`remark`] to
/// judge how much CPU time was used by other programs.
const MIN_JUDGED_SECONDS: f64 = 0.5;

/// Returns a remark about what distorts a row of the report, or an empty string.
///
/// The kernel counts the machine's busy time in clock ticks, and a transfer takes only a few ticks,
/// so the figure of a single round has a large rounding error. These errors mostly cancel out over
/// the rounds. So the CPU time of other programs is judged by its sum over all rounds, not by its
/// median. If the transfers take less than [`MIN_JUDGED_SECONDS`] in total, even the sum is too
/// coarse, and is ignored.
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
    fn the_cpu_time_of_other_programs_is_judged_over_all_rounds() {
        let remark = |busy: &[f64]| {
            let mut results = CopyResults::default();
            for (round, busy) in busy.iter().enumerate() {
                results.push(Measurement {
                    round,
                    case: 7,
                    contender: "a",
                    sample: usage(*busy),
                });
            }
            remark(&results, 7, "a")
        };
        // The sender and the receiver used 0.12 s in each round. The machine's busy time is 0.02 s
        // (two ticks) more in three rounds, and 0.06 s less in the other two together, so the sum
        // of the differences is 0.
        assert_eq!(remark(&[0.14, 0.14, 0.14, 0.08, 0.10]), "");
        assert!(remark(&[0.14; 5]).contains("20 % of a CPU"));
        // Four rounds take 0.4 s, which is too short to judge.
        assert_eq!(remark(&[0.14; 4]), "");
    }
}
