//! What a run has measured, and what follows from it.

use super::sender::Account;
use crate::measure::Usage;
use crate::rounds::{Rounds, Shares};

/// All measurements of a run.
pub(super) type Results = Rounds<Sample>;

/// One measurement.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    /// What went by in the window.
    pub(super) usage: Usage,
    /// What the sender says of the whole time.
    pub(super) account: Account,
}

/// A figure that follows from a [`Sample`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Measure {
    /// GB (10⁹ bytes) a second that came.
    Throughput,
    /// CPU seconds of the sender's process per GB.
    SenderCpu,
    /// Busy CPU seconds of the whole machine per GB, the receiver's among them.
    MachineBusy,
    /// Share of the bytes that the CPU copied on the sender's side, from 0 to 1.
    CopiedShare,
    /// Share of a CPU that the sender's process used.
    SenderShare,
    /// Share of a CPU that the receiver used.
    ReceiverShare,
    /// Share of a CPU that went to anything else: other programs, and kernel threads.
    OtherShare,
}

impl Measure {
    /// In the order of the raw data.
    pub(super) const ALL: [Self; 7] = [
        Self::Throughput,
        Self::SenderCpu,
        Self::MachineBusy,
        Self::CopiedShare,
        Self::SenderShare,
        Self::ReceiverShare,
        Self::OtherShare,
    ];

    /// As a column's head.
    pub(super) fn name(self) -> &'static str {
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

    /// As a key of the raw data, with its unit.
    pub(super) fn key(self) -> &'static str {
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

    /// Its value; not finite where nothing moved.
    pub(super) fn of(self, sample: &Sample) -> f64 {
        let usage = &sample.usage;
        let gigabytes = usage.received_bytes as f64 / 1e9;
        let other = usage.machine_busy_seconds - usage.process_cpu_seconds - usage.own_cpu_seconds;
        match self {
            Self::Throughput => gigabytes / usage.seconds,
            Self::SenderCpu => usage.process_cpu_seconds / gigabytes,
            Self::MachineBusy => usage.machine_busy_seconds / gigabytes,
            Self::CopiedShare => {
                sample.account.sent.copied as f64 / sample.account.sent.bytes as f64
            }
            Self::SenderShare => usage.process_cpu_seconds / usage.seconds,
            Self::ReceiverShare => usage.own_cpu_seconds / usage.seconds,
            Self::OtherShare => other / usage.seconds,
        }
    }
}

/// What makes a row less than it seems, by the medians of its shares.
pub(super) fn remark(results: &Results, size: u64, contender: &str) -> String {
    let median = |measure: Measure| {
        results
            .spread(size, contender, |sample| measure.of(sample))
            .map_or(0.0, |spread| spread.median)
    };
    let shares = Shares {
        contender: median(Measure::SenderShare),
        other_side: median(Measure::ReceiverShare),
        elsewhere: median(Measure::OtherShare),
    };
    shares.remark("the receiver")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::sender::Sent;

    #[test]
    fn measures_follow_from_a_sample() {
        let sample = Sample {
            usage: Usage {
                seconds: 2.0,
                received_bytes: 8_000_000_000,
                process_cpu_seconds: 1.6,
                machine_busy_seconds: 3.2,
                own_cpu_seconds: 1.2,
            },
            account: Account {
                sent: Sent {
                    bytes: 10_000_000_000,
                    copied: 1_000_000_000,
                },
                congestion: "cubic".into(),
            },
        };
        for (measure, value) in [
            (Measure::Throughput, 4.0),
            (Measure::SenderCpu, 0.2),
            (Measure::MachineBusy, 0.4),
            (Measure::CopiedShare, 0.1),
            (Measure::SenderShare, 0.8),
            (Measure::ReceiverShare, 0.6),
            (Measure::OtherShare, 0.2),
        ] {
            let got = measure.of(&sample);
            assert!((got - value).abs() < 1e-9, "{measure:?}: {got}");
        }
    }
}
