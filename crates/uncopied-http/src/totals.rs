//! Bytes by mechanism, over many connections.

use std::sync::atomic::{AtomicU64, Ordering};

use uncopied::Mechanism;

/// How many bytes a set of connections has sent by each mechanism. Response heads, and bodies that
/// are neither files nor pages of the arena, are copied, and are counted as copied.
#[derive(Debug, Default)]
pub struct Totals {
    bytes: [AtomicU64; Mechanism::ALL.len()],
    kernel_copied: AtomicU64,
}

impl Totals {
    /// How many bytes the sockets have accepted by `mechanism`.
    #[must_use]
    pub fn bytes(&self, mechanism: Mechanism) -> u64 {
        self.bytes[mechanism as usize].load(Ordering::Relaxed)
    }

    /// How many bytes of zero-copy sends the kernel reports to have copied after all; see
    /// [`Report::kernel_copied`](uncopied::Report::kernel_copied). A connection adds what it knows
    /// when it next sends pages, and when it is dropped; what the kernel reports after that is not
    /// included.
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
