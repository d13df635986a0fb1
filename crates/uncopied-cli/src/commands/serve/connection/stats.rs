//! A worker's data that the control thread reads: connections and counters.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use uncopied_http::Totals;

use crate::server::connections::ConnectionTable;

use super::state::ConnectionState;

/// The connections and counters of one worker thread. The worker updates them, and the control
/// thread reads them.
#[derive(Default)]
pub(crate) struct WorkerStats {
    pub(crate) connections: ConnectionTable<ConnectionState>,
    pub(crate) totals: Arc<Totals>,
    requests: AtomicU64,
}

impl WorkerStats {
    /// Counts a request. Only the worker itself may call this: with a single writer, a load and a
    /// store are enough, and no atomic read-modify-write is needed.
    pub(crate) fn count_request(&self) {
        let before = self.requests.load(Ordering::Relaxed);
        self.requests.store(before + 1, Ordering::Relaxed);
    }

    /// Returns the number of requests so far.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}
