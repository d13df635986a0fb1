//! An eventfd that wakes the thread of a queue.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Result;

/// An eventfd that is readable once the thread of a queue has something to do. The kernel signals
/// it at each completion, and a chunk that is dropped signals it if the queue [wants](Self::want)
/// that.
#[derive(Debug)]
pub(crate) struct Signal {
    eventfd: OwnedFd,
    is_wanted: AtomicBool,
}

impl Signal {
    /// Creates an eventfd.
    ///
    /// # Errors
    ///
    /// `EMFILE`, `ENFILE`, `ENOMEM`: there is no descriptor or memory left.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            eventfd: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            is_wanted: AtomicBool::new(false),
        })
    }

    /// Asks for a signal when memory is next given back. To miss nothing, the caller must look for
    /// memory that was given back *after* this call.
    pub(crate) fn want(&self) {
        self.is_wanted.store(true, Ordering::SeqCst);
    }

    /// Signals that memory was given back, if this is wanted. Must be called after the memory was
    /// given back.
    ///
    /// Nothing is missed: a thread that waits has called [`want`](Self::want) before looking for
    /// such memory. Both sides look under the same lock, or at the same atomic, in sequentially
    /// consistent order. So either the waiting side sees the memory, or this call sees that a
    /// signal is wanted.
    pub(crate) fn raise_if_wanted(&self) {
        if self.is_wanted.swap(false, Ordering::SeqCst) {
            // The call fails only if the counter is at its maximum, and so readable already.
            let _ = rustix::io::write(&self.eventfd, &1_u64.to_ne_bytes());
        }
    }

    /// Makes the eventfd unreadable until the next signal.
    pub(crate) fn reset(&self) {
        // The call fails if there was no signal.
        let _ = rustix::io::read(&self.eventfd, &mut [0; 8]);
    }
}

impl AsFd for Signal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }
}
