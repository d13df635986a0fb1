//! A worker thread's table of connections, shared with the control thread.

use std::sync::{Arc, Mutex};

use slab::Slab;
use tokio::sync::Notify;

use super::command::{Commanded, ConnectionCommand, lock};

/// The connections of one worker thread. The lock is taken when a connection begins or ends, and
/// while the control thread sweeps the table. Moving bytes does not take the lock.
pub(crate) struct ConnectionTable<C> {
    entries: Mutex<TableEntries<C>>,
    emptied: Notify,
}

struct TableEntries<C> {
    connections: Slab<Arc<C>>,
    is_draining: bool,
}

impl<C> Default for ConnectionTable<C> {
    fn default() -> Self {
        Self {
            entries: Mutex::new(TableEntries {
                connections: Slab::new(),
                is_draining: false,
            }),
            emptied: Notify::new(),
        }
    }
}

impl<C: Commanded> ConnectionTable<C> {
    /// Adds a connection and returns its key. If the server is draining, tells the connection to
    /// drain too.
    pub(crate) fn insert(&self, connection: Arc<C>) -> usize {
        let mut entries = lock(&self.entries);
        if entries.is_draining {
            connection.commands().send(ConnectionCommand::Drain);
        }
        entries.connections.insert(connection)
    }

    /// Removes the connection for which [`ConnectionTable::insert`] returned this key.
    pub(crate) fn remove(&self, key: usize) {
        let mut entries = lock(&self.entries);
        entries.connections.remove(key);
        if entries.connections.is_empty() {
            // Free the memory that a busy period has left allocated, because the table does not
            // shrink by itself.
            entries.connections.shrink_to_fit();
            self.emptied.notify_one();
        }
    }

    /// Tells every connection, present and future, to drain.
    pub(crate) fn drain_all(&self) {
        let mut entries = lock(&self.entries);
        entries.is_draining = true;
        entries
            .connections
            .iter()
            .for_each(|(_, connection)| connection.commands().send(ConnectionCommand::Drain));
    }

    /// Calls `visit` for every connection.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(&C)) {
        lock(&self.entries)
            .connections
            .iter()
            .for_each(|(_, connection)| visit(connection));
    }

    /// Returns the connection for which `rank` returns the greatest rank, and that rank. Ignores
    /// those without a rank.
    pub(crate) fn greatest<R: Ord>(&self, rank: impl Fn(&C) -> Option<R>) -> Option<(R, Arc<C>)> {
        let entries = lock(&self.entries);
        let ranked = entries
            .connections
            .iter()
            .filter_map(|(_, connection)| Some((rank(connection)?, connection)));
        let (greatest, connection) = ranked.max_by(|(a, _), (b, _)| a.cmp(b))?;
        Some((greatest, Arc::clone(connection)))
    }

    /// Waits until the table is empty. Supports one waiter at a time.
    pub(crate) async fn wait_until_empty(&self) {
        while !lock(&self.entries).connections.is_empty() {
            self.emptied.notified().await;
        }
    }
}
