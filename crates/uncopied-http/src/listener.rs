//! Accepts connections as [`Stream`]s.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::Path;

use tokio::net::{TcpListener, ToSocketAddrs, UnixListener};

use crate::options::StreamOptions;
use crate::stream::Stream;

/// A TCP or Unix listener whose connections send files with `sendfile`. `axum::serve` accepts the
/// listener directly (feature `axum`). With hyper, call [`accept`](Self::accept) and wrap each
/// stream in hyper-util's `TokioIo`.
///
/// ```no_run
/// # async fn serve() -> std::io::Result<()> {
/// use axum::{Router, routing::get};
/// use uncopied_http::{Listener, ServeFiles};
///
/// let app: Router = Router::new()
///     .route("/hello", get(|| async { "hello" }))
///     .fallback_service(ServeFiles::new("public")?);
/// let listener = Listener::bind("127.0.0.1:3000").await?;
/// axum::serve(listener, app).await
/// # }
/// ```
#[derive(Debug)]
pub struct Listener {
    socket: ListeningSocket,
    options: StreamOptions,
}

#[derive(Debug)]
enum ListeningSocket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// The address of a peer, or of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Address {
    /// An IP address and port.
    Tcp(SocketAddr),
    /// A Unix socket. Its path is left out, because peers rarely have one.
    Unix,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

impl Listener {
    /// Listens on a TCP address.
    ///
    /// # Errors
    ///
    /// Any error from resolving the address, `bind(2)` or `listen(2)`.
    pub async fn bind(address: impl ToSocketAddrs) -> io::Result<Self> {
        Self::tcp(TcpListener::bind(address).await?, StreamOptions::default())
    }

    /// Listens on a Unix socket at `path`.
    ///
    /// # Errors
    ///
    /// Any error from `bind(2)` or `listen(2)`.
    pub fn bind_unix(path: impl AsRef<Path>) -> io::Result<Self> {
        let socket = ListeningSocket::Unix(UnixListener::bind(path)?);
        Ok(Self {
            socket,
            options: StreamOptions::default(),
        })
    }

    /// Converts a TCP listener from the standard library. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// If the listener cannot be made non-blocking or registered with the runtime.
    pub fn from_tcp(listener: std::net::TcpListener, options: StreamOptions) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Self::tcp(TcpListener::from_std(listener)?, options)
    }

    /// Converts a Unix listener from the standard library. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// If the listener cannot be made non-blocking or registered with the runtime.
    pub fn from_unix(listener: StdUnixListener, options: StreamOptions) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            socket: ListeningSocket::Unix(UnixListener::from_std(listener)?),
            options,
        })
    }

    fn tcp(listener: TcpListener, options: StreamOptions) -> io::Result<Self> {
        // Accepted connections inherit this option (`tcp(7)`), which saves a system call per
        // connection.
        rustix::net::sockopt::set_tcp_nodelay(&listener, true)?;
        Ok(Self {
            socket: ListeningSocket::Tcp(listener),
            options,
        })
    }

    /// Sets the options of connections accepted from now on.
    #[must_use]
    pub fn options(mut self, options: StreamOptions) -> Self {
        self.options = options;
        self
    }

    /// Returns the address of this listener.
    ///
    /// # Errors
    ///
    /// Any error from `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<Address> {
        match &self.socket {
            ListeningSocket::Tcp(listener) => listener.local_addr().map(Address::Tcp),
            ListeningSocket::Unix(_) => Ok(Address::Unix),
        }
    }

    /// Accepts the next connection.
    ///
    /// # Errors
    ///
    /// Any error from `accept(2)`. Most errors concern only one connection, so the next call may
    /// succeed. `EMFILE` (the process has no file descriptor left) persists until descriptors are
    /// closed, so wait before the next call.
    ///
    /// # Cancellation
    ///
    /// Dropping the future does not lose a connection.
    pub async fn accept(&self) -> io::Result<(Stream, Address)> {
        match &self.socket {
            ListeningSocket::Tcp(listener) => {
                let (socket, peer) = listener.accept().await?;
                Ok((
                    Stream::tcp(socket, self.options.clone()),
                    Address::Tcp(peer),
                ))
            }
            ListeningSocket::Unix(listener) => {
                let (socket, _) = listener.accept().await?;
                Ok((Stream::unix(socket, self.options.clone()), Address::Unix))
            }
        }
    }
}

#[cfg(feature = "axum")]
impl axum::serve::Listener for Listener {
    type Io = Stream;
    type Addr = Address;

    async fn accept(&mut self) -> (Stream, Address) {
        loop {
            match Self::accept(self).await {
                Ok(accepted) => return accepted,
                Err(error) if concerns_one_connection(&error) => {}
                // File descriptors or memory have run out. Wait for connections to end and release
                // some.
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<Address> {
        Self::local_addr(self)
    }
}

#[cfg(feature = "axum")]
fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}

/// Lets axum's `into_make_service_with_connect_info::<Address>()` give handlers the peer's address.
#[cfg(feature = "axum")]
impl axum::extract::connect_info::Connected<axum::serve::IncomingStream<'_, Listener>> for Address {
    fn connect_info(stream: axum::serve::IncomingStream<'_, Listener>) -> Self {
        stream.remote_addr().clone()
    }
}
