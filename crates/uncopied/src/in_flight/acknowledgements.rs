//! Memory sent by `vmsplice` to a peer on another machine, which is free once the peer has
//! acknowledged the bytes.
//!
//! The peer must be on another machine: on this one, its receive queue refers to the same pages
//! long after the acknowledgement.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::io::Result;

use super::completion::{FreeReason, SendPart};
use super::lease::Lease;
use super::registry::NotificationSource;
use crate::sys::fork::{self, OwnerProcess};
use crate::sys::{Kernel, Linux};

/// The sends that the peer of a socket has not acknowledged.
///
/// It has a descriptor of its own, because completions may outlive the sender's socket for a
/// moment.
#[derive(Debug)]
pub(crate) struct Acknowledgements {
    owner_process: OwnerProcess,
    socket: OwnedFd,
    unacknowledged: Mutex<VecDeque<UnacknowledgedSend>>,
}

#[derive(Debug)]
struct UnacknowledgedSend {
    /// The memory is free once this many bytes of the connection have been acknowledged.
    acknowledged_at: u64,
    lease: Lease,
    part: SendPart,
}

/// How often acknowledgements are polled: the kernel does not report them.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

impl Acknowledgements {
    pub(crate) fn of(socket: BorrowedFd<'_>) -> Result<Self> {
        Ok(Self {
            owner_process: OwnerProcess::current(),
            socket: rustix::io::fcntl_dupfd_cloexec(socket, 3)?,
            unacknowledged: Mutex::default(),
        })
    }

    /// Keeps the memory of a send that the socket has just accepted, until it is acknowledged.
    pub(crate) fn push(&self, kernel: &impl Kernel, lease: Lease, part: SendPart) {
        match kernel.acknowledged(self.socket.as_fd()) {
            // Bytes that were acknowledged between the two system calls are counted twice: that
            // frees the memory late, but never early.
            Ok(now) if !now.is_closed => self.lock().push_back(UnacknowledgedSend {
                acknowledged_at: now.bytes + now.outstanding,
                lease,
                part,
            }),
            _ => gift(lease, part),
        }
    }

    /// Completes the sends that have been acknowledged, and frees their memory.
    fn complete_acknowledged(&self, kernel: &impl Kernel) {
        if self.belongs_to_parent() {
            return;
        }
        let mut unacknowledged = self.lock();
        if unacknowledged.is_empty() {
            return;
        }
        let Ok(now) = kernel.acknowledged(self.socket.as_fd()) else {
            return;
        };
        let is_free =
            |send: &UnacknowledgedSend| now.outstanding == 0 || now.bytes >= send.acknowledged_at;
        let count = unacknowledged
            .iter()
            .take_while(|send| is_free(send))
            .count();
        let free: Vec<UnacknowledgedSend> = match now.is_closed {
            true => Vec::new(),
            false => unacknowledged.drain(..count).collect(),
        };
        drop(unacknowledged);
        // Completing a send runs wakers, which may call this again: the lock is released first.
        for UnacknowledgedSend { lease, part, .. } in free {
            let bytes = lease.memory().len() as u64;
            drop(lease);
            part.complete(bytes, 0, FreeReason::Acknowledged);
        }
        if now.is_closed {
            self.gift_all();
        }
    }

    /// Gifts the memory that is not acknowledged, and may never be: it is never written to again.
    pub(crate) fn gift_all(&self) {
        if self.belongs_to_parent() {
            return;
        }
        let unacknowledged = std::mem::take(&mut *self.lock());
        for UnacknowledgedSend { lease, part, .. } in unacknowledged {
            gift(lease, part);
        }
    }

    /// Whether the caller is a child of the process that sent. The lock may be held forever: a
    /// child leaves it alone.
    fn belongs_to_parent(&self) -> bool {
        !self.owner_process.is_current()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<UnacknowledgedSend>> {
        // A panic while the lock was held cannot have left the list inconsistent.
        self.unacknowledged
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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
        self.complete_acknowledged(&Linux);
    }

    fn wait(&self, limit: Duration) -> io::Result<()> {
        if self.belongs_to_parent() {
            return Err(fork::owned_by_parent());
        }
        self.reap();
        thread::sleep(limit.min(POLL_INTERVAL));
        Ok(())
    }
}
