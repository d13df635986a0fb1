//! What an access log wants to know of a connection.

use std::io;
use std::task::Poll;

/// Is told what a connection writes, and how it ends.
pub(crate) trait ConnectionObserver: Unpin {
    /// hyper has offered `offered` bytes, all that it held.
    fn wrote(&self, offered: usize, outcome: &Poll<io::Result<usize>>);

    /// The connection ends with an error. Most are peers that went away.
    fn failed(&self, error: &hyper::Error);
}

/// Nobody wants to know.
impl ConnectionObserver for () {
    fn wrote(&self, _offered: usize, _outcome: &Poll<io::Result<usize>>) {}

    fn failed(&self, _error: &hyper::Error) {}
}
