//! Registers a connection with its worker, until the connection ends.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::state::ConnectionState;
use super::stats::WorkerStats;

/// A connection's entry in the connection table, and its permit (see `--max-connections`). Dropping
/// the guard releases both, however the connection ends.
pub(crate) struct ConnectionGuard {
    pub(crate) connection: Arc<ConnectionState>,
    stats: Arc<WorkerStats>,
    permits: Arc<Semaphore>,
    key: usize,
}

impl ConnectionGuard {
    /// Adds the connection to the table. The caller must have acquired a permit from `permits` and
    /// called `forget` on that permit, because the guard returns the permit to `permits` when
    /// dropped.
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
