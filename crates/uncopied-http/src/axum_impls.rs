//! Implementations of axum's traits.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use axum::extract::connect_info::Connected;
use axum::response::{IntoResponse, Response};
use axum::serve::{IncomingStream, ListenerExt, TapIo};

use crate::address::Address;
use crate::body::FileBody;
use crate::listener::Listener;
use crate::stream::Stream;

/// How long to wait after `accept(2)` has failed with an error that is likely to persist, such as
/// `EMFILE` (the process has no file descriptor left).
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

impl axum::serve::Listener for Listener {
    type Io = Stream;
    type Addr = Address;

    async fn accept(&mut self) -> (Stream, Address) {
        loop {
            match Self::accept(self).await {
                Ok(accepted) => return accepted,
                Err(error) => recover(&error).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<Address> {
        Self::local_addr(self)
    }
}

/// Waits before the next call of `accept(2)`, unless `error` concerns only the connection that was
/// being accepted.
async fn recover(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    let concerns_one_connection = matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    );
    if !concerns_one_connection {
        // Wait for connections to end, which releases descriptors and memory.
        tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
    }
}

/// Lets axum's `into_make_service_with_connect_info::<Address>()` give handlers the peer's address.
impl Connected<IncomingStream<'_, Listener>> for Address {
    fn connect_info(stream: IncomingStream<'_, Listener>) -> Self {
        stream.remote_addr().clone()
    }
}

/// The listener that [`Listener::tcp_only`] returns.
///
/// To supply `ConnectInfo<SocketAddr>`, [`SocketAddr`] must implement axum's trait [`Connected`]
/// for the listener. This crate cannot implement a trait of axum for a type of std (the orphan
/// rule). But axum itself implements the trait for every listener that is wrapped in its [`TapIo`].
/// The function that `TapIo` calls for each connection does nothing here.
pub type TcpOnly = TapIo<TcpOnlyListener, fn(&mut Stream)>;

/// A TCP listener for `axum::serve` whose addresses are plain [`SocketAddr`]s, like those of
/// tokio's listener; see [`Listener::tcp_only`].
#[derive(Debug)]
pub struct TcpOnlyListener {
    listener: tokio::net::TcpListener,
    options: crate::StreamOptions,
}

impl axum::serve::Listener for TcpOnlyListener {
    type Io = Stream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Stream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((socket, peer)) => {
                    return (Stream::accepted(socket, self.options.clone()), peer);
                }
                Err(error) => recover(&error).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Listener {
    /// Converts this listener for an axum app whose handlers extract `ConnectInfo<SocketAddr>`. The
    /// app needs no change: it calls `into_make_service_with_connect_info::<SocketAddr>()`, as with
    /// tokio's listener.
    ///
    /// ```no_run
    /// use std::net::SocketAddr;
    /// use axum::{Router, extract::ConnectInfo, routing::get};
    /// use uncopied_http::Listener;
    ///
    /// async fn whoami(ConnectInfo(peer): ConnectInfo<SocketAddr>) -> String {
    ///     peer.to_string()
    /// }
    ///
    /// # async fn run() -> std::io::Result<()> {
    /// let app = Router::new().route("/", get(whoami));
    /// let listener = Listener::bind("127.0.0.1:3000").await?.tcp_only()?;
    /// axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await
    /// # }
    /// ```
    ///
    /// A listener that is not converted supplies `ConnectInfo<Address>`, for TCP and Unix sockets
    /// alike.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if this listens on a Unix socket, whose peers
    /// have no `SocketAddr`.
    pub fn tcp_only(self) -> io::Result<TcpOnly> {
        let (listener, options) = self.into_tcp().ok_or_else(|| {
            let text = "a peer on a Unix socket has no IP address: use ConnectInfo<Address>";
            io::Error::new(io::ErrorKind::InvalidInput, text)
        })?;
        let do_nothing: fn(&mut Stream) = |_| {};
        Ok(TcpOnlyListener { listener, options }.tap_io(do_nothing))
    }
}

/// Creates a response with this body, status 200, and no headers; hyper adds the `Content-Length`.
/// To set headers such as `Content-Type`, return the body as the last element of a tuple:
///
/// ```
/// use axum::http::{StatusCode, header};
/// use axum::response::IntoResponse;
/// use uncopied_http::FileBody;
///
/// async fn video() -> Result<impl IntoResponse, StatusCode> {
///     let file = tokio::fs::File::open("video.mp4").await;
///     let file = file.map_err(|_| StatusCode::NOT_FOUND)?;
///     let body = FileBody::open(file, ..).await;
///     let body = body.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
///     Ok(([(header::CONTENT_TYPE, "video/mp4")], body))
/// }
/// # let app: axum::Router = axum::Router::new().route("/", axum::routing::get(video));
/// ```
impl IntoResponse for FileBody {
    fn into_response(self) -> Response {
        Response::new(Body::new(self))
    }
}
