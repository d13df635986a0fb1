//! A socket of either kind, and how it is closed.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep};
use uncopied::relay::RelayError;
use uncopied::tokio::Relay;

use crate::commands::relay::stats::Direction;

/// The maximum time for which a connection that has failed waits until the peer has received what
/// was sent to it.
const MAX_DELIVERY_TIME: Duration = Duration::from_secs(5);

/// The interval at which such a connection looks whether the peer has received everything.
const DELIVERY_INTERVAL: Duration = Duration::from_millis(20);

/// A connected socket.
#[derive(Debug)]
pub(in crate::commands::relay) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
        }
    }
}

impl Socket {
    /// Reads once, and appends at most `room` bytes to `buffer`. Returns 0 at the end of the
    /// stream. Dropping the future loses no bytes.
    pub(super) async fn read_some(&self, buffer: &mut Vec<u8>, room: usize) -> io::Result<usize> {
        use bytes::BufMut as _;
        loop {
            let mut limited = (&mut *buffer).limit(room);
            let read = match self {
                Self::Tcp(socket) => {
                    socket.readable().await?;
                    socket.try_read_buf(&mut limited)
                }
                Self::Unix(socket) => {
                    socket.readable().await?;
                    socket.try_read_buf(&mut limited)
                }
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    }

    /// Returns the address of this end. `None` for a Unix socket.
    pub(super) fn local_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(socket) => socket.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    /// Waits until the peer's host has received what was sent to it, but only for a bounded time.
    pub(super) async fn wait_until_delivered(&self) {
        let end = Instant::now() + MAX_DELIVERY_TIME;
        while uncopied::queued_bytes(self).is_ok_and(|bytes| bytes > 0) && Instant::now() < end {
            sleep(DELIVERY_INTERVAL).await;
        }
    }

    /// Closes the socket so that the peer finds the stream cut, and not ended: it would take the
    /// bytes of a stream that has ended for all there are. The kernel forgets what the peer has not
    /// received.
    pub(in crate::commands::relay) fn reset(self) {
        // Ignore an error: a Unix socket has no such option, and the socket is closed all the same.
        let _ = set_socket_linger(&self, Some(Duration::ZERO));
    }
}

/// Moves bytes of one stream. See [`Relay::poll`].
pub(super) fn poll_relay(
    relay: &mut Relay,
    context: &mut Context<'_>,
    direction: Direction,
    client: &Socket,
    target: &Socket,
) -> Poll<Result<(), RelayError>> {
    macro_rules! poll {
        ($client:expr, $target:expr) => {
            match direction {
                Direction::ToTarget => relay.poll_a_to_b(context, $client, $target),
                Direction::ToClient => relay.poll_b_to_a(context, $client, $target),
            }
        };
    }
    match (client, target) {
        (Socket::Tcp(client), Socket::Tcp(target)) => poll!(client, target),
        (Socket::Tcp(client), Socket::Unix(target)) => poll!(client, target),
        (Socket::Unix(client), Socket::Tcp(target)) => poll!(client, target),
        (Socket::Unix(client), Socket::Unix(target)) => poll!(client, target),
    }
}
