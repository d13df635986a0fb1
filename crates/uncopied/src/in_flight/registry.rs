//! Who has lent memory, for those who may not lend because others have.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::completion::NotificationSource;
use crate::sys::coarse_millis;
use crate::sys::fork::PerProcess;

/// Everybody whose notices somebody has to take in.
static SOURCES: PerProcess<Mutex<Vec<Weak<dyn NotificationSource>>>> = PerProcess::new();

/// When they were asked last, in milliseconds.
static REAPED_AT: AtomicU64 = AtomicU64::new(0);

/// So often at most they are asked, in milliseconds: a look costs a call for each.
const MIN_INTERVAL_MS: u64 = 4;

/// From now on it is [asked](reap_all) as well, until it is dropped.
pub(crate) fn register(source: Weak<dyn NotificationSource>) {
    let mut sources = lock();
    if sources.len() == sources.capacity() {
        sources.retain(|source| source.strong_count() > 0);
    }
    sources.push(source);
}

/// Has everybody take in the notices that have come: an idle one would keep what it has had back.
pub(crate) fn reap_all() {
    let now = coarse_millis();
    let reaped_at = REAPED_AT.load(Ordering::Relaxed);
    if now.saturating_sub(reaped_at) < MIN_INTERVAL_MS {
        return;
    }
    REAPED_AT.store(now, Ordering::Relaxed);
    let all: Vec<Arc<dyn NotificationSource>> = lock().iter().filter_map(Weak::upgrade).collect();
    for source in all {
        source.reap();
    }
}

fn lock() -> MutexGuard<'static, Vec<Weak<dyn NotificationSource>>> {
    // The list is whole between any two of the statements that could panic.
    SOURCES.get().lock().unwrap_or_else(PoisonError::into_inner)
}
