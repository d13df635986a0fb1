//! The registration of a connection, undone when it ends.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::state::ConnectionState;
use super::stats::WorkerStats;

/// An entry in the connection table and one permit of `--max-connections`. Dropping the guard
/// releases both, however the connection ends.
pub(crate) struct ConnectionGuard {
    pub(crate) connection: Arc<ConnectionState>,
    stats: Arc<WorkerStats>,
    permits: Arc<Semaphore>,
    key: usize,
}

impl ConnectionGuard {
    /// Adds the connection to the table. The caller has taken a permit from `permits` and
    /// forgotten it.
    pub(crate) fn register(
        connection: ConnectionState,
        stats: &Arc<WorkerStats>,
        permits: &Arc<Semaphore>,
    ) -> Self {
        let connection = Arc::new(connection);
        let key = stats.connections.insert(Arc::clone(&connection));
        Self {
            connection,
            stats: Arc::clone(stats),
            permits: Arc::clone(permits),
            key,
        }
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.stats.connections.remove(self.key);
        self.permits.add_permits(1);
    }
}
