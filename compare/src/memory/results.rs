//! The measurements of a run of `compare memory`, and the figures computed from them.

use super::job::SentBytes;
use crate::measure::Usage;
use crate::rounds::{CpuShares, Measure, Rounds};
use crate::table::{Spread, percent, three_digits, two_digits};

/// All measurements of a run.
pub(super) type MemoryResults = Rounds<MemorySample>;

/// One measurement.
#[derive(Debug, Clone, Copy)]
pub(super) struct MemorySample {
    /// The time, CPU time and bytes received during the measurement.
    pub(super) usage: Usage,
    /// The bytes that the sender reports for the whole connection, including the warm-up.
    pub(super) sent: SentBytes,
}

/// A kind of figure that is computed from a [`MemorySample`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MemoryMeasure {
    /// GB (10⁹ bytes) received per second.
    Throughput,
    /// CPU seconds of the sender's process per GB.
    SenderCpu,
    /// Busy seconds of all CPUs of the machine, including the receiver's CPU time, per GB.
    MachineBusy,
    /// The fraction of the bytes sent that the CPU copied on the sender's side.
    CopiedShare,
    /// CPU time of the sender's process, as a fraction of one CPU.
    SenderShare,
    /// CPU time of the receiver, as a fraction of one CPU.
    ReceiverShare,
    /// CPU time of everything else (other programs and kernel threads), as a fraction of one CPU.
    OtherShare,
}

impl MemoryMeasure {
    /// All figures, in the order in which the raw data lists them.
    pub(super) const ALL: [Self; 7] = [
        Self::Throughput,
        Self::SenderCpu,
        Self::MachineBusy,
        Self::CopiedShare,
        Self::SenderShare,
        Self::ReceiverShare,
        Self::OtherShare,
    ];
}

impl Measure for MemoryMeasure {
    type Sample = MemorySample;

    fn name(self) -> &'static str {
        match self {
            Self::Throughput => "GB/s",
            Self::SenderCpu => "sender CPU s/GB",
            Self::MachineBusy => "machine busy s/GB",
            Self::CopiedShare => "copied",
            Self::SenderShare => "sender CPU",
            Self::ReceiverShare => "receiver CPU",
            Self::OtherShare => "other CPU",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::Throughput => "gb_per_second",
            Self::SenderCpu => "sender_cpu_seconds_per_gb",
            Self::MachineBusy => "machine_busy_seconds_per_gb",
            Self::CopiedShare => "copied_share",
            Self::SenderShare => "sender_cpu_share",
            Self::ReceiverShare => "receiver_cpu_share",
            Self::OtherShare => "other_cpu_share",
        }
    }

    fn value(self, sample: &MemorySample) -> f64 {
        let usage = &sample.usage;
        match self {
            Self::Throughput => usage.gb_per_second(),
            Self::SenderCpu => usage.process_cpu_per_gb(),
            Self::MachineBusy => usage.machine_busy_per_gb(),
            Self::CopiedShare => sample.sent.copied as f64 / sample.sent.total as f64,
            Self::SenderShare => usage.process_share(),
            Self::ReceiverShare => usage.own_share(),
            Self::OtherShare => usage.other_share(),
        }
    }

    fn cell(self, spread: Spread) -> String {
        match self {
            Self::Throughput => spread.text(two_digits),
            Self::SenderCpu | Self::MachineBusy => spread.text(three_digits),
            Self::CopiedShare | Self::SenderShare | Self::ReceiverShare | Self::OtherShare => {
                percent(spread.median)
            }
        }
    }
}

/// Returns a remark about what distorts a row of the report, or an empty string. The remark is
/// based on the medians of the CPU shares over the rounds.
pub(super) fn remark(results: &MemoryResults, size: u64, contender: &str) -> String {
    let median = |measure| results.median(measure, size, contender);
    let shares = CpuShares {
        contender: median(MemoryMeasure::SenderShare),
        other_side: median(MemoryMeasure::ReceiverShare),
        elsewhere: median(MemoryMeasure::OtherShare),
    };
    shares.remark("the receiver")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_derived_from_a_sample() {
        let sample = MemorySample {
            usage: Usage {
                seconds: 2.0,
                received_bytes: 8_000_000_000,
                process_cpu_seconds: 1.6,
                machine_busy_seconds: 3.2,
                own_cpu_seconds: 1.2,
            },
            sent: SentBytes {
                total: 10_000_000_000,
                copied: 1_000_000_000,
            },
        };
        for (measure, value) in [
            (MemoryMeasure::Throughput, 4.0),
            (MemoryMeasure::SenderCpu, 0.2),
            (MemoryMeasure::MachineBusy, 0.4),
            (MemoryMeasure::CopiedShare, 0.1),
            (MemoryMeasure::SenderShare, 0.8),
            (MemoryMeasure::ReceiverShare, 0.6),
            (MemoryMeasure::OtherShare, 0.2),
        ] {
            let got = measure.value(&sample);
            assert!((got - value).abs() < 1e-9, "{measure:?}: {got}");
        }
    }
}
