//! The sockets of blocking code and of event loops.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

/// A connected stream socket, TCP or Unix, of blocking code or of an event loop of your own.
///
/// Implemented for the sockets of std, with the feature `mio` for those of mio, for [`OwnedFd`] and
/// [`BorrowedFd`], and for references, `Arc`, `Rc` and `Box` of these. Any other socket can be
/// passed as a `BorrowedFd`: `socket.as_fd()`.
///
/// Not implemented for tokio's sockets: waiting for one with `poll(2)` would hang the runtime. Use
/// the module `uncopied::tokio` for them, and do not pass their `BorrowedFd` here.
///
/// ```
/// fn blocking(file: &std::fs::File, socket: std::net::TcpStream) {
///     let sent = uncopied::send_file(file, .., &socket);
///     let sender = uncopied::Sender::new(socket);
/// }
/// ```
///
/// ```compile_fail,E0277
/// fn on_tokio(socket: tokio::net::TcpStream) {
///     let sender = uncopied::Sender::new(socket);
/// }
/// ```
///
/// ```compile_fail,E0277
/// fn on_tokio(file: &std::fs::File, socket: &tokio::net::TcpStream) {
///     let sent = uncopied::send_file(file, .., socket);
/// }
/// ```
///
/// This trait is sealed because the library relies on the descriptor: between two calls, the same
/// value must not silently refer to another socket.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a stream socket that blocking code can wait for",
    note = "for tokio's sockets, use `uncopied::tokio::Sender`, `uncopied::tokio::send_file` or \
            `SendFile::to_tokio`",
    note = "any other socket can be passed as a `BorrowedFd`: `socket.as_fd()`"
)]
pub trait StreamSocket: AsFd + sealed::Sealed {}

mod sealed {
    pub trait Sealed {}
}

macro_rules! stream_sockets {
    ($($socket:ty),*) => {
        $(
            impl sealed::Sealed for $socket {}
            impl StreamSocket for $socket {}
        )*
    };
}

stream_sockets!(
    std::net::TcpStream,
    std::os::unix::net::UnixStream,
    OwnedFd,
    BorrowedFd<'_>
);

#[cfg(feature = "mio")]
stream_sockets!(mio::net::TcpStream, mio::net::UnixStream);

macro_rules! handles_of_stream_sockets {
    ($($handle:ty),*) => {
        $(
            impl<T: StreamSocket> sealed::Sealed for $handle {}
            impl<T: StreamSocket> StreamSocket for $handle {}
        )*
    };
}

handles_of_stream_sockets!(&T, Arc<T>, Rc<T>, Box<T>);
