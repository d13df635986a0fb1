//! Registers all notification sources of this process.
//!
//! If the process has reached its limit on memory in flight, part of that memory may belong to idle
//! senders, which do not process the notifications that have arrived for them. So a sender that
//! needs room calls [`reap_all`], which makes every source process its notifications.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::sys::coarse_millis;
use crate::sys::fork::PerProcess;

/// A source of notifications: the error queue of a socket, or a ring.
///
/// [`Acknowledgements`](super::Acknowledgements) and [`SocketQueue`](super::SocketQueue) are
/// sources too. The kernel sends no notification of an acknowledgement, so these sources poll the
/// socket.
pub(crate) trait NotificationSource: Send + Sync {
    /// Processes the notifications that have arrived, without waiting.
    fn reap(&self);

    /// Updates the count of bytes in flight, without completing any send, so that no waker runs.
    /// Only a source whose bytes end without a notification has to do anything.
    fn recount(&self) {}

    /// Waits for a notification, for at most `limit`. May return earlier without a notification.
    fn wait(&self, limit: Duration) -> io::Result<()>;
}

/// The registered sources. Before the list has to grow, sources that have been dropped are removed
/// from it.
static SOURCES: PerProcess<Mutex<Vec<Weak<dyn NotificationSource>>>> = PerProcess::new();

/// When [`reap_all`] last ran, in milliseconds of the coarse clock.
static REAPED_AT_MS: AtomicU64 = AtomicU64::new(0);

/// The minimum time between two runs of [`reap_all`], because a run costs a system call per source.
const MIN_REAP_INTERVAL_MS: u64 = 4;

/// Registers a source, so that [`reap_all`] includes it until the source is dropped.
pub(crate) fn register(source: Weak<dyn NotificationSource>) {
    let mut sources = lock();
    if sources.len() == sources.capacity() {
        sources.retain(|source| source.strong_count() > 0);
    }
    sources.push(source);
}

/// Makes every registered source process the notifications that have arrived. Does nothing if the
/// last run was less than [`MIN_REAP_INTERVAL_MS`] ago.
pub(crate) fn reap_all() {
    let now = coarse_millis();
    let reaped_at = REAPED_AT_MS.load(Ordering::Relaxed);
    if now.saturating_sub(reaped_at) < MIN_REAP_INTERVAL_MS {
        return;
    }
    REAPED_AT_MS.store(now, Ordering::Relaxed);
    for source in sources() {
        source.reap();
    }
}

/// Makes every registered source update the count of bytes in flight.
pub(crate) fn recount_all() {
    for source in sources() {
        source.recount();
    }
}

/// Returns the sources that exist. The caller uses them without the lock, because a source may run
/// foreign code.
fn sources() -> Vec<Arc<dyn NotificationSource>> {
    lock().iter().filter_map(Weak::upgrade).collect()
}

fn lock() -> MutexGuard<'static, Vec<Weak<dyn NotificationSource>>> {
    // A panic while the lock was held cannot have left the list inconsistent.
    SOURCES.get().lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// A source that counts how often it was reaped.
    #[derive(Default)]
    struct Counting(AtomicU64);

    impl NotificationSource for Counting {
        fn reap(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }

        fn wait(&self, _: Duration) -> io::Result<()> {
            Ok(())
        }
    }

    /// Every sender registers a source. Those of dropped senders must not fill the memory.
    #[test]
    fn only_sources_that_exist_stay_registered() {
        let kept: Arc<dyn NotificationSource> = Arc::new(Counting::default());
        register(Arc::downgrade(&kept));
        for _ in 0..10_000 {
            let dropped: Weak<Counting> = Arc::downgrade(&Arc::default());
            register(dropped);
        }
        assert!(sources().iter().any(|source| Arc::ptr_eq(source, &kept)));
        assert!(lock().len() < 1000);
    }

    /// A run of [`reap_all`] costs system calls, so a sender at a limit must not cause one after
    /// the other.
    #[test]
    fn sources_are_reaped_at_intervals() {
        let source = Arc::<Counting>::default();
        let registered: Weak<Counting> = Arc::downgrade(&source);
        register(registered);
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(50) {
            reap_all();
        }
        let count = source.0.load(Ordering::Relaxed);
        let elapsed_ms = began.elapsed().as_millis() as u64;
        let max = elapsed_ms / MIN_REAP_INTERVAL_MS + 2;
        assert!((1..=max).contains(&count), "{count} in {elapsed_ms} ms");
    }
}
