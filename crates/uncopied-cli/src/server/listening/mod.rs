//! Listening sockets, accepting connections, and the budget of file descriptors.

mod accept;
mod descriptors;
mod listeners;
mod passed;

pub(crate) use accept::{ACCEPT_BACKOFF, Accept, Acceptor, is_per_connection, report_accept_error};
pub(crate) use descriptors::{DescriptorBudget, LoweredLimit};
pub(crate) use listeners::{BoundListener, DuplicateListener, bind, open};
pub(crate) use passed::PassedSockets;
