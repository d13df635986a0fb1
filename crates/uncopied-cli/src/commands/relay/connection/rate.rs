//! Limits the rate of one stream.

use std::time::{Duration, Instant};

/// The time for which a stream may move bytes before it is paused, at its limit.
const BURST: Duration = Duration::from_millis(50);

/// Pauses a stream so that it moves no more bytes per second than its limit, on average. After
/// every turn that moves bytes, the stream is paused for as long as these bytes take at the limit.
pub(super) struct RateLimiter {
    bytes_per_second: u64,
    /// The end of the pause.
    paused_until: Instant,
}

impl RateLimiter {
    pub(super) fn new(bytes_per_second: u64, now: Instant) -> Self {
        Self {
            bytes_per_second: bytes_per_second.max(1),
            paused_until: now,
        }
    }

    /// Returns how many bytes the stream may move at a time.
    pub(super) fn burst_bytes(bytes_per_second: u64) -> u64 {
        let bytes = u128::from(bytes_per_second) * BURST.as_millis() / 1000;
        u64::try_from(bytes).unwrap_or(u64::MAX).max(1)
    }

    /// Returns the end of the pause. `None` if the stream may move bytes now.
    pub(super) fn paused_until(&self, now: Instant) -> Option<Instant> {
        (self.paused_until > now).then_some(self.paused_until)
    }

    /// Records how many bytes the stream has just moved.
    pub(super) fn record(&mut self, bytes: u64, now: Instant) {
        if bytes > 0 {
            // A wake-up may be late, so a pause that is over counts, for at most a burst.
            let earliest = now.checked_sub(BURST).unwrap_or(now);
            self.paused_until = self.paused_until.max(earliest) + self.time_of(bytes);
        }
    }

    /// Returns the time that bytes take at the limit.
    fn time_of(&self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_paused_for_as_long_as_its_bytes_take() {
        let now = Instant::now();
        let after = |millis| now + Duration::from_millis(millis);
        let mut limiter = RateLimiter::new(1000, now);
        assert_eq!(limiter.paused_until(now), None);
        limiter.record(250, now);
        assert_eq!(limiter.paused_until(now), Some(after(250)));
        limiter.record(0, now);
        assert_eq!(limiter.paused_until(now), Some(after(250)));
        limiter.record(1000, after(100));
        assert_eq!(limiter.paused_until(now), Some(after(1250)));
        assert_eq!(limiter.paused_until(after(1250)), None);
        // 750 ms late, of which the time of a burst counts.
        limiter.record(60, after(2000));
        assert_eq!(limiter.paused_until(now), Some(after(2010)));
        assert_eq!(RateLimiter::burst_bytes(1 << 20), (1 << 20) / 20);
        assert_eq!(RateLimiter::burst_bytes(1), 1);
    }
}
