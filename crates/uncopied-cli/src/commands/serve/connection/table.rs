//! The connections of one serving thread, as the control thread sees them.

use std::sync::{Arc, Mutex};

use slab::Slab;
use tokio::sync::Notify;

use super::state::{Order, Seat, lock};

/// The connections of one serving thread. Its lock is taken when a connection begins or ends and
/// while the control thread looks them through, never for a request.
#[derive(Default)]
pub(crate) struct Table {
    inner: Mutex<Inner>,
    emptied: Notify,
}

#[derive(Default)]
struct Inner {
    seats: Slab<Arc<Seat>>,
    is_finishing: bool,
}

impl Table {
    /// Adds a connection and returns its key. One that comes while the server finishes is told so.
    pub(crate) fn insert(&self, seat: Arc<Seat>) -> usize {
        let mut inner = lock(&self.inner);
        if inner.is_finishing {
            seat.give(Order::Finish);
        }
        inner.seats.insert(seat)
    }

    /// Removes the connection that [`Table::insert`] gave this key.
    pub(crate) fn remove(&self, key: usize) {
        let mut inner = lock(&self.inner);
        inner.seats.remove(key);
        if inner.seats.is_empty() {
            // A busy time's slots are given back once nobody needs them.
            inner.seats.shrink_to_fit();
            self.emptied.notify_one();
        }
    }

    /// Tells every connection, and those still to come, to finish.
    pub(crate) fn finish_all(&self) {
        let mut inner = lock(&self.inner);
        inner.is_finishing = true;
        inner
            .seats
            .iter()
            .for_each(|(_, seat)| seat.give(Order::Finish));
    }

    /// Shows every connection to `look`.
    pub(crate) fn for_each(&self, mut look: impl FnMut(&Seat)) {
        lock(&self.inner)
            .seats
            .iter()
            .for_each(|(_, seat)| look(seat));
    }

    /// Waits until no connection is left. For one waiter at a time.
    pub(crate) async fn emptied(&self) {
        while !lock(&self.inner).seats.is_empty() {
            self.emptied.notified().await;
        }
    }
}
