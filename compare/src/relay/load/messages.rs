//! Messages that the server sends back.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::{Pair, closed_early};
use crate::error::{Context, Error};
use crate::load::closed_loop::Exchanges;
use crate::load::poller::Poller;
use crate::pattern;

/// The size of the buffer. It is larger than any message, so that a receive that fills it is an
/// error.
const BUFFER_BYTES: usize = 64 * 1024;

/// Connections, each with at most one message in flight. Every byte that comes back is compared.
pub(in crate::relay) struct Messages {
    poller: Poller,
    clients: Vec<MessageClient>,
    /// The ends of the same connections at the server.
    servers: Vec<TcpStream>,
    /// The next message. No two successive messages on a connection begin with the same byte.
    message: Vec<u8>,
    events: Vec<usize>,
    buffer: Vec<u8>,
    received_bytes: u64,
}

struct MessageClient {
    stream: TcpStream,
    /// The first bytes of the message in flight, which tell it from others.
    number: [u8; 8],
    /// The number of its bytes that have come back.
    received: usize,
}

impl Messages {
    /// Prepares to send messages of `size` bytes on these connections.
    pub(in crate::relay) fn new(pairs: Vec<Pair>, size: u64) -> Result<Self, Error> {
        let poller = Poller::new(pairs.len() * 2)?;
        let count = pairs.len();
        let (mut clients, mut servers) = (Vec::new(), Vec::new());
        for (index, Pair { client, server }) in pairs.into_iter().enumerate() {
            poller.add(&client, index)?;
            poller.add(&server, count + index)?;
            servers.push(server);
            clients.push(MessageClient {
                stream: client,
                number: [0; 8],
                received: 0,
            });
        }
        Ok(Self {
            poller,
            clients,
            servers,
            message: pattern::bytes(size),
            events: Vec::with_capacity(count * 2),
            buffer: vec![0; BUFFER_BYTES],
            received_bytes: 0,
        })
    }

    /// Makes `number` the beginning of the message.
    fn number_message(&mut self, number: [u8; 8]) {
        let length = self.message.len().min(number.len());
        self.message[..length].copy_from_slice(&number[..length]);
    }

    /// Sends back what has arrived at the server on one connection.
    fn send_back(&mut self, index: usize) -> Result<(), Error> {
        let Some(got) = receive(&self.servers[index], &mut self.buffer)? else {
            return Ok(());
        };
        send(&self.servers[index], &self.buffer[..got])
    }
}

impl Exchanges for Messages {
    fn connections(&self) -> usize {
        self.clients.len()
    }

    fn send(&mut self, index: usize) -> Result<(), Error> {
        let client = &mut self.clients[index];
        let number = u64::from_le_bytes(client.number).wrapping_add(1);
        client.number = number.to_le_bytes();
        client.received = 0;
        let number = client.number;
        self.number_message(number);
        send(&self.clients[index].stream, &self.message)
    }

    fn poll(&mut self, ready: &mut Vec<usize>) -> Result<Instant, Error> {
        let now = self.poller.poll(&mut self.events)?;
        let mut events = std::mem::take(&mut self.events);
        for index in events.drain(..) {
            match index.checked_sub(self.clients.len()) {
                Some(server) => self.send_back(server)?,
                None => ready.push(index),
            }
        }
        self.events = events;
        Ok(now)
    }

    fn receive(&mut self, index: usize) -> Result<bool, Error> {
        let number = self.clients[index].number;
        self.number_message(number);
        let client = &mut self.clients[index];
        let Some(got) = receive(&client.stream, &mut self.buffer)? else {
            return Ok(false);
        };
        let expected = self.message.get(client.received..client.received + got);
        if expected != Some(&self.buffer[..got]) {
            return Err(Error::WrongResult(
                "a message came back changed, or more than once".into(),
            ));
        }
        client.received += got;
        self.received_bytes += got as u64;
        Ok(client.received == self.message.len())
    }

    fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    fn idle(&self) -> Duration {
        self.poller.idle()
    }
}

/// Receives what has arrived, which is less than the buffer holds. Returns `None` if nothing has.
fn receive(stream: &TcpStream, buffer: &mut [u8]) -> Result<Option<usize>, Error> {
    match rustix::net::recv(stream, &mut *buffer, RecvFlags::empty()) {
        Ok((_, 0)) => Err(closed_early()),
        Ok((_, got)) => Ok(Some(got)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(error) => Err(error).context(|| "a connection failed".into()),
    }
}

/// Sends a message, for which the socket must have room.
fn send(stream: &TcpStream, bytes: &[u8]) -> Result<(), Error> {
    match rustix::net::send(stream, bytes, SendFlags::NOSIGNAL) {
        Ok(sent) if sent == bytes.len() => Ok(()),
        Ok(_) | Err(Errno::AGAIN) => Err(Error::WrongResult(
            "it takes no messages: the send queue is full".into(),
        )),
        Err(error) => Err(error).context(|| "a connection failed".into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::super::test_relay::pair_through;
    use super::*;
    use crate::load::{self, LoadTimes, LoadUsage, closed_loop::ClosedLoop};

    fn round_trips(
        size: u64,
        change: impl FnMut(usize, &mut Vec<u8>) + Send + 'static,
    ) -> Result<LoadUsage, Error> {
        let pairs = vec![pair_through(|_, _| {}), pair_through(change)];
        let mut messages = Messages::new(pairs, size)?;
        let mut closed_loop = ClosedLoop::start(&mut messages)?;
        let times = LoadTimes {
            warm_up: Duration::ZERO,
            window: Duration::from_millis(100),
        };
        load::measure(&mut closed_loop, std::process::id(), times)
    }

    #[test]
    fn messages_come_back() {
        for size in [1, 10_000] {
            let usage = round_trips(size, |_, _| {}).unwrap().usage;
            assert!(usage.received_bytes > 2 * size, "{size}");
        }
    }

    #[test]
    fn changed_and_repeated_messages_are_errors() {
        let message = |size, change: fn(usize, &mut Vec<u8>)| match round_trips(size, change) {
            Err(Error::WrongResult(message)) => message,
            other => panic!("{other:?}"),
        };
        for (size, change) in [
            (1, (|_, bytes| bytes[0] ^= 1) as fn(usize, &mut Vec<u8>)),
            (1, |_, bytes| bytes.push(bytes[0])),
            (1024, |_, bytes| *bytes.last_mut().unwrap() ^= 1),
        ] {
            let message = message(size, change);
            assert!(message.contains("changed, or more than once"), "{message}");
        }
    }
}
