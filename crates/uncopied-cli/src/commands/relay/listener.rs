//! The listeners of a relay: what their connections share, and their sockets.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, UnixListener};
use uncopied_http::Address;

use crate::error::Error;
use crate::flags::{ListenAddress, SocketMode};
use crate::server::listening::{Accept, BoundListener, DuplicateListener, bind};

use super::config::ListenerConfig;
use super::connection::{IdleLimits, Socket};
use super::target::Pool;

/// A listener, as its connections see it. After a reload, open connections keep the old one.
pub(super) struct RelayListener {
    /// The address on which it listens.
    pub(super) name: String,
    pub(super) config: ListenerConfig,
    pub(super) pool: Arc<Pool>,
}

impl RelayListener {
    /// Returns the targets as text.
    pub(super) fn targets(&self) -> String {
        let targets = self.config.targets.iter();
        let addresses: Vec<_> = targets.map(|target| target.address.to_string()).collect();
        addresses.join(", ")
    }

    pub(super) fn idle_limits(&self) -> IdleLimits {
        IdleLimits {
            relaying: self.config.idle_timeout,
            half_closed: self.config.half_close_timeout,
        }
    }
}

/// A listener together with its socket. Cheap to clone.
#[derive(Clone)]
pub(super) struct OpenListener {
    pub(super) socket: Arc<BoundListener>,
    pub(super) listener: Arc<RelayListener>,
}

impl OpenListener {
    /// Sets the options that accepted sockets inherit.
    pub(super) fn set_options(&self) -> io::Result<()> {
        let BoundListener::Tcp(socket) = &*self.socket else {
            return Ok(());
        };
        let config = &self.listener.config;
        set_tcp_options(SockRef::from(socket), config.nodelay, config.keepalive)
    }

    /// Registers a duplicate of the socket with the current event loop.
    pub(super) fn register(&self) -> io::Result<RegisteredListener> {
        let socket = match self.socket.duplicate()? {
            DuplicateListener::Tcp(socket) => {
                socket.set_nonblocking(true)?;
                ListeningSocket::Tcp(TcpListener::from_std(socket)?)
            }
            DuplicateListener::Unix(socket) => {
                socket.set_nonblocking(true)?;
                ListeningSocket::Unix(UnixListener::from_std(socket)?)
            }
        };
        Ok(RegisteredListener {
            socket,
            listener: Arc::clone(&self.listener),
        })
    }
}

/// Sets what both sides of a relay set on their TCP sockets.
pub(super) fn set_tcp_options(
    socket: SockRef<'_>,
    nodelay: bool,
    keepalive: Option<Duration>,
) -> io::Result<()> {
    socket.set_tcp_nodelay(nodelay)?;
    match keepalive {
        Some(time) => socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(time)),
        None => socket.set_keepalive(false),
    }
}

/// Finds the passed socket with an address, or else listens on the address. Returns the socket and
/// its address as text.
pub(super) fn open(
    address: &ListenAddress,
    passed: &mut Vec<BoundListener>,
    mode: Option<SocketMode>,
    reuse_port: bool,
) -> Result<(BoundListener, String), Error> {
    let socket = match passed
        .iter()
        .position(|socket| has_address(socket, address))
    {
        Some(index) => passed.swap_remove(index),
        None => bind(address, "LISTEN", mode, reuse_port)?,
    };
    let name = name_of(&socket);
    Ok((socket, name))
}

/// Returns the address of a socket as text.
pub(super) fn name_of(socket: &BoundListener) -> String {
    match socket {
        BoundListener::Tcp(socket) => socket
            .local_addr()
            .map_or_else(|_| "a TCP socket".to_owned(), |address| address.to_string()),
        BoundListener::Unix { listener, .. } => {
            let address = listener.local_addr().ok();
            let path = address.as_ref().and_then(|address| address.as_pathname());
            path.map_or_else(
                || "a Unix socket without a path".to_owned(),
                |path| format!("unix:{}", path.display()),
            )
        }
    }
}

fn has_address(socket: &BoundListener, wanted: &ListenAddress) -> bool {
    match (socket, wanted) {
        (BoundListener::Tcp(socket), ListenAddress::Tcp(address)) => {
            socket.local_addr().is_ok_and(|own| own == *address)
        }
        (BoundListener::Tcp(socket), ListenAddress::AllInterfaces(port)) => socket
            .local_addr()
            .is_ok_and(|own| own.port() == *port && own.ip().is_unspecified()),
        (BoundListener::Unix { listener, .. }, ListenAddress::Unix(path)) => listener
            .local_addr()
            .is_ok_and(|own| own.as_pathname() == Some(path)),
        _ => false,
    }
}

/// A listener that is registered with an event loop.
pub(super) struct RegisteredListener {
    socket: ListeningSocket,
    listener: Arc<RelayListener>,
}

enum ListeningSocket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A connection that has been accepted.
pub(super) struct Accepted {
    pub(super) socket: Socket,
    pub(super) peer: Address,
    pub(super) listener: Arc<RelayListener>,
}

impl Accept for RegisteredListener {
    type Connection = Accepted;

    async fn accept(&self) -> io::Result<Accepted> {
        let (socket, peer) = match &self.socket {
            ListeningSocket::Tcp(listener) => {
                let (socket, peer): (_, SocketAddr) = listener.accept().await?;
                (Socket::Tcp(socket), Address::Tcp(peer))
            }
            ListeningSocket::Unix(listener) => {
                let (socket, _) = listener.accept().await?;
                (Socket::Unix(socket), Address::Unix)
            }
        };
        Ok(Accepted {
            socket,
            peer,
            listener: Arc::clone(&self.listener),
        })
    }
}
