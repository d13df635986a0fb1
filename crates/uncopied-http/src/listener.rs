//! Accepting connections as [`Stream`]s.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::Path;

use tokio::net::{TcpListener, ToSocketAddrs, UnixListener};

use crate::options::Options;
use crate::stream::Stream;

/// A TCP or Unix listener whose connections send files by `sendfile`. `axum::serve` takes it as it
/// is (feature `axum`); for hyper, [`accept`](Self::accept) streams and wrap them in `TokioIo`.
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
    socket: Socket,
    options: Options,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// The address of a peer, or of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// An IP address and port.
    Tcp(SocketAddr),
    /// A Unix socket. Peers rarely have a name.
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
    /// Whatever resolving, binding and listening answer.
    pub async fn bind(address: impl ToSocketAddrs) -> io::Result<Self> {
        Self::tcp(TcpListener::bind(address).await?, Options::default())
    }

    /// Listens on a Unix socket at `path`.
    ///
    /// # Errors
    ///
    /// Whatever binding and listening answer.
    pub fn bind_unix(path: impl AsRef<Path>) -> io::Result<Self> {
        let socket = Socket::Unix(UnixListener::bind(path)?);
        Ok(Self {
            socket,
            options: Options::default(),
        })
    }

    /// Takes a TCP listener of the standard library's. Needs a tokio runtime around it.
    ///
    /// # Errors
    ///
    /// If the listener cannot be made non-blocking or be watched.
    pub fn from_tcp(listener: std::net::TcpListener, options: Options) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Self::tcp(TcpListener::from_std(listener)?, options)
    }

    /// Takes a Unix listener of the standard library's. Needs a tokio runtime around it.
    ///
    /// # Errors
    ///
    /// If the listener cannot be made non-blocking or be watched.
    pub fn from_unix(listener: StdUnixListener, options: Options) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            socket: Socket::Unix(UnixListener::from_std(listener)?),
            options,
        })
    }

    fn tcp(listener: TcpListener, options: Options) -> io::Result<Self> {
        // Connections inherit it (`tcp(7)`), so that none needs a call of its own.
        rustix::net::sockopt::set_tcp_nodelay(&listener, true)?;
        Ok(Self {
            socket: Socket::Tcp(listener),
            options,
        })
    }

    /// How the connections send.
    #[must_use]
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// The address that it listens on.
    ///
    /// # Errors
    ///
    /// Whatever `getsockname(2)` answers.
    pub fn local_addr(&self) -> io::Result<Address> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().map(Address::Tcp),
            Socket::Unix(_) => Ok(Address::Unix),
        }
    }

    /// The next connection.
    ///
    /// # Errors
    ///
    /// Whatever `accept(2)` answers; most of it is the fate of one connection, and the next call may
    /// succeed. `EMFILE` stays until descriptors are closed: wait a little.
    ///
    /// # Cancellation
    ///
    /// Dropping the future loses no connection.
    pub async fn accept(&self) -> io::Result<(Stream, Address)> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let (socket, peer) = listener.accept().await?;
                Ok((
                    Stream::tcp(socket, self.options.clone()),
                    Address::Tcp(peer),
                ))
            }
            Socket::Unix(listener) => {
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
                Err(error) if is_of_one_connection(&error) => {}
                // Descriptors or memory are short: connections that end give some back.
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<Address> {
        Self::local_addr(self)
    }
}

#[cfg(feature = "axum")]
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}

/// The peer's address, for axum's `into_make_service_with_connect_info::<Address>()`.
#[cfg(feature = "axum")]
impl axum::extract::connect_info::Connected<axum::serve::IncomingStream<'_, Listener>> for Address {
    fn connect_info(stream: axum::serve::IncomingStream<'_, Listener>) -> Self {
        stream.remote_addr().clone()
    }
}
