//! The load that is put on a relay: the clients, and the server that the relay connects to. Both
//! are in this thread, which never sleeps ([`crate::load`]), so that no relay has to wake it.

pub(super) mod bulk;
pub(super) mod connections;
pub(super) mod messages;
mod pair;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod test_relay;
pub(super) mod verify;

pub(super) use pair::{Pair, RelayTarget};

use crate::error::Error;

/// Returns the error for a connection that the relay has closed too early.
fn closed_early() -> Error {
    Error::WrongResult("it closed a connection too early".into())
}
