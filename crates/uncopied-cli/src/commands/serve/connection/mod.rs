//! One connection: its task, its state, and the layers between hyper and the socket.
//!
//! ```text
//!   FileService        responds to a request (inside LoggedService if there is an access log)
//!   hyper              parses the request, encodes the response
//!   StrictHeads        refuses ambiguous request heads
//!   ReplayStream       replays responses to identical requests
//!   Stream             recognizes file data and sends it without copying it
//! ```
//!
//! [`ConnectionTask`] polls all of these layers. They share a [`ConnectionState`] with the control
//! thread. The layers in this module usually allocate no memory for a request, except to record its
//! response for replay.

mod guard;
mod observer;
mod parking;
mod recorder;
mod replay;
mod service;
mod state;
mod stats;
mod strict_heads;
mod table;
mod task;

pub(crate) use guard::ConnectionGuard;
pub(crate) use observer::ConnectionObserver;
pub(crate) use replay::ReplayStream;
pub(crate) use service::{FileService, FileServiceBody, FileServiceFuture};
pub(crate) use state::{ConnectionCommand, ConnectionState};
pub(crate) use stats::WorkerStats;
pub(crate) use strict_heads::StrictHeads;
pub(crate) use table::ConnectionTable;
pub(crate) use task::ConnectionTask;
