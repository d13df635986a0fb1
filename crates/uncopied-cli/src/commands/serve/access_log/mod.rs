//! The access log: one line per request, on standard output or in a file.
//!
//! ```text
//! socket has accepted a response -> line -> buffer (4 MiB) -> writer thread -> sink
//! ```
//!
//! An event loop only copies lines into the buffer, so it never waits for the sink. If the sink is
//! too slow, or has no room, the buffer fills up, and further lines are dropped and counted. If the
//! reader of standard output goes away, logging stops, but the server continues.

mod line;
mod queue;
mod sink;

pub(crate) use line::{LineFormat, LogRecord, RequestLine};
pub(crate) use queue::AccessLog;
pub(crate) use sink::LogSink;
