//! The load generator. It has several keep-alive connections, and sends a GET request on each one
//! that is idle: at once, to find out how many requests per second a server can respond to
//! ([`closed_loop`]). All requests are the same or, with `--distinct`, each one has a different
//! number in its query.
//!
//! The load generator has to use less CPU time than any server. Otherwise it would be the
//! bottleneck, and the run would measure the load generator. So it has one thread, needs one send
//! and one receive for a small response, and does not allocate memory while the load runs. It never
//! sleeps ([`poller`]). It discards bodies of 16 KiB and more inside the kernel (`MSG_TRUNC`):
//! copying them to user space would cost the load generator more than sending costs a zero-copy
//! server.
//!
//! A server that sends wrong responses is treated as failed. The first response on every connection
//! is compared with the file byte by byte. For every later response, the status and the end of the
//! head are checked.

pub(super) mod check;
pub(super) mod closed_loop;
mod connection;
mod generator;
mod poller;
pub(super) mod request;

use std::net::SocketAddr;
use std::time::Duration;

/// A file on a running server.
pub(super) struct ServedFile<'a> {
    /// The address that the server listens on.
    pub(super) address: SocketAddr,
    /// The server's process, whose CPU time is measured.
    pub(super) pid: u32,
    /// The path to request, with the leading slash.
    pub(super) path: &'a str,
    /// The bytes of the file.
    pub(super) expected: &'a [u8],
}

/// The kind and the duration of the load.
#[derive(Clone, Copy)]
pub(super) struct LoadSettings {
    /// The number of keep-alive connections, each with one request in flight.
    pub(super) connections: usize,
    /// Duration of the load before the measurement.
    pub(super) warm_up: Duration,
    /// Duration of the measurement.
    pub(super) window: Duration,
    /// Whether every request has a different number in its query.
    pub(super) distinct: bool,
}
