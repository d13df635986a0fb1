//! One connection: reading requests, sending responses, closing.
//!
//! ```text
//!   task        waits for bytes, and handles one request after the other
//!     request     finds, parses and checks the head of a request (with `host`)
//!     ServeFiles  decides on the response
//!     send        writes the head, and sends the body without copying file data
//!     close       waits until the peer has received everything
//! ```
//!
//! This is HTTP/1.1 as far as a file server needs it: no response depends on the body of a request,
//! and the length of every response is known. A request for a file in the cache allocates no
//! memory, and an idle connection has no buffer. Each connection has a [`ConnectionState`] that it
//! shares with the control thread.

mod buffers;
mod close;
mod date;
mod guard;
mod host;
mod log;
mod request;
mod send;
mod socket;
mod state;
mod stats;
mod task;

pub(crate) use guard::ConnectionGuard;
pub use request::{ParsedHead, parse_head};
pub(crate) use state::{ConnectionState, Phase};
pub(crate) use stats::WorkerStats;
pub(crate) use task::{Connection, ConnectionSettings};
