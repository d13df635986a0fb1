//! The measurements of a run of `compare receive`, and the figures computed from them.

use super::job::ReceiverReport;
use super::scenario::Scenario;
use super::sender::Sent;
use crate::measure::Usage;
use crate::rounds::{CpuShares, Measure, Rounds};
use crate::table::{Spread, percent, percent_with_tenths, three_digits, two_digits};

/// All measurements of a run.
pub(super) type ReceiveResults = Rounds<ReceiveSample, Scenario>;

/// One measurement.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReceiveSample {
    /// The time, CPU time and bytes received during the measurement.
    pub(super) usage: Usage,
    /// How many times bytes were received during the measurement.
    pub(super) reads: u64,
    /// The bytes received from the beginning to the end of the stream.
    pub(super) total_bytes: u64,
    /// How many of these were mapped.
    pub(super) mapped_bytes: u64,
}

impl ReceiveSample {
    /// Combines the reports of both sides. The sender's share of its CPU is that of the whole
    /// stream, because only the receiver knows when the measurement begins and ends.
    pub(super) fn new(report: &ReceiverReport, sent: &Sent) -> Self {
        let window = &report.window;
        Self {
            usage: Usage {
                seconds: window.seconds,
                received_bytes: window.bytes,
                process_cpu_seconds: window.cpu_seconds,
                machine_busy_seconds: window.machine_busy_seconds,
                own_cpu_seconds: sent.cpu_share * window.seconds,
            },
            reads: window.reads,
            total_bytes: report.total_bytes,
            mapped_bytes: report.mapped_bytes,
        }
    }
}

/// A kind of figure that is computed from a [`ReceiveSample`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReceiveMeasure {
    /// GB (10⁹ bytes) received per second.
    Throughput,
    /// CPU seconds of the receiver's process per GB.
    ReceiverCpu,
    /// Busy seconds of all CPUs of the machine, including the sender's CPU time, per GB.
    MachineBusy,
    /// The fraction of the bytes received that were mapped.
    MappedShare,
    /// The mean number of KiB that were received at a time.
    ReadKib,
    /// CPU time of the receiver's process, as a fraction of one CPU.
    ReceiverShare,
    /// CPU time of the sender, as a fraction of one CPU.
    SenderShare,
    /// CPU time of everything else (other programs and kernel threads), as a fraction of one CPU.
    OtherShare,
}

impl ReceiveMeasure {
    /// All figures, in the order in which the raw data lists them.
    pub(super) const ALL: [Self; 8] = [
        Self::Throughput,
        Self::ReceiverCpu,
        Self::MachineBusy,
        Self::MappedShare,
        Self::ReadKib,
        Self::ReceiverShare,
        Self::SenderShare,
        Self::OtherShare,
    ];
}

impl Measure for ReceiveMeasure {
    type Sample = ReceiveSample;

    fn name(self) -> &'static str {
        match self {
            Self::Throughput => "GB/s",
            Self::ReceiverCpu => "receiver CPU s/GB",
            Self::MachineBusy => "machine busy s/GB",
            Self::MappedShare => "mapped",
            Self::ReadKib => "KiB per read",
            Self::ReceiverShare => "receiver CPU",
            Self::SenderShare => "sender CPU",
            Self::OtherShare => "other CPU",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::Throughput => "gb_per_second",
            Self::ReceiverCpu => "receiver_cpu_seconds_per_gb",
            Self::MachineBusy => "machine_busy_seconds_per_gb",
            Self::MappedShare => "mapped_share",
            Self::ReadKib => "kib_per_read",
            Self::ReceiverShare => "receiver_cpu_share",
            Self::SenderShare => "sender_cpu_share",
            Self::OtherShare => "other_cpu_share",
        }
    }

    fn value(self, sample: &ReceiveSample) -> f64 {
        let usage = &sample.usage;
        match self {
            Self::Throughput => usage.gb_per_second(),
            Self::ReceiverCpu => usage.process_cpu_per_gb(),
            Self::MachineBusy => usage.machine_busy_per_gb(),
            Self::MappedShare => sample.mapped_bytes as f64 / sample.total_bytes as f64,
            Self::ReadKib => usage.received_bytes as f64 / 1024.0 / sample.reads as f64,
            Self::ReceiverShare => usage.process_share(),
            Self::SenderShare => usage.own_share(),
            Self::OtherShare => usage.other_share(),
        }
    }

    fn cell(self, spread: Spread) -> String {
        match self {
            Self::Throughput => spread.text(two_digits),
            Self::ReceiverCpu | Self::MachineBusy => spread.text(three_digits),
            Self::MappedShare => percent_with_tenths(spread.median),
            Self::ReadKib => format!("{:.0}", spread.median),
            Self::ReceiverShare | Self::SenderShare | Self::OtherShare => percent(spread.median),
        }
    }
}

/// Returns a remark about what distorts a row of the report, or an empty string. The remark is
/// based on the medians of the CPU shares over the rounds.
pub(super) fn remark(results: &ReceiveResults, scenario: Scenario, contender: &str) -> String {
    let median = |measure| results.median(measure, scenario, contender);
    let shares = CpuShares {
        contender: median(ReceiveMeasure::ReceiverShare),
        // A sender that is the limit has no effect on the CPU time per GB.
        other_side: 0.0,
        elsewhere: median(ReceiveMeasure::OtherShare),
    };
    shares.remark("the sender")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::receive::meter::Window;

    #[test]
    fn figures_are_derived_from_the_reports_of_both_sides() {
        let report = ReceiverReport {
            total_bytes: 10_000_000_000,
            mapped_bytes: 9_000_000_000,
            window: Window {
                bytes: 8_192_000_000,
                reads: 32_000,
                seconds: 2.0,
                cpu_seconds: 1.6384,
                machine_busy_seconds: 3.2768,
            },
            congestion: "cubic".into(),
        };
        let sent = Sent {
            bytes: 10_000_000_000,
            cpu_share: 0.6,
        };
        let sample = ReceiveSample::new(&report, &sent);
        for (measure, value) in [
            (ReceiveMeasure::Throughput, 4.096),
            (ReceiveMeasure::ReceiverCpu, 0.2),
            (ReceiveMeasure::MachineBusy, 0.4),
            (ReceiveMeasure::MappedShare, 0.9),
            (ReceiveMeasure::ReadKib, 250.0),
            (ReceiveMeasure::ReceiverShare, 0.8192),
            (ReceiveMeasure::SenderShare, 0.6),
            (ReceiveMeasure::OtherShare, 0.2192),
        ] {
            let got = measure.value(&sample);
            assert!((got - value).abs() < 1e-9, "{measure:?}: {got}");
        }
    }
}
