//! Counts the bytes of a download by mechanism, and slows it down (`--limit-rate`).

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use uncopied::Mechanism;

use super::progress::Progress;

/// Counts the bytes of one download.
pub(super) struct Meter {
    counts: RefCell<Vec<(Mechanism, u64)>>,
    progress: Rc<Progress>,
    limit: Option<Rc<RateLimit>>,
}

impl Meter {
    pub(super) fn new(progress: Rc<Progress>, limit: Option<Rc<RateLimit>>) -> Self {
        Self {
            counts: RefCell::default(),
            progress,
            limit,
        }
    }

    /// Counts bytes that the sink has got.
    pub(super) fn moved(&self, mechanism: Mechanism, count: u64) {
        let mut counts = self.counts.borrow_mut();
        match counts.iter_mut().find(|(other, _)| *other == mechanism) {
            Some((_, sum)) => *sum += count,
            None => counts.push((mechanism, count)),
        }
        self.progress.moved(count);
        if let Some(limit) = &self.limit {
            limit.spend(count);
        }
    }

    /// Waits until bytes may be received. Returns how many, at least 1 and at most `want`, which is
    /// `None` if the end is unknown. `None` if there is no limit.
    pub(super) async fn allowance(&self, want: Option<u64>) -> Option<u64> {
        match &self.limit {
            None => want,
            Some(limit) => {
                let most = limit.allowance().await;
                Some(want.map_or(most, |want| want.min(most)))
            }
        }
    }

    /// Returns the number of bytes that were received.
    pub(super) fn received(&self) -> u64 {
        self.counts.borrow().iter().map(|(_, count)| count).sum()
    }

    /// Returns the bytes that each mechanism has moved.
    pub(super) fn by_mechanism(&self) -> Vec<(Mechanism, u64)> {
        self.counts.borrow().clone()
    }
}

/// A limit on the bytes per second of all downloads together.
pub(super) struct RateLimit {
    bytes_per_second: u64,
    /// When what was received so far is within the limit.
    due: Cell<Instant>,
}

impl RateLimit {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            due: Cell::new(Instant::now()),
        }
    }

    /// Waits until the limit allows more bytes. Returns how many may be received at once: those of
    /// a tenth of a second, so that the rate is smooth.
    async fn allowance(&self) -> u64 {
        sleep_until(self.due.get()).await;
        (self.bytes_per_second / 10).max(1)
    }

    fn spend(&self, count: u64) {
        let nanos = u128::from(count) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let time = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        // Time in which nothing was received is not saved up.
        let from = self.due.get().max(Instant::now());
        // A wait of a year is as long as any.
        let time = time.min(Duration::from_secs(365 * 24 * 60 * 60));
        self.due.set(from + time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_counts_bytes_as_time() {
        let limit = RateLimit::new(1000);
        let start = limit.due.get();
        limit.spend(500);
        limit.spend(500);
        assert!(limit.due.get() - start >= Duration::from_secs(1));
        RateLimit::new(1).spend(u64::MAX);
    }
}
