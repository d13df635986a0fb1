//! The socket of a connection: what TCP and Unix sockets have in common.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::net::sockopt;
use tokio::io::{AsyncRead, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// The socket of a [`Stream`](crate::Stream).
#[derive(Debug)]
#[non_exhaustive]
pub enum ConnectionSocket {
    /// A TCP connection.
    Tcp(TcpStream),
    /// A connection over a Unix socket.
    Unix(UnixStream),
}

impl ConnectionSocket {
    /// Becomes ready when there is something to read, or the peer has closed the connection. Use it
    /// to wait for a request before allocating a buffer for that request.
    ///
    /// # Errors
    ///
    /// Only if the runtime is shutting down.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(socket) => socket.poll_read_ready(cx),
            Self::Unix(socket) => socket.poll_read_ready(cx),
        }
    }

    /// Becomes ready when the socket is not known to be full.
    ///
    /// # Errors
    ///
    /// Only if the runtime is shutting down.
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(socket) => socket.poll_write_ready(cx),
            Self::Unix(socket) => socket.poll_write_ready(cx),
        }
    }

    /// Calls `write` if the socket is not known to be full. If `write` finds it full, it must
    /// return [`WouldBlock`](io::ErrorKind::WouldBlock), so that tokio waits from then on.
    ///
    /// # Errors
    ///
    /// That of `write`, or `WouldBlock` if the socket is known to be full.
    pub fn try_write<T>(&self, write: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match self {
            Self::Tcp(socket) => socket.try_io(Interest::WRITABLE, write),
            Self::Unix(socket) => socket.try_io(Interest::WRITABLE, write),
        }
    }

    /// Sets `TCP_CORK` (`tcp(7)`): while it is set, only full packets are sent. Returns whether the
    /// socket accepted the option, which only TCP has.
    pub fn set_cork(&self, on: bool) -> bool {
        match self {
            Self::Tcp(socket) => sockopt::set_tcp_cork(socket, on).is_ok(),
            Self::Unix(_) => false,
        }
    }

    /// Sends bytes that the kernel holds back so that they can share a packet with the bytes that
    /// follow. Does nothing for a Unix socket, which holds nothing back.
    pub fn push(&self) {
        if let Self::Tcp(socket) = self {
            // Setting this option flushes the socket, even if the option is already set (`tcp(7)`).
            // If setting it fails, the bytes arrive up to 200 ms later, but none is lost.
            let _ = socket.set_nodelay(true);
        }
    }
}

impl AsFd for ConnectionSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
        }
    }
}

impl AsyncRead for ConnectionSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_read(cx, buffer),
            Self::Unix(socket) => Pin::new(socket).poll_read(cx, buffer),
        }
    }
}
