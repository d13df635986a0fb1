//! Limits the rate of one stream.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// The time for which a stream may move bytes before it is paused, at its limit.
const BURST: Duration = Duration::from_millis(50);

/// Pauses a stream so that it moves no more bytes per second than its limit, on average. After
/// every poll that moves bytes, the stream is paused for as long as these bytes take at the limit.
pub(super) struct RateLimiter {
    bytes_per_second: u64,
    /// The bytes of the stream that have been counted.
    counted: u64,
    /// The end of the pause.
    paused_until: Instant,
    /// Wakes the task at the end of the pause.
    timer: Pin<Box<Sleep>>,
}

impl RateLimiter {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        let now = Instant::now();
        Self {
            bytes_per_second: bytes_per_second.max(1),
            counted: 0,
            paused_until: now,
            timer: Box::pin(sleep_until(now)),
        }
    }

    /// Returns how many bytes the stream may move at a time.
    pub(super) fn burst_bytes(bytes_per_second: u64) -> u64 {
        let bytes = u128::from(bytes_per_second) * BURST.as_millis() / 1000;
        u64::try_from(bytes).unwrap_or(u64::MAX).max(1)
    }

    /// Whether the stream may move bytes now. If not, wakes the task once it may.
    pub(super) fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.paused_until <= Instant::now() {
            return Poll::Ready(());
        }
        if self.timer.deadline() != self.paused_until {
            self.timer.as_mut().reset(self.paused_until);
        }
        self.timer.as_mut().poll(context)
    }

    /// Records how many bytes the stream has moved since the beginning.
    pub(super) fn record(&mut self, total: u64) {
        let bytes = total - self.counted;
        self.counted = total;
        if bytes > 0 {
            self.paused_until = self.paused_until.max(Instant::now()) + self.time_of(bytes);
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

    #[tokio::test]
    async fn a_stream_is_paused_for_as_long_as_its_bytes_take() {
        let mut limiter = RateLimiter::new(1000);
        let began = limiter.paused_until;
        limiter.record(250);
        assert!(limiter.paused_until >= began + Duration::from_millis(250));
        let paused_until = limiter.paused_until;
        limiter.record(250);
        assert_eq!(
            limiter.paused_until, paused_until,
            "no byte has moved since"
        );
        limiter.record(1250);
        assert_eq!(limiter.paused_until, paused_until + Duration::from_secs(1));
        assert_eq!(RateLimiter::burst_bytes(1 << 20), (1 << 20) / 20);
        assert_eq!(RateLimiter::burst_bytes(1), 1);
    }
}
