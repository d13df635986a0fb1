//! Finds out which connections have something to receive, without ever sleeping.

use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::time::Timespec;

use crate::error::{Context, Error};
use crate::interrupt;

/// A server that sends nothing for this long is considered failed.
pub(super) const STALL_LIMIT: Duration = Duration::from_secs(5);

/// The time limit of each `epoll_wait`. It is 0, because the poller must not sleep.
const NO_WAIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// Edge-triggered epoll that is asked again and again instead of waiting.
///
/// If the load generator slept whenever nothing has arrived, the server would have to wake it, and
/// the time for that would count as the server's. How often that happens depends on chance, and on
/// how quickly the server sends, so it hides differences between servers.
pub(super) struct Poller {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    last_poll: Instant,
    last_poll_was_empty: bool,
    last_progress: Instant,
    idle: Duration,
}

impl Poller {
    /// Creates a poller for at most `connections` connections.
    pub(super) fn new(connections: usize) -> Result<Self, Error> {
        let now = Instant::now();
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)
                .context(|| "cannot create an epoll instance".into())?,
            events: Vec::with_capacity(connections.max(1)),
            last_poll: now,
            last_poll_was_empty: false,
            last_progress: now,
            idle: Duration::ZERO,
        })
    }

    /// Adds a connection, which [`Self::poll`] will report as `index`.
    pub(super) fn add(&self, stream: &TcpStream, index: usize) -> Result<(), Error> {
        stream
            .set_nonblocking(true)
            .and_then(|()| {
                let data = epoll::EventData::new_u64(index as u64);
                let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
                epoll::add(&self.epoll, stream, data, flags).map_err(io::Error::from)
            })
            .context(|| "cannot watch a socket".into())
    }

    /// Adds the connections on which something has arrived to `ready`. Returns the current time.
    ///
    /// # Errors
    ///
    /// [`Error::WrongResult`] if nothing has arrived for a long time, and [`Error::Interrupted`]
    /// after Ctrl-C or SIGTERM.
    pub(super) fn poll(&mut self, ready: &mut Vec<usize>) -> Result<Instant, Error> {
        interrupt::check()?;
        match epoll::wait(
            &self.epoll,
            spare_capacity(&mut self.events),
            Some(&NO_WAIT),
        ) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context(|| "cannot poll the connections".into()),
        }
        let now = Instant::now();
        // After a poll that found something, the load generator was busy with it.
        if self.last_poll_was_empty {
            self.idle += now - self.last_poll;
        }
        self.last_poll = now;
        self.last_poll_was_empty = self.events.is_empty();
        if !self.events.is_empty() {
            self.last_progress = now;
        } else if now > self.last_progress + STALL_LIMIT {
            return Err(Error::WrongResult("the server stopped responding".into()));
        }
        ready.extend(self.events.drain(..).map(|event| event.data.u64() as usize));
        Ok(now)
    }

    /// The time that has passed so far between polls that found nothing: the time that a load
    /// generator that waits would have slept.
    pub(super) fn idle(&self) -> Duration {
        self.idle
    }
}
