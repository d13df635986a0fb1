//! The access log: one line for each request on standard output.
//!
//! ```text
//! socket has taken an answer → line → buffer of at most 4 MiB → writer thread → standard output
//! ```
//!
//! An event loop only copies its line into the buffer. If standard output is slower than the requests,
//! the buffer fills, and lines are dropped and counted. If its reader goes away, logging stops and
//! serving goes on.

mod delivery;
mod line;
mod queue;
mod service;

pub(crate) use delivery::Ledger;
pub(crate) use line::Format;
pub(crate) use queue::AccessLog;
pub(crate) use service::{LogObserver, Logged};
