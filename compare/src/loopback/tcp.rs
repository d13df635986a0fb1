//! Sets and reads the congestion control of TCP sockets.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::error::{Context, Error};

/// Sets the congestion control of a socket.
pub(crate) fn set_congestion(socket: impl AsFd, wanted: &str) -> Result<(), Error> {
    sockopt::set_tcp_congestion(socket, wanted).map_err(|error| {
        Error::Usage(format!(
            "cannot set the congestion control {wanted} on a socket ({error}): choose one of \
             net.ipv4.tcp_allowed_congestion_control with --congestion, or load its module"
        ))
    })
}

/// Returns the name of a socket's congestion control.
pub(crate) fn congestion(socket: impl AsFd) -> Result<String, Error> {
    sockopt::tcp_congestion(socket)
        .context(|| "cannot get the congestion control of a connection".into())
}

/// Returns an error unless `reported`, the congestion control that a sender reports, is `wanted`.
pub(crate) fn check_reported_congestion(reported: &str, wanted: &str) -> Result<(), Error> {
    if reported != wanted {
        return Err(Error::WrongResult(format!(
            "its congestion control was {reported}, not {wanted}"
        )));
    }
    Ok(())
}

/// Connects to `address` with the given congestion control.
///
/// The algorithm is set before connecting, because some algorithms pace a connection starting with
/// its first packet.
pub(crate) fn connect(address: SocketAddr, congestion: &str) -> Result<TcpStream, Error> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket: OwnedFd = rustix::net::socket(family, SocketType::STREAM, None)
        .context(|| "cannot create a socket".into())?;
    set_congestion(&socket, congestion)?;
    rustix::net::connect(&socket, &address).context(|| format!("cannot connect to {address}"))?;
    Ok(socket.into())
}
