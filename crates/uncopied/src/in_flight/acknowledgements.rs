//! Memory that went out by reference to a peer on another machine, and comes back when that peer has
//! acknowledged it.
//!
//! It must be on another machine: on this one its queue holds the same pages long after.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::io::Result;

use super::completion::{FreeReason, NotificationSource, SendPart};
use super::lease::Lease;
use crate::sys::fork::{self, OwnerProcess};
use crate::sys::{Kernel, Linux};

/// What the peer has not acknowledged.
///
/// It has a descriptor of its own, for completions that outlive the sender's socket for a moment.
#[derive(Debug)]
pub(crate) struct Acknowledgements {
    owner_process: OwnerProcess,
    socket: OwnedFd,
    waiting: Mutex<VecDeque<Unacknowledged>>,
}

#[derive(Debug)]
struct Unacknowledged {
    /// Free once so many bytes of the connection have been acknowledged.
    at: u64,
    lease: Lease,
    part: SendPart,
}

/// Nobody says when an acknowledgement comes: it is looked for at such intervals.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

impl Acknowledgements {
    pub(crate) fn of(socket: BorrowedFd<'_>) -> Result<Self> {
        Ok(Self {
            owner_process: OwnerProcess::current(),
            socket: rustix::io::fcntl_dupfd_cloexec(socket, 3)?,
            waiting: Mutex::default(),
        })
    }

    /// Keeps what the socket has just taken, until it is acknowledged.
    pub(crate) fn push(&self, kernel: &impl Kernel, lease: Lease, part: SendPart) {
        match kernel.acknowledged(self.socket.as_fd()) {
            // What was acknowledged between the two answers counts twice: late, and never early.
            Ok(now) if !now.is_closed => self.lock().push_back(Unacknowledged {
                at: now.bytes + now.outstanding,
                lease,
                part,
            }),
            _ => gift(lease, part),
        }
    }

    /// Takes back what has been acknowledged.
    fn take_back(&self, kernel: &impl Kernel) {
        if self.is_of_parent() {
            return;
        }
        let mut waiting = self.lock();
        if waiting.is_empty() {
            return;
        }
        let Ok(now) = kernel.acknowledged(self.socket.as_fd()) else {
            return;
        };
        let is_free = |waiting: &Unacknowledged| now.outstanding == 0 || now.bytes >= waiting.at;
        let count = waiting
            .iter()
            .take_while(|waiting| is_free(waiting))
            .count();
        let free: Vec<Unacknowledged> = match now.is_closed {
            true => Vec::new(),
            false => waiting.drain(..count).collect(),
        };
        drop(waiting);
        // Whoever is woken may come back here.
        for Unacknowledged { lease, part, .. } in free {
            let bytes = lease.memory().len() as u64;
            drop(lease);
            part.complete(bytes, 0, FreeReason::Acknowledged);
        }
        if now.is_closed {
            self.gift_all();
        }
    }

    /// Gives away what is not acknowledged, and may never be: nobody writes to it again.
    pub(crate) fn gift_all(&self) {
        if self.is_of_parent() {
            return;
        }
        let waiting = std::mem::take(&mut *self.lock());
        for Unacknowledged { lease, part, .. } in waiting {
            gift(lease, part);
        }
    }

    /// Whether a child process looks at what its parent has lent. The lock may be held for ever.
    fn is_of_parent(&self) -> bool {
        !self.owner_process.is_current()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Unacknowledged>> {
        // The list is whole between any two of the statements that could panic.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn gift(lease: Lease, part: SendPart) {
    let bytes = lease.memory().len() as u64;
    lease.memory().gift();
    drop(lease);
    part.complete(bytes, 0, FreeReason::Gifted);
}

impl NotificationSource for Acknowledgements {
    fn reap(&self) {
        self.take_back(&Linux);
    }

    fn wait(&self, limit: Duration) -> io::Result<()> {
        if self.is_of_parent() {
            return Err(fork::owned_by_parent());
        }
        self.reap();
        thread::sleep(limit.min(POLL_INTERVAL));
        Ok(())
    }
}
