//! Listening sockets, accepting, and the limit of descriptors.

mod accept;
mod descriptors;
mod listeners;
mod passed;

pub(crate) use accept::Listeners;
pub(crate) use descriptors::{raise_limit, share};
pub(crate) use listeners::{Bound, open};
pub(crate) use passed::PassedSockets;
