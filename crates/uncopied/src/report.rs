//! What a transfer did, by mechanism.

use std::fmt;

use rustix::io::Errno;

use crate::policy::Mechanism;

/// How many bytes each mechanism moved, and every fallback.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    bytes: [u64; Mechanism::ALL.len()],
    kernel_copied: u64,
    fallbacks: Vec<Fallback>,
    switched_off: bool,
}

/// One mechanism falling back to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// The mechanism that was tried.
    pub from: Mechanism,
    /// The mechanism that took over.
    pub to: Mechanism,
    /// The errno with which the kernel refused.
    pub errno: Errno,
    /// How many bytes of the transfer the socket had accepted by then. The next mechanism continued
    /// from exactly there.
    pub at: u64,
}

impl Report {
    pub(crate) fn count(&mut self, mechanism: Mechanism, bytes: u64) {
        self.bytes[mechanism as usize] += bytes;
    }

    /// Counts bytes of zero-copy sends that the kernel copied.
    pub(crate) fn count_kernel_copied(&mut self, bytes: u64) {
        self.kernel_copied += bytes;
    }

    /// Records a fallback, unless the same was recorded before: a long-lived socket may fall back
    /// at every send.
    pub(crate) fn record_fallback_once(&mut self, fallback: Fallback) {
        let is_same =
            |known: &Fallback| (known.from, known.errno) == (fallback.from, fallback.errno);
        if !self.fallbacks.iter().any(is_same) {
            self.fallbacks.push(fallback);
        }
    }

    pub(crate) fn set_switched_off(&mut self) {
        self.switched_off = true;
    }

    /// How many bytes the socket accepted by `mechanism`.
    #[must_use]
    pub fn by(&self, mechanism: Mechanism) -> u64 {
        self.bytes[mechanism as usize]
    }

    /// How many bytes the socket accepted.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.iter().sum()
    }

    /// How many bytes of zero-copy sends the kernel has reported to have copied: for a peer on the
    /// same machine, or a network device without scatter-gather. The figure grows as notifications
    /// arrive.
    #[must_use]
    pub fn kernel_copied(&self) -> u64 {
        self.kernel_copied
    }

    /// How many bytes the socket accepted by reference: neither this process nor, as far as it has
    /// reported, the kernel's socket layer copied them. Copies that a network device without
    /// scatter-gather makes necessary are not known.
    #[must_use]
    pub fn zero_copy_bytes(&self) -> u64 {
        let zero_copy = Mechanism::ALL
            .into_iter()
            .filter(|mechanism| mechanism.is_zero_copy());
        let by_reference: u64 = zero_copy.map(|mechanism| self.by(mechanism)).sum();
        by_reference.saturating_sub(self.kernel_copied)
    }

    /// How many bytes the CPU copied at least once.
    #[must_use]
    pub fn copied_bytes(&self) -> u64 {
        self.bytes() - self.zero_copy_bytes()
    }

    /// Every fallback, in order.
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

/// For example `1048576 bytes: splice 65536, copy 983040 (splice fell back to copy at byte 65536:
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
            write!(f, " (the kernel copied {bytes} bytes of zero-copy sends)")?;
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
            write!(f, " ({from} fell back to {to} at byte {at}: {why})")?;
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
        let fallback = Fallback {
            from: Mechanism::Splice,
            to: Mechanism::Copy,
            errno: Errno::INVAL,
            at: 65_536,
        };
        report.record_fallback_once(fallback);
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
             (splice fell back to copy at byte 65536: Invalid argument (os error 22))"
        );
        assert_eq!(Report::default().to_string(), "0 bytes");
    }
}
