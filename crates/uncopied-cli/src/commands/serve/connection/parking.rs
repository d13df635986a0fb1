//! Decides which idle connections keep their buffers.
//!
//! hyper holds two buffers of 8 KiB for each connection, even while the connection is idle. To save
//! this memory, a connection that has been idle for a while is *parked*: hyper's connection object
//! (`http1::Connection`) is dropped, and only the stream, the service and the registration with the
//! event loop remain. When a request arrives that needs hyper, that object is created again.
//!
//! "For a while" is not measured in time, but by the number of other connections that have become
//! idle since. This needs no timer, and it limits the memory that the buffers of idle connections
//! take. Each thread has a list of up to [`MAX_UNPARKED_IDLE_CONNECTIONS`]. A connection that
//! becomes idle is appended to the list. If the list is then too long, its first connection is
//! removed. If that connection has received a request since it was listed, it is appended again;
//! otherwise, it is parked. A connection that receives a request stays in the list, so it does not
//! have to be added when it becomes idle again.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;

use super::state::{ConnectionCommand, ConnectionState};

/// The maximum number of idle connections per thread that keep their buffers. Such a connection was
/// measured to take 11 KiB of resident memory, buffers included, so all of them take about 11 MiB.
const MAX_UNPARKED_IDLE_CONNECTIONS: usize = 1024;

/// A connection that is not parked, and its [`request_number`] at the time when it was added to the
/// list. If that number has changed since, the connection has received another request.
///
/// [`request_number`]: ConnectionState::request_number
type IdleEntry = (Arc<ConnectionState>, u32);

thread_local! {
    static IDLE_CONNECTIONS: RefCell<VecDeque<IdleEntry>> = const { RefCell::new(VecDeque::new()) };
}

/// Adds a connection of this thread that has just become idle to the list. If the list is then too
/// long, parks the first listed connection that has received no request since it was added.
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
