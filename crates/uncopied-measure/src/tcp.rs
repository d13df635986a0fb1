//! The congestion control of TCP sockets, and what the kernel knows about a connection.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

pub use uncopied::TcpFacts;

/// Why a connection with a congestion control cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No socket can be created.
    #[error("cannot create a socket")]
    Socket(#[source] io::Error),
    /// The kernel does not have the congestion control, or does not allow it to this user.
    #[error("cannot set the congestion control {name} on a socket")]
    Congestion {
        /// The name that was asked for.
        name: String,
        /// The error of `setsockopt(2)`.
        source: io::Error,
    },
    /// The peer cannot be reached, or refuses the connection.
    #[error("cannot connect to {address}")]
    Connect {
        /// The address of the peer.
        address: SocketAddr,
        /// The error of `connect(2)`.
        source: io::Error,
    },
}

/// Sets the congestion control of a socket.
///
/// # Errors
///
/// `ENOENT` if the kernel has none of that name, and `EPERM` if this user may not choose it.
pub fn set_congestion(socket: impl AsFd, name: &str) -> io::Result<()> {
    Ok(sockopt::set_tcp_congestion(socket, name)?)
}

/// Returns the name of a socket's congestion control.
///
/// # Errors
///
/// Those of `getsockopt(2)`.
pub fn congestion(socket: impl AsFd) -> io::Result<String> {
    Ok(sockopt::tcp_congestion(socket)?)
}

/// Connects to `address` with the given congestion control, or with the default of the machine.
///
/// The algorithm is set before connecting, because some algorithms pace a connection starting with
/// its first packet.
///
/// # Errors
///
/// See [`ConnectError`].
pub fn connect(address: SocketAddr, congestion: Option<&str>) -> Result<TcpStream, ConnectError> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC;
    let socket: OwnedFd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)
        .map_err(|error| ConnectError::Socket(error.into()))?;
    if let Some(name) = congestion {
        set_congestion(&socket, name).map_err(|source| ConnectError::Congestion {
            name: name.to_owned(),
            source,
        })?;
    }
    rustix::net::connect(&socket, &address).map_err(|error| ConnectError::Connect {
        address,
        source: error.into(),
    })?;
    Ok(socket.into())
}

/// Returns what the kernel knows about a connection (`TCP_INFO`, `tcp(7)`).
///
/// # Errors
///
/// Those of `getsockopt(2)`, for a socket that is not TCP.
pub fn facts(socket: impl AsFd) -> io::Result<TcpFacts> {
    uncopied::tcp_facts(socket.as_fd())
}

/// Returns how many bytes a program has taken out of a socket so far: those that have arrived
/// without those that are still in the queue.
///
/// # Errors
///
/// Those of `getsockopt(2)` and of `ioctl(2)` with `FIONREAD`.
pub fn taken_bytes(socket: impl AsFd) -> io::Result<u64> {
    // In this order, the difference is never too large: what arrives in between is left out.
    let arrived = facts(&socket)?.received_bytes;
    let queued = rustix::io::ioctl_fionread(&socket)?;
    Ok(arrived.saturating_sub(queued))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_connection_has_the_congestion_control_and_counts_bytes() -> Result<(), io::Error> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let connected = connect(listener.local_addr()?, Some("reno"));
        let mut stream = connected.map_err(io::Error::other)?;
        assert_eq!(congestion(&stream)?, "reno");
        let mut peer = listener.accept()?.0;
        stream.write_all(&[1; 100_000])?;
        peer.read_exact(&mut [0; 70_000])?;
        let taken = taken_bytes(&peer)?;
        assert!(taken <= 70_000, "{taken}");
        peer.read_exact(&mut [0; 30_000])?;
        assert_eq!(taken_bytes(&peer)?, 100_000);
        assert_eq!(facts(&peer)?.received_bytes, 100_000);
        Ok(())
    }

    #[test]
    fn the_failed_step_is_named() {
        let address = SocketAddr::from(([127, 0, 0, 1], 9));
        let failed = connect(address, Some("no-such-algorithm"));
        assert!(matches!(failed, Err(ConnectError::Congestion { .. })));
    }
}
