//! The tokio runtime that all asynchronous contenders use.

use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use crate::error::{Context, Error};

/// Creates a runtime that runs one event loop on the calling thread. Every contender has a single
/// event loop, so that all have the same resources.
pub(crate) fn current_thread() -> Result<Runtime, Error> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context(|| "cannot start the runtime".into())
}

/// Makes a connected socket non-blocking, and registers it with the current runtime.
pub(crate) fn tokio_stream(stream: std::net::TcpStream) -> Result<TcpStream, Error> {
    stream
        .set_nonblocking(true)
        .and_then(|()| TcpStream::from_std(stream))
        .context(|| "cannot hand the socket to tokio".into())
}
