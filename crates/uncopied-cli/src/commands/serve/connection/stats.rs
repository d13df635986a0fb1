//! What the control thread reads of a worker: its connections and its counters.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use uncopied_http::Totals;

use super::table::ConnectionTable;

/// The connections and counters of one worker thread. The worker writes them, the control thread
/// reads them.
#[derive(Default)]
pub(crate) struct WorkerStats {
    pub(crate) connections: ConnectionTable,
    pub(crate) totals: Arc<Totals>,
    requests: AtomicU64,
}

impl WorkerStats {
    /// Counts a request. Only the worker itself may call this: with one writer, no
    /// read-modify-write is needed.
    pub(crate) fn count_request(&self) {
        let before = self.requests.load(Ordering::Relaxed);
        self.requests.store(before + 1, Ordering::Relaxed);
    }

    /// The number of requests so far.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}
