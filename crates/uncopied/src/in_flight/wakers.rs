//! Wakes and drops the wakers of tasks.
//!
//! A waker is foreign code: cloning, waking or dropping it may panic, block, or call this library
//! again. So wakers are cloned, woken and dropped only while this library holds no lock, and each
//! of them is [isolated](isolate) from the others.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Waker;

/// Wakes all of these wakers. A waker that panics does not keep the others from being woken.
pub(super) fn wake_all(wakers: Vec<Waker>) {
    for waker in wakers {
        isolate(|| waker.wake());
    }
}

/// Runs foreign code of one task. If it panics, the panic ends here, because the caller may be
/// working for another task, to which the panic does not matter. The panic hook has already
/// reported it.
pub(super) fn isolate(run: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
        // The payload of the panic is leaked, because it can be any value (see `panic_any`), and
        // dropping a foreign value could panic again.
        mem::forget(panic);
    }
}
