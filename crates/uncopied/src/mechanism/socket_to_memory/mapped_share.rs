//! Which part of the bytes of a socket the kernel can map.

/// Learns which part of the received bytes the kernel maps, so that the plan can copy where too few
/// are. As it may change, it is measured again after a while.
#[derive(Debug, Default)]
pub(super) struct MappedShare {
    mapped: u64,
    total: u64,
    /// The number of bytes to be copied before the part is measured again.
    copy_first: u64,
    /// The previous value of `copy_first`, when it was set.
    last_pause: u64,
}

/// The part is known once this many bytes have been received with `map_receive`.
const MIN_SAMPLE_BYTES: u64 = 256 << 10;

/// Older bytes count less once this many have been received.
const MAX_SAMPLE_BYTES: u64 = 4 << 20;

/// The number of bytes that are copied before the part is measured again. It doubles each time, up
/// to the maximum, so that measuring costs less than a hundredth of what copying costs.
const FIRST_PAUSE_BYTES: u64 = 1 << 20;
const MAX_PAUSE_BYTES: u64 = 64 << 20;

impl MappedShare {
    /// Returns the part of the bytes that were mapped, in percent, or `None` if it has to be
    /// measured.
    pub(super) fn percent(&self) -> Option<u8> {
        let is_known = self.total >= MIN_SAMPLE_BYTES;
        is_known.then(|| (self.mapped * 100 / self.total) as u8)
    }

    /// Whether the part has ever been measured.
    pub(super) fn has_measured(&self) -> bool {
        self.percent().is_some() || self.last_pause > 0
    }

    /// Records what was received with `map_receive`.
    pub(super) fn record(&mut self, mapped: u64, copied: u64) {
        self.mapped += mapped;
        self.total += mapped + copied;
        if self.total > MAX_SAMPLE_BYTES {
            self.mapped /= 2;
            self.total /= 2;
        }
        if self.mapped * 2 > self.total {
            self.last_pause = 0;
        }
    }

    /// Records bytes that were copied because the plan said so.
    pub(super) fn record_copied(&mut self, bytes: u64) {
        if self.percent().is_none() {
            return;
        }
        if self.copy_first == 0 {
            self.last_pause = (self.last_pause * 2).clamp(FIRST_PAUSE_BYTES, MAX_PAUSE_BYTES);
            self.copy_first = self.last_pause;
        }
        self.copy_first = self.copy_first.saturating_sub(bytes);
        if self.copy_first == 0 {
            (self.mapped, self.total) = (0, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = 256 << 10;

    #[test]
    fn the_part_is_measured_again_ever_more_rarely() {
        let mut share = MappedShare::default();
        let mut pauses = Vec::new();
        for _ in 0..9 {
            assert_eq!(share.percent(), None);
            share.record(0, CHUNK);
            assert_eq!(share.percent(), Some(0));
            let mut paused = 0;
            while share.percent().is_some() {
                share.record_copied(CHUNK);
                paused += CHUNK;
            }
            pauses.push(paused >> 20);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 64, 64]);

        share.record(CHUNK, 0);
        share.record(0, 3 * CHUNK);
        assert_eq!(share.percent(), Some(25));
        share.record_copied(FIRST_PAUSE_BYTES);
        assert_eq!(share.percent(), None, "the pauses are short again");
    }

    #[test]
    fn older_bytes_count_less() {
        let mut share = MappedShare::default();
        for _ in 0..100 {
            share.record(CHUNK, 0);
        }
        assert_eq!(share.percent(), Some(100));
        for _ in 0..20 {
            share.record(0, CHUNK);
        }
        assert!(share.percent() < Some(50), "{share:?}");
    }
}
