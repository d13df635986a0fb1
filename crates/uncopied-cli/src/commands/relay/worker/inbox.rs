//! How other threads wake a worker.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};

use rustix::event::{EventfdFlags, eventfd};

/// The connections that other threads want to have their turn, and an eventfd that is readable as
/// long as the worker has not taken them.
pub(super) struct Inbox {
    messages: Mutex<Messages>,
    /// Readable after a message has arrived.
    descriptor: OwnedFd,
}

#[derive(Default)]
pub(super) struct Messages {
    /// The keys of the connections. One may have ended in the meantime, and another may have taken
    /// its key.
    pub(super) connections: Vec<usize>,
    /// Whether the worker is to look for new listeners, and whether it is to stop.
    pub(super) has_news: bool,
}

impl Inbox {
    pub(super) fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            messages: Mutex::default(),
            descriptor: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        }))
    }

    /// Tells the worker to look for new listeners, and whether it is to stop.
    pub(super) fn announce_news(&self) {
        self.lock().has_news = true;
        self.wake();
    }

    /// Returns what gives a connection its turn.
    pub(super) fn waker_for(self: &Arc<Self>, key: usize) -> Waker {
        Waker::from(Arc::new(ConnectionWaker {
            inbox: Arc::clone(self),
            key,
        }))
    }

    /// Takes all messages.
    pub(super) fn take(&self) -> Messages {
        // The counter goes first, so that a message that arrives in between makes it readable
        // again. Ignore an error: without a message, there is nothing to read.
        let _ = rustix::io::read(&self.descriptor, &mut [0; 8]);
        std::mem::take(&mut self.lock())
    }

    fn wake(&self) {
        // Ignore an error: the counter is at its maximum only if the worker is about to wake up.
        let _ = rustix::io::write(&self.descriptor, &1_u64.to_ne_bytes());
    }

    fn lock(&self) -> MutexGuard<'_, Messages> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

struct ConnectionWaker {
    inbox: Arc<Inbox>,
    key: usize,
}

impl Wake for ConnectionWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.inbox.lock().connections.push(self.key);
        self.inbox.wake();
    }
}
