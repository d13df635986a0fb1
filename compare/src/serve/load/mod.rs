//! The load generator. It has several keep-alive connections, and sends a GET request on each one
//! that is idle: at once, to find out how many requests per second a server can respond to
//! ([`closed_loop`]), or when the next one is due, to find out how long clients wait for a response
//! ([`open_loop`]).
//!
//! The load generator needs one send and one receive for a small response, and never sleeps
//! ([`crate::load`]). Copying a large body to user space costs the load generator more than sending
//! costs a zero-copy server, so there is also a load that discards large bodies inside the kernel
//! (`MSG_TRUNC`).
//!
//! A server that sends wrong responses is treated as failed. The first response on every connection
//! is compared with the file byte by byte. For every later response, the status, the end of the
//! head and the first bytes of the body are checked.

pub(super) mod check;
pub(super) mod closed_loop;
mod connection;
mod generator;
pub(super) mod open_loop;
pub(super) mod request;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod test_server;

use std::net::SocketAddr;

use super::case::Receiver;
use super::site::FileSet;
use crate::load::LoadTimes;

/// A running server, and the files to request from it.
#[derive(Clone, Copy)]
pub(super) struct Served<'a> {
    /// The address that the server listens on.
    pub(super) address: SocketAddr,
    /// The server's process, whose CPU time is measured.
    pub(super) pid: u32,
    /// The files.
    pub(super) set: &'a FileSet,
}

/// The kind and the duration of the load.
#[derive(Clone, Copy)]
pub(super) struct LoadSettings {
    /// The number of keep-alive connections, each with one request in flight.
    pub(super) connections: usize,
    /// The duration of the load.
    pub(super) times: LoadTimes,
    /// Whether no two requests are the same.
    pub(super) is_distinct: bool,
    /// What to do with the bodies of responses.
    pub(super) receiver: Receiver,
}
