//! The events of a connection that the access log needs.

use std::io;
use std::task::Poll;

/// Receives the outcome of each write of a connection, and the error that ends the connection.
pub(crate) trait ConnectionObserver: Unpin {
    /// Called after each write, with its outcome. `offered` is the number of bytes that hyper
    /// offered to the socket. These are always all bytes that hyper holds, so the access log can
    /// tell from `offered` where a response ends in the stream of bytes.
    fn wrote(&self, offered: usize, outcome: &Poll<io::Result<usize>>);

    /// Called when an error ends the connection. In most cases, the peer has disconnected.
    fn failed(&self, error: &hyper::Error);
}

/// Ignores every event. Used if there is no access log.
impl ConnectionObserver for () {
    fn wrote(&self, _offered: usize, _outcome: &Poll<io::Result<usize>>) {}

    fn failed(&self, _error: &hyper::Error) {}
}
