//! The listeners of a relay: what their connections share, and their sockets.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt::socket_protocol;
use rustix::net::{SocketFlags, acceptfrom_with, ipproto};
use socket2::{SockRef, TcpKeepalive};
use uncopied_http::Address;

use crate::error::Error;
use crate::flags::{ListenAddress, SocketMode};
use crate::server::listening::{BoundListener, DuplicateListener, bind};

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

    /// Duplicates the socket for a worker.
    pub(super) fn duplicate(&self) -> io::Result<WorkerListener> {
        let (socket, is_tcp): (OwnedFd, _) = match self.socket.duplicate()? {
            DuplicateListener::Tcp(socket) => (socket.into(), true),
            DuplicateListener::Unix(socket) => (socket.into(), false),
        };
        rustix::io::ioctl_fionbio(&socket, true)?;
        // A socket that was passed may be something else, such as MPTCP.
        let is_plain_tcp = is_tcp && socket_protocol(&socket) == Ok(Some(ipproto::TCP));
        Ok(WorkerListener {
            socket,
            is_tcp,
            is_plain_tcp,
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

/// A listener as one worker has it. All workers share its queue.
pub(super) struct WorkerListener {
    socket: OwnedFd,
    is_tcp: bool,
    /// Whether it is TCP, and not another protocol with the same addresses.
    is_plain_tcp: bool,
    listener: Arc<RelayListener>,
}

/// A connection that has been accepted.
pub(super) struct Accepted {
    pub(super) socket: Socket,
    pub(super) peer: Address,
    pub(super) listener: Arc<RelayListener>,
}

impl AsFd for WorkerListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl WorkerListener {
    /// Accepts a connection. Fails with `EAGAIN` if none waits.
    pub(super) fn accept(&self) -> io::Result<Accepted> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (socket, peer) = acceptfrom_with(&self.socket, flags)?;
        let peer = match self.is_tcp {
            true => peer.and_then(|peer| peer.try_into().ok()),
            false => None,
        };
        Ok(Accepted {
            socket: Socket::new(socket, self.is_plain_tcp),
            peer: peer.map_or(Address::Unix, Address::Tcp),
            listener: Arc::clone(&self.listener),
        })
    }
}
