//! Counts how many bytes of a block are in flight, so that all sends of the block together count
//! at most the length of the block.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The sends of one block that are in flight in this process. Clones refer to the same block.
///
/// Outlives the block: the bytes of a gifted send may be in a socket's queue when the last handle
/// to the pages is dropped. Memory that is then allocated at the same address is a new block, with
/// a new count.
#[derive(Clone, Debug)]
pub(crate) struct BlockCount {
    /// The sum of the bytes of all sends of the block that are in flight. It may be larger than the
    /// block.
    pub(super) sent_bytes: Arc<AtomicU64>,
    pub(super) block_len: u64,
}

impl BlockCount {
    /// Adds a send of `bytes` bytes, if `admit` admits the number of bytes by which the block's
    /// memory in flight grows: 0 if earlier sends already count for the whole block. Returns
    /// whether the send was added.
    ///
    /// If another thread changes the count meanwhile, takes the growth back with `retract`, and
    /// tries again. So at no time is a send counted here whose growth has not been admitted.
    pub(crate) fn add(
        &self,
        bytes: u64,
        admit: impl Fn(u64) -> bool,
        retract: impl Fn(u64),
    ) -> bool {
        let mut before = self.sent_bytes.load(Ordering::Relaxed);
        loop {
            let after = before + bytes;
            let growth = self.in_flight(after) - self.in_flight(before);
            if !admit(growth) {
                return false;
            }
            let (success, failure) = (Ordering::Relaxed, Ordering::Relaxed);
            let exchanged = self
                .sent_bytes
                .compare_exchange_weak(before, after, success, failure);
            match exchanged {
                Ok(_) => return true,
                Err(of_other_thread) => {
                    retract(growth);
                    before = of_other_thread;
                }
            }
        }
    }

    /// Removes `bytes` bytes of the sends that were added. Returns the number of bytes by which the
    /// block's memory in flight shrinks.
    pub(crate) fn remove(&self, bytes: u64) -> u64 {
        let before = self.sent_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.in_flight(before) - self.in_flight(before - bytes)
    }

    /// Returns how many bytes of the block count as in flight if its sends have `sent_bytes` bytes.
    /// Never fewer than are in flight: the sends cannot refer to more memory than they have bytes,
    /// nor to more than the block has.
    fn in_flight(&self, sent_bytes: u64) -> u64 {
        sent_bytes.min(self.block_len)
    }
}
