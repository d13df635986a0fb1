//! Accepts connections as [`Stream`]s.

use std::io;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::Path;

use tokio::net::{TcpListener, ToSocketAddrs, UnixListener};

use crate::address::Address;
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
        UnixListener::bind(path).map(Self::from)
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

    /// Wraps tokio's [`TcpListener`] or [`UnixListener`]. The same as [`From`], under a name that
    /// says what it converts.
    #[must_use]
    pub fn from_tokio(listener: impl Into<Self>) -> Self {
        listener.into()
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

    /// Returns the socket and the options if this is a TCP listener.
    #[cfg(feature = "axum")]
    pub(crate) fn into_tcp(self) -> Option<(TcpListener, StreamOptions)> {
        match self.socket {
            ListeningSocket::Tcp(listener) => Some((listener, self.options)),
            ListeningSocket::Unix(_) => None,
        }
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
                    Stream::accepted(socket, self.options.clone()),
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

/// Sets `TCP_NODELAY` on the listener, so that accepted connections inherit it.
impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        // Ignore an error: every TCP socket supports this option, and even without it, the
        // connections would work, only more slowly.
        let _ = rustix::net::sockopt::set_tcp_nodelay(&listener, true);
        Self {
            socket: ListeningSocket::Tcp(listener),
            options: StreamOptions::default(),
        }
    }
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self {
            socket: ListeningSocket::Unix(listener),
            options: StreamOptions::default(),
        }
    }
}
