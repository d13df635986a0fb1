//! The load that shows how many connections per second a relay can take: each connection is opened,
//! has one round trip of one byte, and is closed by the client.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::{RelayTarget, closed_early};
use crate::error::{Context, Error};
use crate::load::Load;
use crate::load::poller::Poller;
use crate::loopback::tcp;

/// Connections that are opened and closed, a fixed number of them at a time.
pub(in crate::relay) struct Connections<'a> {
    poller: Poller,
    relay: SocketAddr,
    congestion: &'a str,
    target: &'a RelayTarget,
    clients: Vec<Client>,
    /// The connections that the relay has opened. The poller reports them with an index that
    /// follows those of the clients and that of the listener.
    servers: Vec<Option<TcpStream>>,
    free_servers: Vec<usize>,
    ready: Vec<usize>,
    completed: u64,
}

struct Client {
    stream: TcpStream,
    sent: u8,
}

impl<'a> Connections<'a> {
    /// Opens `count` connections through the relay that listens on `relay`.
    pub(in crate::relay) fn open(
        relay: SocketAddr,
        target: &'a RelayTarget,
        congestion: &'a str,
        count: u16,
    ) -> Result<Self, Error> {
        let count = usize::from(count);
        let mut load = Self {
            poller: Poller::new(count * 4)?,
            relay,
            congestion,
            target,
            clients: Vec::with_capacity(count),
            servers: Vec::new(),
            free_servers: Vec::new(),
            ready: Vec::new(),
            completed: 0,
        };
        load.poller.add(target.listener(), count)?;
        for index in 0..count {
            let client = load.open_client(index)?;
            load.clients.push(client);
        }
        Ok(load)
    }

    /// Opens a connection, and sends a byte on it. On loopback, connecting does not wait for the
    /// relay to accept.
    fn open_client(&self, index: usize) -> Result<Client, Error> {
        let stream = tcp::connect(self.relay, self.congestion)?;
        stream
            .set_nodelay(true)
            .context(|| "cannot set up a connection".into())?;
        self.poller.add(&stream, index)?;
        let sent = (self.completed % 251) as u8;
        send_byte(&stream, sent)?;
        Ok(Client { stream, sent })
    }

    fn accept(&mut self) -> Result<(), Error> {
        while let Some(stream) = self.target.listener().accept_waiting()? {
            stream
                .set_nodelay(true)
                .context(|| "cannot set up a connection".into())?;
            let number = self.free_servers.pop().unwrap_or_else(|| {
                self.servers.push(None);
                self.servers.len() - 1
            });
            self.poller.add(&stream, self.clients.len() + 1 + number)?;
            self.servers[number] = Some(stream);
        }
        Ok(())
    }

    /// Sends back the byte that has arrived at the server, or closes the connection at its end.
    fn serve(&mut self, number: usize) -> Result<(), Error> {
        let Some(stream) = &self.servers[number] else {
            return Ok(());
        };
        match receive_byte(stream)? {
            Received::Nothing => {}
            // If the relay resets the connection before its client has the byte, the client fails.
            Received::Byte(byte) => drop(send_byte(stream, byte)),
            Received::End => {
                self.servers[number] = None;
                self.free_servers.push(number);
            }
        }
        Ok(())
    }

    /// Compares the byte that has come back, and replaces the connection by a new one.
    fn complete(&mut self, index: usize) -> Result<(), Error> {
        let client = &self.clients[index];
        match receive_byte(&client.stream)? {
            Received::Nothing => Ok(()),
            Received::End => Err(closed_early()),
            Received::Byte(byte) if byte == client.sent => {
                self.completed += 1;
                self.clients[index] = self.open_client(index)?;
                Ok(())
            }
            Received::Byte(_) => Err(Error::WrongResult("a byte came back changed".into())),
        }
    }
}

impl Load for Connections<'_> {
    fn run_until(&mut self, end: Instant) -> Result<(), Error> {
        loop {
            let now = self.poller.poll(&mut self.ready)?;
            let mut ready = std::mem::take(&mut self.ready);
            for index in ready.drain(..) {
                match index.checked_sub(self.clients.len()) {
                    None => self.complete(index)?,
                    Some(0) => self.accept()?,
                    Some(after_listener) => self.serve(after_listener - 1)?,
                }
            }
            self.ready = ready;
            if now >= end {
                return Ok(());
            }
        }
    }

    /// Each completed connection has received one byte.
    fn received_bytes(&self) -> u64 {
        self.completed
    }

    fn idle(&self) -> Duration {
        self.poller.idle()
    }
}

/// What has arrived on a connection.
enum Received {
    Nothing,
    Byte(u8),
    End,
}

fn receive_byte(stream: &TcpStream) -> Result<Received, Error> {
    let mut bytes = [0; 2];
    match rustix::net::recv(stream, &mut bytes[..], RecvFlags::empty()) {
        // A relay may reset its connection to the server once the client has closed its own.
        Ok((_, 0)) | Err(Errno::CONNRESET) => Ok(Received::End),
        Ok((_, 1)) => Ok(Received::Byte(bytes[0])),
        Ok(_) => Err(Error::WrongResult("a byte was sent twice".into())),
        Err(Errno::AGAIN | Errno::INTR) => Ok(Received::Nothing),
        Err(error) => Err(error).context(|| "a connection failed".into()),
    }
}

/// Sends one byte. A new connection always has room for it.
fn send_byte(stream: &TcpStream, byte: u8) -> Result<(), Error> {
    rustix::net::send(stream, &[byte], SendFlags::NOSIGNAL)
        .map(drop)
        .context(|| "a connection failed".into())
}
