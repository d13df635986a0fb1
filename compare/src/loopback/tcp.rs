//! Sets and reads the congestion control of TCP sockets.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;

use uncopied_measure::tcp::{self, ConnectError};

use crate::error::{Context, Error};

/// Sets the congestion control of a socket.
pub(crate) fn set_congestion(socket: impl AsFd, wanted: &str) -> Result<(), Error> {
    tcp::set_congestion(socket, wanted).map_err(|error| congestion_refused(wanted, &error))
}

fn congestion_refused(wanted: &str, error: &io::Error) -> Error {
    Error::Usage(format!(
        "cannot set the congestion control {wanted} on a socket ({error}): choose one of \
         net.ipv4.tcp_allowed_congestion_control with --congestion, or load its module"
    ))
}

/// Returns the name of a socket's congestion control.
pub(crate) fn congestion(socket: impl AsFd) -> Result<String, Error> {
    tcp::congestion(socket).context(|| "cannot get the congestion control of a connection".into())
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
pub(crate) fn connect(address: SocketAddr, congestion: &str) -> Result<TcpStream, Error> {
    tcp::connect(address, Some(congestion)).map_err(|error| match error {
        ConnectError::Congestion { name, source } => congestion_refused(&name, &source),
        ConnectError::Socket(source) => failed("cannot create a socket".into(), source),
        ConnectError::Connect { address, source } => {
            failed(format!("cannot connect to {address}"), source)
        }
    })
}

fn failed(what: String, source: io::Error) -> Error {
    Error::Io { what, source }
}
