//! One connection: the PROXY header, a target, and both streams until they have ended.
//!
//! ```text
//!   task          one per connection; writes the log line however the connection ends
//!     establish   reads a PROXY header, connects to a target
//!     relaying    moves the bytes of both streams
//! ```
//!
//! A connection that is idle has neither a buffer nor a pipe, and no timer: the control thread
//! sweeps all connections, and tells those past a limit to abort (see [`ConnectionState::sweep`]).

mod end;
mod establish;
mod rate;
mod relaying;
mod socket;
mod state;
mod task;

pub(super) use end::{End, EndKind};
pub(super) use establish::ConnectError;
pub(super) use socket::Socket;
pub(super) use state::{ConnectionState, IdleLimits, sweep_interval};
pub(super) use task::{WorkerContext, refuse, spawn};
