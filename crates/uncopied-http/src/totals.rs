//! Bytes by mechanism, over many connections.

use std::sync::atomic::{AtomicU64, Ordering};

use uncopied::Mechanism;

/// How many bytes a set of connections has sent by each mechanism. Heads, and bodies that are no
/// files, count as copied, which they are.
#[derive(Debug, Default)]
pub struct Totals {
    bytes: [AtomicU64; Mechanism::ALL.len()],
}

impl Totals {
    /// How many bytes the sockets have taken by `mechanism`.
    #[must_use]
    pub fn bytes(&self, mechanism: Mechanism) -> u64 {
        self.bytes[mechanism as usize].load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, mechanism: Mechanism, bytes: u64) {
        self.bytes[mechanism as usize].fetch_add(bytes, Ordering::Relaxed);
    }
}
