//! Opens connections through a relay, and finds the two ends of each.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use crate::error::{Context, Error};
use crate::load::poller::STALL_LIMIT;
use crate::loopback::listener::Listener;
use crate::loopback::receiver::Receiver;
use crate::loopback::tcp;
use crate::process::Server;

/// The two ends of a connection through a relay. Both are blocking, with a read timeout.
pub(in crate::relay) struct Pair {
    /// The client's socket, which is connected to the relay.
    pub(super) client: TcpStream,
    /// The server's socket, to which the relay has connected.
    pub(super) server: TcpStream,
}

/// The server that all relays connect to.
pub(in crate::relay) struct RelayTarget {
    receiver: Receiver,
    congestion: String,
    /// The number of connections that were opened.
    opened: u64,
}

impl RelayTarget {
    /// Listens on `address`, with the given congestion control.
    pub(in crate::relay) fn listen(address: SocketAddr, congestion: &str) -> Result<Self, Error> {
        Ok(Self {
            receiver: Receiver::on(TcpListener::bind(address), congestion)?,
            congestion: congestion.to_owned(),
            opened: 0,
        })
    }

    /// The listener.
    pub(super) fn listener(&self) -> &Listener {
        self.receiver.listener()
    }

    /// The receiver, for comparing what arrives.
    pub(in crate::relay) fn receiver(&mut self) -> &mut Receiver {
        &mut self.receiver
    }

    /// Opens `count` connections through `relay`.
    pub(in crate::relay) fn open_pairs(
        &mut self,
        relay: &mut Server,
        count: u16,
    ) -> Result<Vec<Pair>, Error> {
        (0..count).map(|_| self.open_pair(relay)).collect()
    }

    /// Opens a connection, and sends a number through it to the server and back. The relay may also
    /// have connected without this number, for a client that has gone already.
    fn open_pair(&mut self, relay: &mut Server) -> Result<Pair, Error> {
        self.opened += 1;
        let number = self.opened.to_le_bytes();
        let mut client = tcp::connect(relay.address(), &self.congestion)?;
        let failed = || "a new connection failed".to_owned();
        set_up(&client).context(failed)?;
        client.write_all(&number).context(failed)?;
        let mut server = loop {
            let mut server = self.receiver.listener().accept(relay.process())?;
            set_up(&server).context(failed)?;
            let mut received = [0; 8];
            match server.read_exact(&mut received) {
                Ok(()) if received == number => break server,
                Ok(()) => {
                    return Err(Error::WrongResult(
                        "a new connection begins with wrong bytes".into(),
                    ));
                }
                Err(error) if is_closed(error.kind()) => {}
                Err(error) => return Err(error).context(failed),
            }
        };
        server.write_all(&number).context(failed)?;
        let mut received = [0; 8];
        client.read_exact(&mut received).context(failed)?;
        if received != number {
            return Err(Error::WrongResult(
                "the first bytes of the server arrived changed".into(),
            ));
        }
        Ok(Pair { client, server })
    }
}

/// Sets the options of one end.
pub(super) fn set_up(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(STALL_LIMIT))?;
    stream.set_read_timeout(Some(STALL_LIMIT))
}

fn is_closed(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset)
}
