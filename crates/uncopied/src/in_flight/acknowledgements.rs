//! Tracks memory that was sent with `vmsplice` to a peer on another machine. The memory can be
//! reused once the peer has acknowledged the bytes.
//!
//! This does not work for a peer on the same machine: its receive queue keeps referring to the same
//! pages long after the acknowledgement.

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

/// The `vmsplice` sends of a socket that the peer has not acknowledged yet.
///
/// Owns a duplicate of the socket's descriptor, because a [`Completion`](super::Completion) that
/// refers to this value may briefly outlive the sender's socket.
#[derive(Debug)]
pub(crate) struct Acknowledgements {
    owner_process: OwnerProcess,
    socket: OwnedFd,
    unacknowledged: Mutex<VecDeque<UnacknowledgedSend>>,
}

#[derive(Debug)]
struct UnacknowledgedSend {
    /// The memory can be reused once the peer has acknowledged this number of bytes, counted from
    /// the start of the connection.
    acknowledged_at: u64,
    lease: Lease,
    part: SendPart,
}

/// The interval at which acknowledgements are polled, because the kernel does not report them.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

impl Acknowledgements {
    pub(crate) fn of(socket: BorrowedFd<'_>) -> Result<Self> {
        Ok(Self {
            owner_process: OwnerProcess::current(),
            socket: rustix::io::fcntl_dupfd_cloexec(socket, 3)?,
            unacknowledged: Mutex::default(),
        })
    }

    /// Keeps the lease of a send that the socket has just accepted, until the peer has acknowledged
    /// the bytes. If the number of acknowledged bytes cannot be read or the connection is closed,
    /// the memory is gifted instead: left to the kernel, and never written to again.
    pub(crate) fn push(&self, kernel: &impl Kernel, lease: Lease, part: SendPart) {
        match kernel.acknowledged(self.socket.as_fd()) {
            // Two system calls read `outstanding` and then `bytes`. Bytes that are acknowledged in
            // between are included in both, so the sum may be too large. The memory is then kept
            // longer than necessary, but never reused too early.
            Ok(now) if !now.is_closed => self.lock().push_back(UnacknowledgedSend {
                acknowledged_at: now.bytes + now.outstanding,
                lease,
                part,
            }),
            _ => gift(lease, part),
        }
    }

    /// Drops the leases of the sends that the peer has acknowledged, and completes these sends. If
    /// the connection is closed, nothing more will be acknowledged, so all remaining memory is
    /// gifted.
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
        // The lock is released first, because completing a send runs wakers, which may call this
        // function again.
        for UnacknowledgedSend { lease, part, .. } in free {
            let bytes = lease.memory().len() as u64;
            drop(lease);
            part.complete(bytes, 0, FreeReason::Acknowledged);
        }
        if now.is_closed {
            self.gift_all();
        }
    }

    /// Gifts the memory of all sends that have not been acknowledged: it is never written to again.
    /// Called when no further acknowledgement will arrive, or none will be read.
    pub(crate) fn gift_all(&self) {
        if self.belongs_to_parent() {
            return;
        }
        let unacknowledged = std::mem::take(&mut *self.lock());
        for UnacknowledgedSend { lease, part, .. } in unacknowledged {
            gift(lease, part);
        }
    }

    /// Whether the caller is a forked child of the process that created this value. A child must
    /// not take the lock: if a thread of the parent held the lock during the fork, the child's copy
    /// of the lock is never released.
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
