//! The access log, on standard output or in a file. The commands decide what a line says.
//!
//! ```text
//! what is logged -> line -> buffer (4 MiB) -> writer thread -> sink
//! ```
//!
//! An event loop only copies lines into the buffer, so it never waits for the sink. If the sink is
//! too slow, or has no room, the buffer fills up, and further lines are dropped and counted. If the
//! reader of standard output goes away, logging stops, but the server continues.

mod queue;
mod sink;
mod text;

pub(crate) use queue::AccessLog;
pub(crate) use text::{
    Host, LineFormat, LogLine, json_string, json_time, put, text_escaped, text_time,
};
