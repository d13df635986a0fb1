//! Counts the bytes sent by each mechanism, across many connections.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use uncopied::Mechanism;

/// The number of bytes that a set of connections has sent with each mechanism. Response heads, and
/// bodies that are neither file data nor pages of the arena, are sent with `copy` and counted as
/// copied.
#[derive(Debug, Default)]
pub struct Totals {
    bytes: [AtomicU64; Mechanism::ALL.len()],
    kernel_copied: AtomicU64,
}

impl Totals {
    /// Returns the number of bytes that the sockets have accepted through `mechanism`.
    #[must_use]
    pub fn bytes(&self, mechanism: Mechanism) -> u64 {
        self.bytes[mechanism as usize].load(Ordering::Relaxed)
    }

    /// Returns how many of the bytes sent with a zero-copy mechanism the kernel has copied after
    /// all, according to its own reports; see
    /// [`Report::kernel_copied`](uncopied::Report::kernel_copied). A connection adds to this total
    /// each time it sends pages, and once more when it is dropped. Copies that the kernel reports
    /// after the drop are not included.
    #[must_use]
    pub fn kernel_copied(&self) -> u64 {
        self.kernel_copied.load(Ordering::Relaxed)
    }

    /// Returns each mechanism that has sent bytes, with the number of bytes that it has sent.
    pub fn by_mechanism(&self) -> impl Iterator<Item = (Mechanism, u64)> {
        Mechanism::ALL
            .into_iter()
            .map(|mechanism| (mechanism, self.bytes(mechanism)))
            .filter(|&(_, bytes)| bytes > 0)
    }

    /// Adds bytes that a socket has accepted through `mechanism`. The streams of this crate do so
    /// themselves.
    pub fn add(&self, mechanism: Mechanism, bytes: u64) {
        self.bytes[mechanism as usize].fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_kernel_copied(&self, bytes: u64) {
        self.kernel_copied.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Formats the totals like this: `1048576 bytes: sendfile 983040, copy 65536`.
impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Read each counter once, so that the sum matches the parts while connections add to them.
        let counts: Vec<_> = self.by_mechanism().collect();
        let sum: u64 = counts.iter().map(|(_, bytes)| bytes).sum();
        write!(f, "{sum} bytes")?;
        let mut before = ": ";
        for (mechanism, bytes) in counts {
            write!(f, "{before}{mechanism} {bytes}")?;
            before = ", ";
        }
        match self.kernel_copied() {
            0 => Ok(()),
            bytes => write!(f, " (the kernel copied {bytes} bytes of zero-copy sends)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_read_like_a_report() {
        let totals = Totals::default();
        assert_eq!(totals.to_string(), "0 bytes");
        totals.add(Mechanism::Copy, 3);
        totals.add(Mechanism::SendZc, 40);
        totals.add(Mechanism::SendZc, 2);
        assert_eq!(totals.to_string(), "45 bytes: send_zc 42, copy 3");
        let by_mechanism: Vec<_> = totals.by_mechanism().collect();
        let expected = [(Mechanism::SendZc, 42), (Mechanism::Copy, 3)];
        assert_eq!(by_mechanism, expected);
        totals.add_kernel_copied(42);
        assert_eq!(
            totals.to_string(),
            "45 bytes: send_zc 42, copy 3 (the kernel copied 42 bytes of zero-copy sends)"
        );
    }
}
