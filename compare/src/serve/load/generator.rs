//! The connections of the load generator, and what closed and open loops do with them.

use std::time::{Duration, Instant};

use super::check;
use super::connection::{LoadConnection, Reception};
use super::request::Requests;
use super::{LoadSettings, Served};
use crate::error::Error;
use crate::interrupt;
use crate::load::closed_loop::Exchanges;
use crate::load::poller::Poller;
use crate::serve::case::{MIN_DISCARD_BYTES, Receiver};
use crate::serve::site::FileSet;

/// The size of the buffer, and so the maximum size of one receive that discards.
const BUFFER_BYTES: usize = 1024 * 1024;

/// The connections, and all that sending and receiving on them needs.
pub(super) struct Generator<'a> {
    poller: Poller,
    connections: Vec<LoadConnection>,
    set: &'a FileSet,
    requests: Requests<'a>,
    reception: Reception,
    buffer: Vec<u8>,
    /// The number of body bytes received so far, without those that were checked at the beginning.
    received_body_bytes: u64,
}

impl<'a> Generator<'a> {
    /// Opens and checks the connections, which are then idle.
    pub(super) fn connect(served: &Served<'a>, settings: LoadSettings) -> Result<Self, Error> {
        let count = settings.connections;
        let mut generator = Self {
            poller: Poller::new(count)?,
            connections: Vec::with_capacity(count),
            set: served.set,
            requests: Requests::new(served, settings.is_distinct),
            reception: Reception {
                body_bytes: served.set.size() as usize,
                discards: settings.receiver == Receiver::Discard
                    && served.set.size() >= MIN_DISCARD_BYTES,
                usual_head_bytes: 0,
            },
            buffer: vec![0; BUFFER_BYTES],
            received_body_bytes: 0,
        };
        for index in 0..count {
            interrupt::check()?;
            let request = generator.requests.next();
            let (stream, head_bytes) =
                check::open_checked(served, &request, &mut generator.buffer)?;
            generator.poller.add(&stream, index)?;
            generator.connections.push(LoadConnection::new(stream));
            generator.reception.usual_head_bytes = head_bytes;
        }
        Ok(generator)
    }
}

impl Exchanges for Generator<'_> {
    fn connections(&self) -> usize {
        self.connections.len()
    }

    fn send(&mut self, index: usize) -> Result<(), Error> {
        let request = self.requests.next();
        self.connections[index].send(request.bytes, self.set.start(request.file))
    }

    fn poll(&mut self, ready: &mut Vec<usize>) -> Result<Instant, Error> {
        self.poller.poll(ready)
    }

    fn receive(&mut self, index: usize) -> Result<bool, Error> {
        let received = self.connections[index].receive(&mut self.buffer, &mut self.reception)?;
        self.received_body_bytes += received.body_bytes as u64;
        Ok(received.is_complete)
    }

    fn received_bytes(&self) -> u64 {
        self.received_body_bytes
    }

    fn idle(&self) -> Duration {
        self.poller.idle()
    }
}
