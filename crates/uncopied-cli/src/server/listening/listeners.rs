//! Binds the listening sockets.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use socket2::{Domain, Socket, Type};

use crate::error::Error;
use crate::flags::{ListenAddress, SocketMode};

/// The maximum number of connections that wait in the kernel to be accepted. The kernel caps this
/// number at `net.core.somaxconn`, which is 4096 by default.
const LISTEN_BACKLOG: i32 = 4096;

/// A listening socket, owned by the control thread.
pub(crate) enum BoundListener {
    /// A TCP socket.
    Tcp(TcpListener),
    /// A Unix socket.
    Unix {
        listener: UnixListener,
        /// Removes the socket's file when dropped. `None` if another process created the file.
        _file: Option<SocketFile>,
    },
}

/// A descriptor of its own for a socket that a [`BoundListener`] owns.
pub(crate) enum DuplicateListener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl BoundListener {
    /// Duplicates the socket. Called once for each worker, which registers the duplicate with its
    /// event loop.
    pub(crate) fn duplicate(&self) -> io::Result<DuplicateListener> {
        match self {
            Self::Tcp(listener) => listener.try_clone().map(DuplicateListener::Tcp),
            Self::Unix { listener, .. } => listener.try_clone().map(DuplicateListener::Unix),
        }
    }
}

/// Listens on each of `addresses`, or on the default address if there are neither addresses nor
/// passed sockets. Returns the passed sockets and the new ones.
pub(crate) fn open(
    addresses: &[ListenAddress],
    socket_mode: Option<SocketMode>,
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
        listeners.push(bind(address, "--listen", socket_mode, false)?);
    }
    Ok(listeners)
}

/// Listens on an address, which `flag` gives. With `reuse_port`, other processes of the same user
/// can listen on the same TCP address if they set the option as well (`SO_REUSEPORT`, `socket(7)`).
pub(crate) fn bind(
    address: &ListenAddress,
    flag: &'static str,
    socket_mode: Option<SocketMode>,
    reuse_port: bool,
) -> Result<BoundListener, Error> {
    match address {
        ListenAddress::Tcp(address) => tcp(*address, true, reuse_port).map(BoundListener::Tcp),
        ListenAddress::AllInterfaces(port) => {
            all_interfaces(*port, reuse_port).map(BoundListener::Tcp)
        }
        ListenAddress::Unix(path) => {
            refuse_other_file(path)?;
            unix(path, socket_mode).map(|(listener, file)| BoundListener::Unix {
                listener,
                _file: Some(file),
            })
        }
    }
    .map_err(|source| Error::Listen {
        address: address.to_string(),
        flag,
        source,
    })
}

/// Listens on a TCP address. An IPv6 socket also accepts IPv4 clients if `v6_only` is false.
/// `v6_only` overrides the system default (`net.ipv6.bindv6only`).
fn tcp(address: SocketAddr, v6_only: bool, reuse_port: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(v6_only)?;
    }
    // Without this option, binding would fail while connections of a previous server on this port
    // are in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(LISTEN_BACKLOG)?;
    Ok(socket.into())
}

fn all_interfaces(port: u16, reuse_port: bool) -> io::Result<TcpListener> {
    match tcp((Ipv6Addr::UNSPECIFIED, port).into(), false, reuse_port) {
        // Use IPv4 only, because this machine has no IPv6.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::AFNOSUPPORT) => {
            tcp((Ipv4Addr::UNSPECIFIED, port).into(), false, reuse_port)
        }
        outcome => outcome,
    }
}

/// The file of a Unix socket that this process created. Dropping this removes the file, unless
/// another process has replaced it with a socket of its own.
pub(crate) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            // Ignore errors: a file that is left behind does no harm, because the next start
            // replaces it.
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

/// Listens on a Unix socket at `path`. An existing socket that refuses connections is replaced,
/// because no process listens on it. If the existing socket accepts connections, it is in use, and
/// this fails with `AddrInUse`. With a mode, nobody can connect before the socket has that mode.
fn unix(path: &Path, mode: Option<SocketMode>) -> io::Result<(UnixListener, SocketFile)> {
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
    if let Some(SocketMode(mode)) = mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
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
        let (live, file) = unix(&path, None).unwrap();
        let refused = unix(&path, None).map(drop).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        drop((live, file));
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_file_that_another_process_has_replaced_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let (_listener, file) = unix(&path, None).unwrap();
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
        let outcome = open(&addresses, None, vec![]);
        assert!(matches!(outcome, Err(Error::NotASocket(_))));
        assert!(path.exists());
    }
}
