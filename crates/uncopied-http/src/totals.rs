//! Counts the bytes sent by each mechanism, across many connections.

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

    pub(crate) fn add(&self, mechanism: Mechanism, bytes: u64) {
        self.bytes[mechanism as usize].fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_kernel_copied(&self, bytes: u64) {
        self.kernel_copied.fetch_add(bytes, Ordering::Relaxed);
    }
}
