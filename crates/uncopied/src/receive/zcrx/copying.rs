//! Receives with ordinary calls, from the sockets that cannot be received from without copying.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, Result};
use rustix::net::RecvFlags;

use super::chunk::{Budget, Chunk};
use crate::sys::zcrx::Signal;

/// The maximum number of bytes that one call receives.
const RECEIVE_MAX_BYTES: usize = 64 << 10;

/// The maximum number of sockets that one look at the epoll instance finds readable.
const EVENTS_PER_WAIT: usize = 64;

/// The token of the signal. No socket has it.
const SIGNAL_TOKEN: u64 = u64::MAX;

/// Waits for the signal of a queue and for its copying sockets, and receives from the latter.
pub(super) struct Copying {
    epoll: OwnedFd,
    signal: Arc<Signal>,
    budget: Arc<Budget>,
    /// The sockets to try next. The others are watched by `epoll`.
    readable: VecDeque<u64>,
}

impl Copying {
    /// Creates an epoll instance. Chunks hold at most about `limit` bytes together.
    pub(super) fn new(signal: Arc<Signal>, limit: usize) -> Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(
            &epoll,
            &*signal,
            EventData::new_u64(SIGNAL_TOKEN),
            EventFlags::IN,
        )?;
        Ok(Self {
            epoll,
            budget: Arc::new(Budget::new(limit, Arc::clone(&signal))),
            signal,
            readable: VecDeque::new(),
        })
    }

    /// Starts to receive from a socket.
    pub(super) fn add(&mut self, token: u64, socket: BorrowedFd<'_>) -> Result<()> {
        // Nothing is watched until the socket has been found empty.
        epoll::add(
            &self.epoll,
            socket,
            EventData::new_u64(token),
            EventFlags::ONESHOT,
        )?;
        self.readable.push_back(token);
        Ok(())
    }

    /// Stops receiving from a socket that was added.
    pub(super) fn remove(&mut self, token: u64, socket: BorrowedFd<'_>) {
        self.readable.retain(|&it| it != token);
        // The call cannot fail for a socket that was added.
        let _ = epoll::delete(&self.epoll, socket);
    }

    /// Returns the next socket to [receive](Self::receive) from, unless chunks hold all memory.
    pub(super) fn next_readable(&mut self) -> Option<u64> {
        if self.readable.is_empty() || self.budget.is_exhausted() {
            return None;
        }
        self.readable.pop_front()
    }

    /// Whether a socket has something to receive, but chunks hold all memory.
    pub(super) fn is_starved(&self) -> bool {
        !self.readable.is_empty() && self.budget.is_exhausted()
    }

    /// Receives from a socket. Returns `None` at the end of the stream. If the result is bytes, the
    /// socket is tried again later.
    ///
    /// # Errors
    ///
    /// - `EAGAIN`: there is nothing to receive now. The socket is watched from then on.
    /// - Another errno: that of `recv(2)` or of `epoll_ctl(2)`. The socket is no longer tried.
    pub(super) fn receive(&mut self, token: u64, socket: BorrowedFd<'_>) -> Result<Option<Chunk>> {
        let mut bytes = Vec::with_capacity(RECEIVE_MAX_BYTES);
        let received = loop {
            match rustix::net::recv(socket, spare_capacity(&mut bytes), RecvFlags::DONTWAIT) {
                Err(Errno::INTR) => {}
                result => break result,
            }
        };
        match received {
            Ok(_) if bytes.is_empty() => Ok(None),
            Ok(_) => {
                self.readable.push_back(token);
                Ok(Some(Chunk::copied(bytes, &self.budget)))
            }
            Err(Errno::AGAIN) => {
                let interest = EventFlags::IN | EventFlags::RDHUP | EventFlags::ONESHOT;
                epoll::modify(&self.epoll, socket, EventData::new_u64(token), interest)?;
                Err(Errno::AGAIN)
            }
            Err(errno) => Err(errno),
        }
    }

    /// Waits for the signal, for a copying socket, or for `ring` to be readable, for at most
    /// `limit`. Returns whether there was anything.
    ///
    /// # Errors
    ///
    /// The errno of `poll(2)` or `epoll_wait(2)`.
    pub(super) fn wait(
        &mut self,
        ring: Option<BorrowedFd<'_>>,
        limit: Option<Duration>,
    ) -> Result<bool> {
        // A limit that is too long for the kernel is none.
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        let epoll = self.epoll.as_fd();
        let mut awaited = [
            PollFd::from_borrowed_fd(epoll, PollFlags::IN),
            PollFd::from_borrowed_fd(ring.unwrap_or(epoll), PollFlags::IN),
        ];
        match poll(&mut awaited, limit.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(true),
            Err(errno) => return Err(errno),
        }
        if awaited[0].revents().is_empty() {
            return Ok(true);
        }
        let mut events = Vec::with_capacity(EVENTS_PER_WAIT);
        match epoll::wait(
            &self.epoll,
            spare_capacity(&mut events),
            Some(&Timespec::default()),
        ) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        for event in events {
            match event.data.u64() {
                SIGNAL_TOKEN => self.signal.reset(),
                token => self.readable.push_back(token),
            }
        }
        Ok(true)
    }
}

impl AsFd for Copying {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
