//! The sources of notifications in this process.
//!
//! A sender that may not put more memory in flight, because others have reached the limit of the
//! process, has all sources process their notifications: an idle sender would not.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::sys::coarse_millis;
use crate::sys::fork::PerProcess;

/// Where notifications arrive: the error queue of a socket, or a ring. The acknowledgements of a
/// peer, which have to be polled, are a source as well.
pub(crate) trait NotificationSource: Send + Sync {
    /// Processes the notifications that have arrived, without waiting.
    fn reap(&self);

    /// Waits until there is a notification, for at most `limit`. It may return early.
    fn wait(&self, limit: Duration) -> io::Result<()>;
}

/// The registered sources. Those that are gone are removed before the list grows.
static SOURCES: PerProcess<Mutex<Vec<Weak<dyn NotificationSource>>>> = PerProcess::new();

/// When [`reap_all`] last ran, in milliseconds of the coarse clock.
static REAPED_AT_MS: AtomicU64 = AtomicU64::new(0);

/// The least time between two runs of [`reap_all`], which makes a system call for each source.
const MIN_REAP_INTERVAL_MS: u64 = 4;

/// Adds a source that [`reap_all`] reaps until it is dropped.
pub(crate) fn register(source: Weak<dyn NotificationSource>) {
    let mut sources = lock();
    if sources.len() == sources.capacity() {
        sources.retain(|source| source.strong_count() > 0);
    }
    sources.push(source);
}

/// Has every source process the notifications that have arrived. It does nothing if that happened
/// in the last few milliseconds.
pub(crate) fn reap_all() {
    let now = coarse_millis();
    let reaped_at = REAPED_AT_MS.load(Ordering::Relaxed);
    if now.saturating_sub(reaped_at) < MIN_REAP_INTERVAL_MS {
        return;
    }
    REAPED_AT_MS.store(now, Ordering::Relaxed);
    let sources: Vec<Arc<dyn NotificationSource>> =
        lock().iter().filter_map(Weak::upgrade).collect();
    for source in sources {
        source.reap();
    }
}

fn lock() -> MutexGuard<'static, Vec<Weak<dyn NotificationSource>>> {
    // A panic while the lock was held cannot have left the list inconsistent.
    SOURCES.get().lock().unwrap_or_else(PoisonError::into_inner)
}
