//! The control thread: signals, and the shutdown.

mod signals;
mod supervisor;

pub(crate) use signals::{Received, Signals};
pub(crate) use supervisor::{Supervised, Supervisor, every};
