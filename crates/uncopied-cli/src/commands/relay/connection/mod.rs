//! One connection: the PROXY header, a target, and both streams until they have ended.
//!
//! ```text
//!   stages         goes from one stage to the next; writes the log line when the connection ends
//!     header       receives a PROXY header
//!     connecting   connects to a target
//!     relaying     moves the bytes of both streams
//! ```
//!
//! A connection that is idle has neither a buffer nor a pipe, and no timer: the control thread
//! sweeps all connections, and tells those past a limit to abort (see [`ConnectionState::sweep`]).

mod connecting;
mod end;
mod header;
mod rate;
mod relaying;
mod side;
mod socket;
mod stages;
mod state;

pub(super) use connecting::ConnectError;
pub(super) use end::{End, EndKind, Peer};
pub(super) use side::watched;
pub(super) use socket::Socket;
pub(super) use stages::{Connection, Turn, WorkerContext, refuse};
pub(super) use state::{ConnectionState, IdleLimits, sweep_interval};
