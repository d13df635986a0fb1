//! The access log: one line per request on standard output.
//!
//! ```text
//! socket has accepted a response -> line -> buffer (4 MiB) -> writer thread -> standard output
//! ```
//!
//! An event loop only copies lines into the buffer, so it never waits for standard output. If
//! standard output is too slow, the buffer fills up, and further lines are dropped and counted. If
//! the reader of standard output goes away, logging stops, but the server continues.

mod line;
mod queue;

pub(crate) use line::{LineFormat, LogRecord, RequestLine};
pub(crate) use queue::AccessLog;
