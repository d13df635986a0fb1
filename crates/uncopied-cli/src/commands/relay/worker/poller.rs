//! What a worker waits for: epoll, and what its events are about.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::Timespec;

use crate::commands::relay::connection::{Peer, Socket, watched};

/// The maximum number of events that one wait returns.
const MAX_EVENTS: usize = 1024;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// The inbox.
    Inbox,
    /// A listener, by its number.
    Listener(usize),
    /// One of the sockets of a connection, by its key.
    Connection(usize, Peer),
}

/// The bits of the event data that say what the rest is.
const KIND_BITS: u32 = 2;

impl Token {
    fn encode(self) -> EventData {
        let (kind, number) = match self {
            Self::Connection(key, Peer::Client) => (0, key),
            Self::Connection(key, Peer::Target) => (1, key),
            Self::Listener(number) => (2, number),
            Self::Inbox => (3, 0),
        };
        EventData::new_u64((number as u64) << KIND_BITS | kind)
    }

    fn decode(data: EventData) -> Self {
        let data = data.u64();
        // The number was a `usize`.
        let number = (data >> KIND_BITS) as usize;
        match data & ((1 << KIND_BITS) - 1) {
            0 => Self::Connection(number, Peer::Client),
            1 => Self::Connection(number, Peer::Target),
            2 => Self::Listener(number),
            _ => Self::Inbox,
        }
    }
}

/// An epoll instance.
pub(super) struct Poller {
    epoll: OwnedFd,
}

/// The events that a wait has returned. Belongs to the thread that waits.
pub(super) struct Events(Vec<epoll::Event>);

impl Events {
    pub(super) fn new() -> Self {
        Self(Vec::with_capacity(MAX_EVENTS))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Token, EventFlags)> {
        let events = self.0.iter();
        events.map(|event| (Token::decode(event.data), event.flags))
    }
}

impl Poller {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        })
    }

    /// Watches a socket of a connection, until it is closed.
    pub(super) fn watch_socket(&self, socket: &Socket, key: usize, peer: Peer) -> io::Result<()> {
        let data = Token::Connection(key, peer).encode();
        Ok(epoll::add(&self.epoll, socket, data, watched())?)
    }

    /// Watches a descriptor, which is reported as long as it is readable.
    pub(super) fn watch_readable(&self, descriptor: impl AsFd, token: Token) -> io::Result<()> {
        Ok(epoll::add(
            &self.epoll,
            descriptor,
            token.encode(),
            EventFlags::IN,
        )?)
    }

    /// Stops watching a descriptor.
    pub(super) fn forget(&self, descriptor: impl AsFd) {
        // Ignore an error: the descriptor is not watched then.
        let _ = epoll::delete(&self.epoll, descriptor);
    }

    /// Waits for events, but no longer than until a time. Returns without an event if it was
    /// interrupted.
    pub(super) fn wait(&self, events: &mut Events, until: Option<Instant>) -> io::Result<()> {
        let timeout = until.map(|until| {
            let rest = until.saturating_duration_since(Instant::now());
            timespec(rest)
        });
        events.0.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut events.0), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    // Its milliseconds fit into an `i32`: a longer wait would need `epoll_pwait2` (Linux 5.11).
    const MAX: Duration = Duration::from_secs(24 * 60 * 60);
    duration.min(MAX).try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_kernel() {
        for token in [
            Token::Inbox,
            Token::Listener(0),
            Token::Listener(7),
            Token::Connection(0, Peer::Client),
            Token::Connection(0, Peer::Target),
            Token::Connection(1 << 30, Peer::Target),
        ] {
            assert_eq!(Token::decode(token.encode()), token);
        }
    }
}
