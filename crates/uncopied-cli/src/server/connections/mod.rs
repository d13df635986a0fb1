//! The connections of a worker, as the control thread sees them.

mod command;
mod table;

pub(crate) use command::{CommandSlot, Commanded, ConnectionCommand};
pub(crate) use table::ConnectionTable;
