//! Opening listening sockets at addresses.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::set_tcp_user_timeout;
use socket2::{Domain, Socket, Type};
use uncopied_http::{Listener, StreamOptions};

use crate::error::Error;
use crate::flags::ListenAddress;

/// Connections that the kernel completes and queues before they are accepted. It caps this at
/// `net.core.somaxconn`, by default 4096.
const LISTEN_BACKLOG: i32 = 4096;

/// A socket that listens, not yet registered with an event loop.
pub(crate) enum BoundListener {
    /// A TCP socket.
    Tcp(TcpListener),
    /// A Unix socket.
    Unix {
        listener: UnixListener,
        /// Removes the socket's file when dropped. `None` if another process made the file.
        _file: Option<SocketFile>,
    },
}

impl BoundListener {
    /// Registers the socket with one more event loop, and returns its listener. Needs tokio's
    /// runtime.
    pub(crate) fn register(&self, options: StreamOptions) -> io::Result<Listener> {
        match self {
            Self::Tcp(listener) => Listener::from_tcp(listener.try_clone()?, options),
            Self::Unix { listener, .. } => Listener::from_unix(listener.try_clone()?, options),
        }
    }

    /// Makes the kernel end a connection whose peer has acknowledged no byte, or kept its window
    /// closed, for `time`. Connections inherit the option (`tcp(7)`), so none needs a call of its
    /// own. Unix sockets have no such option.
    pub(crate) fn set_send_timeout(&self, time: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => {
                let millis = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
                Ok(set_tcp_user_timeout(listener, millis)?)
            }
            Self::Unix { .. } => Ok(()),
        }
    }

    /// The URL to give to a client.
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

/// Opens a socket at every address. Passed sockets replace the default address, and are served in
/// addition to explicit ones.
pub(crate) fn open(
    addresses: &[ListenAddress],
    passed: Vec<BoundListener>,
) -> Result<Vec<BoundListener>, Error> {
    let mut listeners = passed;
    let default = [ListenAddress::default()];
    let addresses = if addresses.is_empty() && listeners.is_empty() {
        &default
    } else {
        addresses
    };
    for address in addresses {
        listeners.push(
            match address {
                ListenAddress::Tcp(address) => tcp(*address, true).map(BoundListener::Tcp),
                ListenAddress::AllInterfaces(port) => all_interfaces(*port).map(BoundListener::Tcp),
                ListenAddress::Unix(path) => {
                    refuse_other_file(path)?;
                    unix(path).map(|(listener, file)| BoundListener::Unix {
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
    Ok(listeners)
}

/// Listens at a TCP address. An IPv6 socket also accepts IPv4 clients unless `v6_only`, whatever
/// the system default.
fn tcp(address: SocketAddr, v6_only: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(v6_only)?;
    }
    // Otherwise the previous process's connections in TIME_WAIT would block the port.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(LISTEN_BACKLOG)?;
    Ok(socket.into())
}

fn all_interfaces(port: u16) -> io::Result<TcpListener> {
    match tcp((Ipv6Addr::UNSPECIFIED, port).into(), false) {
        // The machine has no IPv6.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::AFNOSUPPORT) => {
            tcp((Ipv4Addr::UNSPECIFIED, port).into(), false)
        }
        outcome => outcome,
    }
}

/// The file of a Unix socket that this process made. Dropping it removes the file, unless another
/// process has replaced it with its own socket.
pub(crate) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            // A file that stays does no harm: the next start replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

fn refuse_other_file(path: &Path) -> Result<(), Error> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            Err(Error::NotASocket(path.to_owned()))
        }
        _ => Ok(()),
    }
}

/// Listens at `path`. A socket that refuses connections was left behind by a process that has
/// exited, and is replaced. A socket that accepts them is in use.
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
    socket.listen(LISTEN_BACKLOG)?;
    Ok((socket.into(), file))
}

fn is_stale(path: &Path) -> bool {
    UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_but_a_live_one_is_not() {
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
    fn a_file_that_is_not_a_socket_is_never_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        fs::write(&path, "bytes").unwrap();
        let addresses = [ListenAddress::Unix(path.clone())];
        let outcome = open(&addresses, vec![]);
        assert!(matches!(outcome, Err(Error::NotASocket(_))));
        assert!(path.exists());
    }
}
