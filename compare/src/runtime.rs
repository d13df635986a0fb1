//! The tokio runtime that all asynchronous contenders use.

use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use crate::error::{Context, Error};

/// A runtime with a single event loop, because every contender has only one.
pub(crate) fn current_thread() -> Result<Runtime, Error> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context(|| "cannot start the runtime".into())
}

/// Hands a connected, blocking socket to the current runtime.
pub(crate) fn tokio_stream(stream: std::net::TcpStream) -> Result<TcpStream, Error> {
    stream
        .set_nonblocking(true)
        .and_then(|()| TcpStream::from_std(stream))
        .context(|| "cannot hand the socket to tokio".into())
}
