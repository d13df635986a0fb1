//! One connection: its task, its state, and the layers between hyper and the socket.
//!
//! ```text
//!   FileService        resolves the request (inside LoggedService if there is an access log)
//!   hyper              parses the request, encodes the response
//!   StrictHeads        refuses ambiguous request heads
//!   ReplayStream       replays responses to identical requests
//!   Stream             recognizes bytes of files and sends them by zero copy
//! ```
//!
//! [`ConnectionTask`] polls all of them. [`ConnectionState`] is what the layers and the control
//! thread share. Apart from what `uncopied-http` allocates, a request costs no allocation here.

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
