//! Listening sockets: opened at addresses, or passed by the service manager.

use std::env;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use listenfd::ListenFd;
use rustix::io::Errno;
use rustix::net::sockopt::{set_tcp_user_timeout, socket_acceptconn};
use socket2::{Domain, Socket, Type};
use uncopied_http::{Listener, StreamOptions};

use crate::error::Error;
use crate::values::ListenAddress;

/// Connections that the kernel completes before they are accepted; it caps this at
/// `net.core.somaxconn` (4096 by default).
const BACKLOG: i32 = 4096;
/// The most sockets taken from the service manager.
const MAX_PASSED: usize = 256;

/// One listening socket.
pub(crate) enum Bound {
    /// A TCP socket.
    Tcp(TcpListener),
    /// A Unix socket.
    Unix {
        listener: UnixListener,
        /// Held for its drop at exit, if this process made the file.
        _file: Option<SocketFile>,
    },
}

impl Bound {
    /// The socket for one more event loop. Needs tokio's runtime.
    pub(crate) fn listener(&self, options: StreamOptions) -> io::Result<Listener> {
        match self {
            Self::Tcp(listener) => Listener::from_tcp(listener.try_clone()?, options),
            Self::Unix { listener, .. } => Listener::from_unix(listener.try_clone()?, options),
        }
    }

    /// Has the kernel end connections whose peer has acknowledged no byte, or kept its window shut, for
    /// `time`. Connections inherit it (`tcp(7)`), so that none needs a call of its own. Unix sockets have
    /// no such thing.
    pub(crate) fn limit_unacknowledged(&self, time: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => {
                let millis = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
                Ok(set_tcp_user_timeout(listener, millis)?)
            }
            Self::Unix { .. } => Ok(()),
        }
    }

    /// What to type into a client.
    pub(crate) fn url(&self) -> String {
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => format!("http://{address}/"),
                Err(error) => format!("a socket without an address ({error})"),
            },
            Self::Unix { listener, .. } => {
                let address = listener.local_addr().ok();
                match address.as_ref().and_then(|address| address.as_pathname()) {
                    Some(path) => format!("unix:{}", path.display()),
                    None => "a Unix socket without a path".to_owned(),
                }
            }
        }
    }
}

/// Opens every address. Passed sockets stand in for the default address and join the others.
pub(crate) fn open(
    addresses: &[ListenAddress],
    passed: PassedSockets,
) -> Result<Vec<Bound>, Error> {
    let mut bound = passed.0?;
    let default = [ListenAddress::default()];
    let addresses = if addresses.is_empty() && bound.is_empty() {
        &default
    } else {
        addresses
    };
    for address in addresses {
        bound.push(
            match address {
                ListenAddress::Tcp(at) => tcp(*at, true).map(Bound::Tcp),
                ListenAddress::Everywhere(port) => everywhere(*port).map(Bound::Tcp),
                ListenAddress::Unix(path) => {
                    refuse_other_file(path)?;
                    unix(path).map(|(listener, file)| Bound::Unix {
                        listener,
                        _file: Some(file),
                    })
                }
            }
            .map_err(|source| Error::Listen {
                address: address.to_string(),
                source,
            })?,
        );
    }
    Ok(bound)
}

/// An IPv6 socket takes IPv4 clients as well unless `v6_only`, whatever the machine's default is.
fn tcp(address: SocketAddr, v6_only: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(v6_only)?;
    }
    // Without it, connections of the previous process in TIME_WAIT would keep the port.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn everywhere(port: u16) -> io::Result<TcpListener> {
    match tcp((Ipv6Addr::UNSPECIFIED, port).into(), false) {
        // A machine without IPv6.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::AFNOSUPPORT) => {
            tcp((Ipv4Addr::UNSPECIFIED, port).into(), false)
        }
        outcome => outcome,
    }
}

/// The file of a Unix socket that this process made. Removed when dropped, unless another process
/// has put its own socket there since.
pub(crate) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            // Nothing is lost if it stays: the next start replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|facts| (facts.dev(), facts.ino()))
}

fn refuse_other_file(path: &Path) -> Result<(), Error> {
    match fs::symlink_metadata(path) {
        Ok(facts) if !facts.file_type().is_socket() => Err(Error::NotASocket(path.to_owned())),
        _ => Ok(()),
    }
}

/// Listens at `path`. A socket left behind by a process that is gone refuses connections and is
/// replaced; one that takes them is in use.
fn unix(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let bind = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&socket2::SockAddr::unix(path)?)?;
        Ok(socket)
    };
    let socket = match bind() {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(path) => {
            fs::remove_file(path)?;
            bind()
        }
        outcome => outcome,
    }?;
    let file = SocketFile {
        path: path.to_owned(),
        identity: identity(path)?,
    };
    socket.listen(BACKLOG)?;
    Ok((socket.into(), file))
}

fn is_stale(path: &Path) -> bool {
    UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
}

/// The sockets that the service manager passed (`LISTEN_FDS`), or why they cannot be used.
pub(crate) struct PassedSockets(Result<Vec<Bound>, Error>);

impl PassedSockets {
    /// Takes the sockets over and unsets the variables, so that no child takes them as well. Call
    /// it first of all in `main`.
    pub(crate) fn from_environment() -> Self {
        Self(take_passed().map_err(Error::PassedSockets))
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        drop(UnixListener::bind(&path).unwrap());
        let (live, file) = unix(&path).unwrap();
        let refused = unix(&path).map(drop).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        drop((live, file));
        assert!(!path.exists());
    }

    #[test]
    fn the_file_of_another_process_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let (_listener, file) = unix(&path).unwrap();
        fs::rename(&path, directory.path().join("old.sock")).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(file);
        assert!(path.exists());
    }

    #[test]
    fn a_file_that_is_no_socket_is_never_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        fs::write(&path, "bytes").unwrap();
        let addresses = [ListenAddress::Unix(path.clone())];
        let outcome = open(&addresses, PassedSockets(Ok(vec![])));
        assert!(matches!(outcome, Err(Error::NotASocket(_))));
        assert!(path.exists());
    }
}
