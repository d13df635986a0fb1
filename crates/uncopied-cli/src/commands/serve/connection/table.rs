//! A worker thread's table of connections, shared with the control thread.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use slab::Slab;
use tokio::sync::Notify;

use super::state::{ConnectionCommand, ConnectionState, lock};

/// The connections of one worker thread. The lock is taken when a connection begins or ends, and
/// while the control thread sweeps the table. Requests do not take the lock.
#[derive(Default)]
pub(crate) struct ConnectionTable {
    entries: Mutex<TableEntries>,
    emptied: Notify,
}

#[derive(Default)]
struct TableEntries {
    connections: Slab<Arc<ConnectionState>>,
    is_draining: bool,
}

impl ConnectionTable {
    /// Adds a connection and returns its key. If the server is draining, tells the connection to
    /// drain too.
    pub(crate) fn insert(&self, connection: Arc<ConnectionState>) -> usize {
        let mut entries = lock(&self.entries);
        if entries.is_draining {
            connection.send(ConnectionCommand::Drain);
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
            .for_each(|(_, connection)| connection.send(ConnectionCommand::Drain));
    }

    /// Calls `visit` for every connection.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(&ConnectionState)) {
        lock(&self.entries)
            .connections
            .iter()
            .for_each(|(_, connection)| visit(connection));
    }

    /// Returns the connection that has been idle for the longest time between two requests, and for
    /// how long, if there is any that has not been told to close.
    pub(crate) fn longest_idle(&self) -> Option<(Duration, Arc<ConnectionState>)> {
        let entries = lock(&self.entries);
        let idle = entries.connections.iter().filter_map(|(_, connection)| {
            let is_open = connection.command() < ConnectionCommand::Drain;
            let time = connection.idle_time().filter(|_| is_open)?;
            Some((time, connection))
        });
        let (time, connection) = idle.max_by_key(|(time, _)| *time)?;
        Some((time, Arc::clone(connection)))
    }

    /// Waits until the table is empty. Supports one waiter at a time.
    pub(crate) async fn wait_until_empty(&self) {
        while !lock(&self.entries).connections.is_empty() {
            self.emptied.notified().await;
        }
    }
}
