//! Which idle connections keep their buffers.
//!
//! hyper holds two buffers of 8 KiB for each connection, busy or not. A connection that has been
//! idle for a while needs neither. It is *parked*: hyper's part is dropped, and the stream, the
//! service and one readiness registration remain. Once bytes arrive, hyper's part is rebuilt.
//!
//! "For a while" is counted in connections, not in time, so no timer is needed and memory is
//! bounded at every moment. Each thread has a list of [`MAX_UNPARKED_IDLE_CONNECTIONS`]. A
//! connection that becomes idle is appended. When the list is full, its first connection is
//! removed: if it has served a request since it was listed, it is appended again, otherwise it is
//! parked. A busy connection is already listed, so the list costs it nothing.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;

use super::state::{ConnectionCommand, ConnectionState};

/// The number of idle connections per thread that keep their buffers: about 11 MiB of buffers.
const MAX_UNPARKED_IDLE_CONNECTIONS: usize = 1024;

/// A connection that has buffers, and the number of its latest request when it was listed.
type IdleEntry = (Arc<ConnectionState>, u32);

thread_local! {
    static IDLE_CONNECTIONS: RefCell<VecDeque<IdleEntry>> = const { RefCell::new(VecDeque::new()) };
}

/// Lists a connection of this thread that has just become idle, and parks the one that has been
/// idle longest if the list is full.
pub(crate) fn note_idle(connection: &Arc<ConnectionState>) {
    if connection.enter_idle_list() {
        IDLE_CONNECTIONS.with_borrow_mut(|list| {
            list.push_back((Arc::clone(connection), connection.request_number()));
            make_room(list);
        });
    }
}

fn make_room(list: &mut VecDeque<IdleEntry>) {
    while list.len() > MAX_UNPARKED_IDLE_CONNECTIONS
        && let Some((first, listed_request)) = list.pop_front()
    {
        let latest_request = first.request_number();
        if latest_request == listed_request {
            first.leave_idle_list();
            first.send(ConnectionCommand::Park);
        } else {
            list.push_back((first, latest_request));
        }
    }
}
