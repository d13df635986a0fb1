//! What a transfer did, byte by byte.

use std::fmt;

use rustix::io::Errno;

use crate::policy::Mechanism;

/// How many bytes went by which mechanism, and every step down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    bytes: [u64; Mechanism::ALL.len()],
    kernel_copied: u64,
    fallbacks: Vec<Fallback>,
    switched_off: bool,
}

/// One mechanism giving way to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// What was tried.
    pub from: Mechanism,
    /// What took its place.
    pub to: Mechanism,
    /// How the kernel refused.
    pub errno: Errno,
    /// How many bytes of the transfer the socket had taken by then. The next mechanism went on from
    /// exactly there.
    pub at: u64,
}

impl Report {
    pub(crate) fn count(&mut self, mechanism: Mechanism, bytes: u64) {
        self.bytes[mechanism as usize] += bytes;
    }

    /// Counts bytes that the kernel was lent and copied.
    pub(crate) fn count_kernel_copied(&mut self, bytes: u64) {
        self.kernel_copied += bytes;
    }

    /// As [`fall_back`](Self::fall_back), unless the same was noted before: a socket that is sent to for
    /// years may step down at every send.
    pub(crate) fn record_fallback_once(&mut self, step: Fallback) {
        let is_same = |noted: &Fallback| (noted.from, noted.errno) == (step.from, step.errno);
        if !self.fallbacks.iter().any(is_same) {
            self.fallbacks.push(step);
        }
    }

    pub(crate) fn set_switched_off(&mut self) {
        self.switched_off = true;
    }

    /// How many bytes the socket took by `mechanism`.
    #[must_use]
    pub fn by(&self, mechanism: Mechanism) -> u64 {
        self.bytes[mechanism as usize]
    }

    /// How many bytes the socket took.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.iter().sum()
    }

    /// How many bytes the kernel was lent, by a mechanism that tells, and copied after all: for a peer on
    /// the same machine, or a network device without scatter-gather. It is known as the notices come
    /// in.
    #[must_use]
    pub fn kernel_copied(&self) -> u64 {
        self.kernel_copied
    }

    /// How many bytes the socket took by reference: neither this process nor the kernel's socket
    /// layer copied them, as far as it has told. What the network device does without scatter-gather is
    /// not in here.
    #[must_use]
    pub fn zero_copy_bytes(&self) -> u64 {
        let zero_copy = Mechanism::ALL
            .into_iter()
            .filter(|mechanism| mechanism.is_zero_copy());
        let lent: u64 = zero_copy.map(|mechanism| self.by(mechanism)).sum();
        lent.saturating_sub(self.kernel_copied)
    }

    /// How many bytes the CPU copied at least once.
    #[must_use]
    pub fn copied_bytes(&self) -> u64 {
        self.bytes() - self.zero_copy_bytes()
    }

    /// Every step down, in their order.
    #[must_use]
    pub fn fallbacks(&self) -> &[Fallback] {
        &self.fallbacks
    }

    /// Whether the transfer was copied because zero-copy sending is
    /// [switched off](crate::set_zero_copy_send).
    #[must_use]
    pub fn switched_off(&self) -> bool {
        self.switched_off
    }
}

/// For example `1048576 bytes: splice 65536, copy 983040 (splice gave way to copy at byte 65536:
/// Invalid argument)`.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes())?;
        let mut before = ": ";
        for mechanism in Mechanism::ALL {
            if self.by(mechanism) > 0 {
                write!(f, "{before}{mechanism} {}", self.by(mechanism))?;
                before = ", ";
            }
        }
        if self.kernel_copied > 0 {
            let bytes = self.kernel_copied;
            write!(
                f,
                " (the kernel copied {bytes} of the bytes that it was lent)"
            )?;
        }
        if self.switched_off {
            write!(f, " (zero-copy sending is switched off)")?;
        }
        for Fallback {
            from,
            to,
            errno,
            at,
        } in &self.fallbacks
        {
            let why = std::io::Error::from(*errno);
            write!(f, " ({from} gave way to {to} at byte {at}: {why})")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_adds_up_and_reads_well() {
        let mut report = Report::default();
        report.count(Mechanism::Splice, 65_536);
        report.count(Mechanism::Copy, 4);
        let step = Fallback {
            from: Mechanism::Splice,
            to: Mechanism::Copy,
            errno: Errno::INVAL,
            at: 65_536,
        };
        report.record_fallback_once(step);
        assert_eq!(
            (
                report.bytes(),
                report.zero_copy_bytes(),
                report.copied_bytes()
            ),
            (65_540, 65_536, 4)
        );
        assert_eq!(
            report.to_string(),
            "65540 bytes: splice 65536, copy 4 \
             (splice gave way to copy at byte 65536: Invalid argument (os error 22))"
        );
        assert_eq!(Report::default().to_string(), "0 bytes");
    }
}
