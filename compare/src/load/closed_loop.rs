//! The load that shows how many exchanges per second a contender can take: on each connection, the
//! next request or message follows as soon as the response is complete.

use std::time::{Duration, Instant};

use super::Load;
use crate::error::Error;

/// Connections, on each of which at most one request or message is in flight.
pub(crate) trait Exchanges {
    /// The number of connections.
    fn connections(&self) -> usize;

    /// Sends the next request or message on a connection, which must be idle.
    fn send(&mut self, index: usize) -> Result<(), Error>;

    /// Adds the connections on which something has arrived to `ready`. Never sleeps. Returns the
    /// current time.
    fn poll(&mut self, ready: &mut Vec<usize>) -> Result<Instant, Error>;

    /// Receives what has arrived on one connection. Returns whether the response is now complete,
    /// so that the connection is idle.
    fn receive(&mut self, index: usize) -> Result<bool, Error>;

    /// The number of bytes received so far.
    fn received_bytes(&self) -> u64;

    /// The time so far in which nothing had arrived.
    fn idle(&self) -> Duration;
}

/// A closed loop.
pub(crate) struct ClosedLoop<'a, E> {
    exchanges: &'a mut E,
    ready: Vec<usize>,
}

impl<'a, E: Exchanges> ClosedLoop<'a, E> {
    /// Sends on every connection. All of them must be idle.
    pub(crate) fn start(exchanges: &'a mut E) -> Result<Self, Error> {
        let connections = exchanges.connections();
        for index in 0..connections {
            exchanges.send(index)?;
        }
        Ok(Self {
            exchanges,
            ready: Vec::with_capacity(connections),
        })
    }
}

impl<E: Exchanges> Load for ClosedLoop<'_, E> {
    fn run_until(&mut self, end: Instant) -> Result<(), Error> {
        loop {
            let now = self.exchanges.poll(&mut self.ready)?;
            for index in self.ready.drain(..) {
                if self.exchanges.receive(index)? {
                    self.exchanges.send(index)?;
                }
            }
            if now >= end {
                return Ok(());
            }
        }
    }

    fn received_bytes(&self) -> u64 {
        self.exchanges.received_bytes()
    }

    fn idle(&self) -> Duration {
        self.exchanges.idle()
    }
}
