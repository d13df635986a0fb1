//! Who has lent memory, for those who may not lend because others have.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use crate::completion::Notices;
use crate::sys::coarse_millis;

/// Everybody whose notices somebody has to take in.
static LENDERS: Mutex<Vec<Weak<dyn Notices>>> = Mutex::new(Vec::new());

/// When they were asked last, in milliseconds.
static ASKED_AT: AtomicU64 = AtomicU64::new(0);

/// So often at most they are asked, in milliseconds: a look costs a call for each.
const INTERVAL: u64 = 4;

/// From now on it is [asked](ask_all) as well, until it is dropped.
pub(crate) fn enter(lender: Weak<dyn Notices>) {
    // In a child process the lock may be held for ever, by a thread that only the parent has.
    if let Ok(mut lenders) = LENDERS.try_lock() {
        if lenders.len() == lenders.capacity() {
            lenders.retain(|lender| lender.strong_count() > 0);
        }
        lenders.push(lender);
    }
}

/// Has everybody take in the notices that have come: an idle one would keep what it has had back.
pub(crate) fn ask_all() {
    let now = coarse_millis();
    let before = ASKED_AT.load(Ordering::Relaxed);
    let is_due = now.saturating_sub(before) >= INTERVAL;
    if !is_due
        || ASKED_AT
            .compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed)
            .is_err()
    {
        return;
    }
    let Ok(lenders) = LENDERS.try_lock() else {
        return;
    };
    let all: Vec<Arc<dyn Notices>> = lenders.iter().filter_map(Weak::upgrade).collect();
    drop(lenders);
    for lender in all {
        lender.reap();
    }
}
