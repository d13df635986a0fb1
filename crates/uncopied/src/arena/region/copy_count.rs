//! Counts the bytes of gifted sends whose page was copied on write later.
//!
//! A gifted send is complete at once, so its outcome cannot say whether the next write to its pages
//! will copy them. Instead, each page records the senders that have sent from its frame, and the
//! copy is counted for them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use crate::arena::space::GRANULE_BYTES;

/// A number of bytes that were copied on write, for one sender. Clones refer to the same number.
#[derive(Clone, Debug, Default)]
pub(crate) struct CopyCount(Arc<AtomicU64>);

impl CopyCount {
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The gifted bytes of one page frame, by sender.
#[derive(Clone, Debug, Default)]
pub(super) struct GiftedBytes(Vec<(Weak<AtomicU64>, u64)>);

impl GiftedBytes {
    /// Adds bytes that the sender with this count has sent from the frame. Bytes that it has sent
    /// several times are added once, because they will be copied once.
    pub(super) fn add(&mut self, sender: &CopyCount, bytes: usize) {
        let is_same = |(other, _): &&mut (Weak<AtomicU64>, u64)| {
            std::ptr::eq(other.as_ptr(), Arc::as_ptr(&sender.0))
        };
        if let Some((_, sent)) = self.0.iter_mut().find(is_same) {
            *sent = (*sent + bytes as u64).min(GRANULE_BYTES as u64);
            return;
        }
        // Before the list has to grow, senders that have been dropped are removed from it.
        if self.0.len() == self.0.capacity() {
            self.0.retain(|(sender, _)| sender.strong_count() > 0);
        }
        self.0.push((Arc::downgrade(&sender.0), bytes as u64));
    }

    /// Counts the bytes for their senders, because the page has been copied.
    pub(super) fn count(self) {
        for (sender, bytes) in self.0 {
            if let Some(count) = sender.upgrade() {
                count.fetch_add(bytes, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_counted_for_every_sender_that_still_exists() {
        let mut gifted = GiftedBytes::default();
        let senders: [_; 9] = std::array::from_fn(|_| CopyCount::default());
        for (bytes, sender) in (1..).zip(&senders) {
            gifted.add(sender, bytes);
            gifted.add(&CopyCount::default(), 100);
        }
        gifted.add(&senders[1], 20);
        gifted.add(&senders[2], GRANULE_BYTES - 1);
        gifted.count();
        let counts = senders.each_ref().map(CopyCount::get);
        assert_eq!(counts, [1, 22, GRANULE_BYTES as u64, 4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn the_list_of_senders_does_not_grow_with_those_that_were_dropped() {
        let mut gifted = GiftedBytes::default();
        for _ in 0..100 {
            gifted.add(&CopyCount::default(), 1);
        }
        assert!(gifted.0.len() < 10, "{} senders", gifted.0.len());
    }
}
