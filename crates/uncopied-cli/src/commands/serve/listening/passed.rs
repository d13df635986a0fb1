//! Sockets that the service manager passed.

use std::env;

use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;

use crate::error::Error;

use super::listeners::Bound;

/// The most sockets taken from the service manager.
const MAX_PASSED: usize = 256;

/// The sockets that the service manager passed (`LISTEN_FDS`), or why they cannot be used.
pub(crate) struct PassedSockets(Result<Vec<Bound>, Error>);

impl PassedSockets {
    /// Takes the sockets over and unsets the variables, so that no child takes them as well. Call
    /// it first of all in `main`.
    pub(crate) fn from_environment() -> Self {
        Self(take_passed().map_err(Error::PassedSockets))
    }

    pub(crate) fn take(self) -> Result<Vec<Bound>, Error> {
        self.0
    }
}

fn take_passed() -> Result<Vec<Bound>, String> {
    // Descriptors are meant for this process only if LISTEN_PID says so. Without LISTEN_PID the
    // variable was inherited from some other process.
    let Some(count) = env::var_os("LISTEN_FDS") else {
        return Ok(vec![]);
    };
    let is_meant = env::var("LISTEN_PID").is_ok_and(|pid| pid.parse() == Ok(std::process::id()));
    if !is_meant {
        return Ok(vec![]);
    }
    let count = count.to_str().and_then(|count| count.parse().ok());
    if count.is_none_or(|count: usize| count > MAX_PASSED) {
        return Err(format!("not a number up to {MAX_PASSED}"));
    }
    let mut sockets = ListenFd::from_env();
    (0..sockets.len())
        .map(|index| take_one(&mut sockets, index))
        .collect()
}

fn take_one(sockets: &mut ListenFd, index: usize) -> Result<Bound, String> {
    let unusable = || {
        format!(
            "socket number {} is no TCP or Unix stream socket",
            index + 1
        )
    };
    let bound = match sockets.take_tcp_listener(index) {
        Ok(Some(listener)) => Bound::Tcp(listener),
        _ => match sockets.take_unix_listener(index) {
            Ok(Some(listener)) => Bound::Unix {
                listener,
                _file: None,
            },
            _ => return Err(unusable()),
        },
    };
    let listens = match &bound {
        Bound::Tcp(listener) => socket_acceptconn(listener),
        Bound::Unix { listener, .. } => socket_acceptconn(listener),
    };
    match listens {
        Ok(true) => Ok(bound),
        _ => Err(format!("socket number {} does not listen", index + 1)),
    }
}
