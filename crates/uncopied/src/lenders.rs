//! Who has lent memory, for those who may not lend because others have.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::completion::Notices;
use crate::sys::coarse_millis;
use crate::sys::fork::PerProcess;

/// Everybody whose notices somebody has to take in.
static LENDERS: PerProcess<Mutex<Vec<Weak<dyn Notices>>>> = PerProcess::new();

/// When they were asked last, in milliseconds.
static ASKED_AT: AtomicU64 = AtomicU64::new(0);

/// So often at most they are asked, in milliseconds: a look costs a call for each.
const INTERVAL: u64 = 4;

/// From now on it is [asked](ask_all) as well, until it is dropped.
pub(crate) fn enter(lender: Weak<dyn Notices>) {
    let mut lenders = lock();
    if lenders.len() == lenders.capacity() {
        lenders.retain(|lender| lender.strong_count() > 0);
    }
    lenders.push(lender);
}

/// Has everybody take in the notices that have come: an idle one would keep what it has had back.
pub(crate) fn ask_all() {
    let now = coarse_millis();
    let asked_at = ASKED_AT.load(Ordering::Relaxed);
    if now.saturating_sub(asked_at) < INTERVAL {
        return;
    }
    ASKED_AT.store(now, Ordering::Relaxed);
    let all: Vec<Arc<dyn Notices>> = lock().iter().filter_map(Weak::upgrade).collect();
    for lender in all {
        lender.reap();
    }
}

fn lock() -> MutexGuard<'static, Vec<Weak<dyn Notices>>> {
    // The list is whole between any two of the statements that could panic.
    LENDERS.get().lock().unwrap_or_else(PoisonError::into_inner)
}
