//! Accepts connections on several listeners at once, and classifies failed accepts.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use rustix::io::Errno;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::error::kernel_text;
use crate::server::warning::{WarningKind, warn_limited};

/// The pause after a failed accept, for example when the process has run out of descriptors.
pub(crate) const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// The time after which a connection that waits for a permit asks again for room. The connection
/// that was to make room may have begun a request, or none was idle.
const ROOM_INTERVAL: Duration = Duration::from_millis(250);

/// A listening socket that is registered with an event loop.
pub(crate) trait Accept: Send + 'static {
    /// What accepting returns, such as a socket and the address of its peer.
    type Connection;

    /// Accepts the next connection. Dropping the future must not lose a connection.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Connection>> + Send;
}

type PendingAccept<L> =
    Pin<Box<dyn Future<Output = (L, io::Result<<L as Accept>::Connection>)> + Send>>;

/// Accepts connections for one event loop. Each listener always has one pending accept.
pub(crate) struct Acceptor<L: Accept> {
    pending: Vec<PendingAccept<L>>,
    /// The index of the listener to poll first. After an accept, this is the listener after the one
    /// that accepted, so that a busy listener does not starve the others.
    first: usize,
}

impl<L: Accept> Acceptor<L> {
    pub(crate) fn new(listeners: impl IntoIterator<Item = L>) -> Self {
        Self {
            pending: listeners.into_iter().map(start_accept).collect(),
            first: 0,
        }
    }

    /// Returns the next connection that arrives on any of the listeners. While no connection can be
    /// accepted, for example because the process has run out of descriptors, says so, and tries
    /// again every 100 ms. Dropping the future loses no connection.
    pub(crate) async fn next(&mut self) -> L::Connection {
        loop {
            match self.accept().await {
                Ok(connection) => return connection,
                Err(error) if is_per_connection(&error) => {}
                Err(error) => {
                    report_accept_error(&error);
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    }

    async fn accept(&mut self) -> io::Result<L::Connection> {
        poll_fn(|cx| {
            let count = self.pending.len();
            for index in (0..count).map(|offset| (self.first + offset) % count) {
                if let Poll::Ready((listener, accepted)) = self.pending[index].as_mut().poll(cx) {
                    self.pending[index] = start_accept(listener);
                    self.first = (index + 1) % count;
                    return Poll::Ready(accepted);
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Accepts connections forever and passes each to `start`. Every connection takes one of
    /// `permits`. `start` must ensure that the permit is returned when the connection ends. While
    /// all permits are taken, one accepted connection waits here for a permit, and further ones
    /// wait in the kernel's queue. `ask_for_room` is called when a connection begins to wait, and
    /// at intervals until it has its permit.
    ///
    /// Accepts first, and then acquires a permit, so that no worker holds a permit without a
    /// connection, and so that room is only asked for if somebody needs it.
    pub(crate) async fn accept_all(
        mut self,
        permits: &Semaphore,
        ask_for_room: impl Fn(),
        mut start: impl FnMut(L::Connection),
    ) -> Infallible {
        loop {
            let connection = self.next().await;
            take_permit(permits, &ask_for_room).await;
            start(connection);
        }
    }
}

/// Takes a permit out of the semaphore. Waits while there is none.
async fn take_permit(permits: &Semaphore, ask_for_room: impl Fn()) {
    let mut permit = permits.try_acquire().ok();
    while permit.is_none() {
        ask_for_room();
        // The semaphore is never closed.
        permit = timeout(ROOM_INTERVAL, permits.acquire())
            .await
            .ok()
            .and_then(Result::ok);
    }
    if let Some(permit) = permit {
        permit.forget();
    }
}

/// Says that no connection can be accepted for now.
pub(crate) fn report_accept_error(error: &io::Error) {
    let hint = match Errno::from_io_error(error) {
        Some(Errno::MFILE) => "; raise the limit (ulimit -n) or lower --max-connections",
        _ => "",
    };
    let text = kernel_text(error);
    let message = format_args!("cannot accept connections for now: {text}{hint}");
    warn_limited(WarningKind::Accept, &message);
}

fn start_accept<L: Accept>(listener: L) -> PendingAccept<L> {
    Box::pin(async move {
        let accepted = listener.accept().await;
        (listener, accepted)
    })
}

/// Whether the error concerns only the connection that was to be accepted, and not the listener or
/// the process. If so, the next accept may succeed immediately, so no pause is needed. The list
/// includes the network errors that accept(2) says to treat like EAGAIN, by retrying.
pub(crate) fn is_per_connection(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::CONNABORTED
                | Errno::CONNRESET
                | Errno::INTR
                | Errno::PROTO
                | Errno::PERM
                | Errno::NETDOWN
                | Errno::NOPROTOOPT
                | Errno::HOSTDOWN
                | Errno::NONET
                | Errno::HOSTUNREACH
                | Errno::OPNOTSUPP
                | Errno::NETUNREACH
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_of_a_single_connection_are_ignored() {
        let from = |errno: Errno| io::Error::from(errno);
        for errno in [
            Errno::CONNABORTED,
            Errno::PERM,
            Errno::PROTO,
            Errno::NETUNREACH,
        ] {
            assert!(is_per_connection(&from(errno)), "{errno:?}");
        }
        for errno in [
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOBUFS,
            Errno::NOMEM,
            Errno::BADF,
        ] {
            assert!(!is_per_connection(&from(errno)), "{errno:?}");
        }
    }
}
