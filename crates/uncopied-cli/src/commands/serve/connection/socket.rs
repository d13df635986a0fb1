//! The socket of a connection: reading, and writing with a watch on the peer's progress.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BufMut;
use rustix::net::sockopt;
use tokio::io::AsyncReadExt as _;
use uncopied_http::ConnectionSocket;

use crate::server::connections::ConnectionCommand;

use super::state::{ConnectionState, Phase};

/// The socket of a connection.
pub(super) struct Socket {
    socket: ConnectionSocket,
    state: Arc<ConnectionState>,
    /// The number of bytes in the socket's queue at the last look.
    queued: u64,
}

impl Socket {
    pub(super) fn new(socket: ConnectionSocket, state: Arc<ConnectionState>) -> Self {
        Self {
            socket,
            state,
            queued: 0,
        }
    }

    pub(super) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_read_ready(cx)
    }

    /// Reads once, and appends the bytes to `buffer`. Returns 0 at the end of the stream. If this
    /// is pending, nothing has been read.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut impl BufMut,
    ) -> Poll<io::Result<usize>> {
        pin!(self.socket.read_buf(buffer)).poll(cx)
    }

    /// Sends the slices if the socket is not full. Returns 0 if it is.
    pub(super) fn try_send(&self, slices: &[IoSlice<'_>], more: bool) -> io::Result<usize> {
        loop {
            let fd = self.as_fd();
            match self
                .socket
                .try_write(|| uncopied::send_vectored(fd, slices, more))
            {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                sent => return sent,
            }
        }
    }

    /// Calls `write` whenever the socket is writable, until it returns something other than
    /// `WouldBlock` or `Interrupted`. Records whether the connection waits for the peer, and
    /// looks at the peer's progress when the control thread asks for it.
    pub(super) fn poll_write<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            if self.state.take_look() {
                self.look();
            }
            ready!(self.socket.poll_write_ready(cx))?;
            let fd = self.as_fd();
            match self.socket.try_write(|| write(fd)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.state.enter_once(Phase::Sending);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => {
                    self.state.enter(Phase::Responding);
                    return Poll::Ready(done);
                }
            }
        }
    }

    /// Records whether the peer has read bytes since the last look: if so, the time without
    /// progress begins anew. Writes that the socket accepts are recorded by `poll_write`.
    fn look(&mut self) {
        let Ok(queued) = uncopied::queued_bytes(&self.socket) else {
            return;
        };
        if queued < self.queued && self.state.phase() == Phase::Sending {
            self.state.enter(Phase::Sending);
        }
        self.queued = queued;
    }

    pub(super) fn set_cork(&self, on: bool) -> bool {
        self.socket.set_cork(on)
    }

    pub(super) fn push(&self) {
        self.socket.push();
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // If the connection was aborted while the peer was not reading, have the kernel forget the
        // bytes in the socket's queue. Otherwise it would keep them for minutes.
        if self.state.command() == ConnectionCommand::Abort && self.state.phase() == Phase::Sending
        {
            let _ = sockopt::set_socket_linger(self.as_fd(), Some(Duration::ZERO));
        }
    }
}
