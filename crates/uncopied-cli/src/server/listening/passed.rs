//! Listening sockets passed by the service manager (socket activation).

use std::env;

use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;

use crate::error::Error;

use super::listeners::BoundListener;

/// The maximum number of sockets that the service manager may pass.
const MAX_PASSED_SOCKETS: usize = 256;

/// The sockets passed by the service manager (`LISTEN_FDS`), or the error that explains why they
/// cannot be used.
pub(crate) struct PassedSockets(Result<Vec<BoundListener>, Error>);

impl PassedSockets {
    /// Takes ownership of the sockets, and unsets `LISTEN_FDS` and `LISTEN_PID`, so that child
    /// processes do not use the same descriptors. Must be called first in `main`: before a
    /// descriptor is opened, because passed sockets are identified by their descriptor numbers, and
    /// before a thread is started, because other threads may read the environment while this
    /// changes it.
    pub(crate) fn from_environment() -> Self {
        Self(take_passed().map_err(Error::PassedSockets))
    }

    /// Returns the sockets, or the error if they cannot be used.
    pub(crate) fn into_listeners(self) -> Result<Vec<BoundListener>, Error> {
        self.0
    }
}

fn take_passed() -> Result<Vec<BoundListener>, String> {
    let Some(count) = env::var_os("LISTEN_FDS") else {
        return Ok(vec![]);
    };
    // The sockets are meant for this process only if LISTEN_PID is its process ID. Otherwise, this
    // process has inherited variables that were meant for another process, and that do not describe
    // its own descriptors.
    let is_for_this_process =
        env::var("LISTEN_PID").is_ok_and(|pid| pid.parse() == Ok(std::process::id()));
    if !is_for_this_process {
        return Ok(vec![]);
    }
    let count = count.to_str().and_then(|count| count.parse().ok());
    if count.is_none_or(|count: usize| count > MAX_PASSED_SOCKETS) {
        return Err(format!("not a number up to {MAX_PASSED_SOCKETS}"));
    }
    let mut sockets = ListenFd::from_env();
    (0..sockets.len())
        .map(|index| take_one(&mut sockets, index))
        .collect()
}

fn take_one(sockets: &mut ListenFd, index: usize) -> Result<BoundListener, String> {
    let unusable = || {
        format!(
            "socket number {} is not a TCP or Unix stream socket",
            index + 1
        )
    };
    let listener = match sockets.take_tcp_listener(index) {
        Ok(Some(listener)) => BoundListener::Tcp(listener),
        _ => match sockets.take_unix_listener(index) {
            Ok(Some(listener)) => BoundListener::Unix {
                listener,
                _file: None,
            },
            _ => return Err(unusable()),
        },
    };
    let is_listening = match &listener {
        BoundListener::Tcp(listener) => socket_acceptconn(listener),
        BoundListener::Unix { listener, .. } => socket_acceptconn(listener),
    };
    match is_listening {
        Ok(true) => Ok(listener),
        _ => Err(format!("socket number {} is not listening", index + 1)),
    }
}
