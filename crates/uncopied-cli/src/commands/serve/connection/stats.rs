//! What the control thread sees of a serving thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use uncopied_http::Totals;

use super::table::Table;

/// What the control thread sees of a serving thread.
#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) table: Table,
    pub(crate) totals: Arc<Totals>,
    requests: AtomicU64,
}

impl Shared {
    /// Counts a request. Only the serving thread itself may call it: one writer needs no
    /// read-modify-write.
    pub(crate) fn count_request(&self) {
        let before = self.requests.load(Ordering::Relaxed);
        self.requests.store(before + 1, Ordering::Relaxed);
    }

    /// Requests so far.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}
