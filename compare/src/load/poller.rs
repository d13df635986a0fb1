//! Finds out which connections have something to receive, without ever sleeping.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::time::Timespec;

use crate::error::{Context, Error};
use crate::interrupt;

/// A contender from which nothing arrives for this long is considered failed.
pub(crate) const STALL_LIMIT: Duration = Duration::from_secs(5);

/// The time limit of each `epoll_wait`. It is 0, because the poller must not sleep.
const NO_WAIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// Edge-triggered epoll that is asked again and again instead of waiting.
///
/// If the load generator slept whenever nothing has arrived, the contender would have to wake it,
/// and the time for that would count as the contender's. How often that happens depends on chance,
/// and on how quickly the contender sends, so it hides differences between contenders.
pub(crate) struct Poller {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    last_poll: Instant,
    last_poll_was_empty: bool,
    last_progress: Instant,
    idle: Duration,
}

impl Poller {
    /// Creates a poller that reports at most `connections` connections at once.
    pub(crate) fn new(connections: usize) -> Result<Self, Error> {
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

    /// Makes a socket non-blocking and adds it. [`Self::poll`] will report it as `index` when
    /// something has arrived on it.
    pub(crate) fn add(&self, socket: impl AsFd, index: usize) -> Result<(), Error> {
        self.add_for(socket, index, epoll::EventFlags::IN)
    }

    /// Like [`Self::add`], but the socket will be reported when there is room to send.
    pub(crate) fn add_sender(&self, socket: impl AsFd, index: usize) -> Result<(), Error> {
        self.add_for(socket, index, epoll::EventFlags::OUT)
    }

    fn add_for(
        &self,
        socket: impl AsFd,
        index: usize,
        event: epoll::EventFlags,
    ) -> Result<(), Error> {
        rustix::io::ioctl_fionbio(&socket, true)
            .and_then(|()| {
                let data = epoll::EventData::new_u64(index as u64);
                epoll::add(&self.epoll, socket, data, event | epoll::EventFlags::ET)
            })
            .context(|| "cannot watch a socket".into())
    }

    /// Adds the connections on which something has happened to `ready`. Returns the current time.
    ///
    /// Connections that are in `ready` already are those that the caller has not finished with:
    /// while there are any, the load generator counts as busy. They may be added again.
    ///
    /// # Errors
    ///
    /// [`Error::WrongResult`] if nothing has happened for a long time, and [`Error::Interrupted`]
    /// after Ctrl-C or SIGTERM.
    pub(crate) fn poll(&mut self, ready: &mut Vec<usize>) -> Result<Instant, Error> {
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
        ready.extend(self.events.drain(..).map(|event| event.data.u64() as usize));
        self.last_poll_was_empty = ready.is_empty();
        if !ready.is_empty() {
            self.last_progress = now;
        } else if now > self.last_progress + STALL_LIMIT {
            return Err(Error::WrongResult("it stopped responding".into()));
        }
        Ok(now)
    }

    /// The time that has passed so far between polls that found nothing: the time that a load
    /// generator that waits would have slept.
    pub(crate) fn idle(&self) -> Duration {
        self.idle
    }
}
