//! A socket of either kind: how it is connected and closed.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_linger, socket_error};
use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};

use crate::commands::relay::target::ConnectAddress;

/// A non-blocking socket.
#[derive(Debug)]
pub(in crate::commands::relay) struct Socket {
    descriptor: OwnedFd,
    is_tcp: bool,
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Socket {
    /// Takes a socket that is non-blocking.
    pub(in crate::commands::relay) fn new(descriptor: OwnedFd, is_tcp: bool) -> Self {
        Self { descriptor, is_tcp }
    }

    /// Begins to connect to an address. The socket is connected once it is writable, and has failed
    /// if epoll reports an error.
    pub(super) fn connect(address: &ConnectAddress) -> io::Result<Self> {
        let family = match address {
            ConnectAddress::Tcp(SocketAddr::V4(_)) => AddressFamily::INET,
            ConnectAddress::Tcp(SocketAddr::V6(_)) => AddressFamily::INET6,
            ConnectAddress::Unix(_) => AddressFamily::UNIX,
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let descriptor = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        let connected = match address {
            ConnectAddress::Tcp(address) => rustix::net::connect(&descriptor, address),
            ConnectAddress::Unix(path) => {
                let address = SocketAddrUnix::new(path.as_path())?;
                rustix::net::connect(&descriptor, &address)
            }
        };
        match connected {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(Self {
                descriptor,
                is_tcp: matches!(address, ConnectAddress::Tcp(_)),
            }),
            Err(errno) => Err(errno.into()),
        }
    }

    pub(super) fn is_tcp(&self) -> bool {
        self.is_tcp
    }

    /// Returns the error that the socket has, and clears it.
    pub(super) fn take_error(&self) -> Option<io::Error> {
        match socket_error(self) {
            Ok(Ok(())) => None,
            Ok(Err(errno)) | Err(errno) => Some(errno.into()),
        }
    }

    /// Receives once, and appends at most `room` bytes to `buffer`. Returns 0 at the end of the
    /// stream.
    pub(super) fn receive(&self, buffer: &mut Vec<u8>, room: usize) -> Result<usize, Errno> {
        let filled = buffer.len();
        buffer.resize(filled + room, 0);
        let received = rustix::io::retry_on_intr(|| {
            rustix::net::recv(self, &mut buffer[filled..], RecvFlags::empty())
        });
        let count = received.map_or(0, |(_, count)| count);
        buffer.truncate(filled + count);
        received.map(|(_, count)| count)
    }

    /// Returns the address of this end. `None` for a Unix socket.
    pub(super) fn local_address(&self) -> Option<SocketAddr> {
        let address = rustix::net::getsockname(self).ok()?;
        address.try_into().ok()
    }

    /// Whether the peer's host has received what was sent to it.
    pub(super) fn is_delivered(&self) -> bool {
        uncopied::queued_bytes(self).map_or(true, |bytes| bytes == 0)
    }

    /// Closes the socket so that the peer finds the stream cut, and not ended: it would take the
    /// bytes of a stream that has ended for all there are. The kernel forgets what the peer has not
    /// received.
    pub(in crate::commands::relay) fn reset(self) {
        self.reset_when_closed();
    }

    /// Makes closing the socket do what [`reset`](Self::reset) does.
    pub(super) fn reset_when_closed(&self) {
        // Ignore an error: a Unix socket has no such option, and the socket is closed all the same.
        let _ = set_socket_linger(self, Some(Duration::ZERO));
    }
}
