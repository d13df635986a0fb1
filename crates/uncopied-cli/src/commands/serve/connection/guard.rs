//! The place of a connection, given back when it ends.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::state::Seat;
use super::stats::Shared;

/// The place of a connection: entered in the table, one permit of `--max-connections`. Both are
/// given back when it is dropped, however the connection ends.
pub(crate) struct Place {
    pub(crate) seat: Arc<Seat>,
    thread: Arc<Shared>,
    permits: Arc<Semaphore>,
    key: usize,
}

impl Place {
    pub(crate) fn take(seat: Seat, thread: &Arc<Shared>, permits: &Arc<Semaphore>) -> Self {
        let seat = Arc::new(seat);
        let key = thread.table.insert(Arc::clone(&seat));
        Self {
            seat,
            thread: Arc::clone(thread),
            permits: Arc::clone(permits),
            key,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.thread.table.remove(self.key);
        self.permits.add_permits(1);
    }
}
