//! One of the two sockets of a connection, and what epoll has said about it.

use std::io;

use rustix::event::epoll::EventFlags;

use super::socket::Socket;

/// A socket that is watched with edge-triggered epoll (`EPOLLET`, `epoll(7)`): epoll tells once
/// that it became ready, and not again until a call has returned `EAGAIN`, or has left it empty or
/// full.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) socket: Socket,
    /// Whether there may be something to receive: bytes, the end of the stream, or an error.
    pub(super) is_readable: bool,
    /// Whether there may be room to send.
    pub(super) is_writable: bool,
    /// Whether epoll has reported an error, or that the connection is closed.
    pub(super) has_failed: bool,
    /// Whether a short read of a TCP socket may have another reason than that no more bytes have
    /// arrived: urgent data, at which a read ends, or the end of the stream, of which epoll does
    /// not tell twice.
    must_read_on: bool,
}

/// What the sockets of all connections are watched for. Urgent data (`EPOLLPRI`) is not relayed,
/// but a read ends before it.
pub(in crate::commands::relay) fn watched() -> EventFlags {
    EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::PRI | EventFlags::ET
}

impl Side {
    pub(super) fn new(socket: Socket) -> Self {
        Self {
            socket,
            is_readable: false,
            is_writable: false,
            has_failed: false,
            must_read_on: false,
        }
    }

    /// Records an event.
    pub(super) fn record(&mut self, flags: EventFlags) {
        let failed = EventFlags::ERR | EventFlags::HUP;
        self.is_readable |= flags.intersects(EventFlags::IN | EventFlags::RDHUP | failed);
        self.is_writable |= flags.intersects(EventFlags::OUT | failed);
        self.has_failed |= flags.intersects(failed);
        self.must_read_on |= flags
            .intersects(EventFlags::PRI | EventFlags::RDHUP | EventFlags::ERR | EventFlags::HUP);
    }

    /// Whether the socket, which is being connected, is connected.
    pub(super) fn connected(&self) -> io::Result<bool> {
        if !self.has_failed {
            return Ok(self.is_writable);
        }
        match self.socket.take_error() {
            Some(error) => Err(error),
            // A Unix socket is connected once `connect` has returned. `EPOLLHUP` alone says that
            // the target has closed it since, and what it has sent can still be received.
            None if !self.socket.is_tcp() => Ok(true),
            None => Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }

    /// Records that a read has returned fewer bytes than there was room for.
    ///
    /// Every later arrival is a new event, whether of bytes, of urgent data or of the end: it is
    /// reported although it may have happened before the read.
    pub(super) fn has_read_less(&mut self) {
        if self.socket.is_tcp() && !self.must_read_on {
            self.is_readable = false;
        }
    }
}
