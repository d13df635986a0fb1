//! Gives each thread one ring for each tokio runtime that sends on it, and one for senders outside
//! any runtime. All connections of the thread share it.
//!
//! On tokio, each thread of a runtime has a ring. A task of the runtime processes the ring's
//! notifications as they arrive, and thus wakes the tasks that await
//! [completions](crate::Completion). Outside any runtime, each thread has a ring too, but there is
//! no such task: the notifications are processed when a completion is polled or waited for.
//!
//! A send takes one system call and returns at once, as `AsyncWrite` requires. A caller that can
//! wait until its task is polled again can have its send batched with those of other connections,
//! in one system call.

use std::cell::RefCell;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Weak};

use rustix::event::PollFlags;
use rustix::io::Result;

#[cfg(feature = "tokio")]
use super::batch_queue::BatchQueue;
use super::ring::{RING_RETIRED, Ring};
use crate::in_flight::reaper::{self, Orphan};
use crate::in_flight::{Leases, NotificationSource, SendPart, registry};
#[cfg(feature = "tokio")]
use owner_runtime::OwnerRuntime;

#[cfg(feature = "tokio")]
mod owner_runtime;

/// A ring of a thread. It is shared by all senders that the thread runs in one tokio runtime or, if
/// it was created outside any runtime, by all senders that the thread runs outside runtimes.
///
/// If the thread or the runtime ends while memory is in flight, the ring is handed to the [reaper],
/// which keeps the memory allocated until the notifications have arrived.
pub(crate) struct ThreadRing {
    ring: Arc<Ring>,
    owner_runtime: OwnerRuntime,
    #[cfg(feature = "tokio")]
    batch_queue: BatchQueue,
}

thread_local! {
    /// The rings of this thread: one for each tokio runtime that has run senders on it, and one for
    /// senders outside any runtime.
    static RINGS: RefCell<Vec<Arc<ThreadRing>>> = const { RefCell::new(Vec::new()) };
}

impl ThreadRing {
    /// Returns the ring of this thread for the current tokio runtime or, if there is no current
    /// runtime, for use outside any runtime. Creates the ring if the thread has none yet.
    ///
    /// # Errors
    ///
    /// - Any error of [`Ring::new`].
    /// - On tokio, any errno of `eventfd(2)` or `epoll_ctl(2)`.
    /// - [`RING_RETIRED`] if the thread is ending and its thread-local values have been dropped.
    ///
    /// # Panics
    ///
    /// Panics if the runtime was built without tokio's I/O driver. Such a runtime cannot have
    /// sockets either.
    pub(crate) fn of_thread() -> Result<Arc<Self>> {
        RINGS
            .try_with(Self::find_or_create)
            .map_err(|_| RING_RETIRED)?
    }

    fn find_or_create(rings: &RefCell<Vec<Arc<Self>>>) -> Result<Arc<Self>> {
        let is_usable = |it: &&Arc<Self>| it.owner_runtime.is_current() && !it.ring.is_retired();
        if let Some(usable) = rings.borrow().iter().find(is_usable) {
            return Ok(Arc::clone(usable));
        }
        let new = Arc::new(Self::new()?);
        let mut all = rings.take();
        let (retired, mut kept): (Vec<_>, Vec<_>) = mem::take(&mut all)
            .into_iter()
            .partition(|it| it.ring.is_retired());
        kept.push(Arc::clone(&new));
        rings.replace(kept);
        // Dropping a ring aborts its notification task, which may run code that uses `rings`. So
        // the retired rings are dropped only now, when `rings` is not borrowed.
        drop(retired);
        Ok(new)
    }

    fn new() -> Result<Self> {
        let ring = Arc::new(Ring::new()?);
        let source: Weak<Ring> = Arc::downgrade(&ring);
        registry::register(source);
        let owner_runtime = OwnerRuntime::of(&ring)?;
        Ok(Self {
            ring,
            owner_runtime,
            #[cfg(feature = "tokio")]
            batch_queue: BatchQueue::default(),
        })
    }

    /// Returns the source of the notifications for sends with this ring.
    pub(crate) fn notification_source(&self) -> Arc<dyn NotificationSource> {
        Arc::clone(&self.ring) as Arc<dyn NotificationSource>
    }

    /// Sends the memory held by `leases`, and returns at once with the number of bytes that the
    /// socket accepted.
    ///
    /// The leases are held until the kernel is done with the memory; then `part` is completed. If
    /// the send fails, `part` is dropped and does not count in the outcome.
    ///
    /// # Errors
    ///
    /// The same as [`Ring::send`].
    pub(crate) fn send(
        &self,
        sink: BorrowedFd<'_>,
        leases: impl Into<Leases>,
        part: SendPart,
    ) -> Result<usize> {
        self.ring.send(sink, leases.into(), part)
    }

    /// Returns the queue of sends that wait for the next batch.
    #[cfg(feature = "tokio")]
    pub(super) fn batch_queue(&self) -> &BatchQueue {
        &self.batch_queue
    }

    /// Submits the sends that wait for the next batch, with as few system calls as possible.
    #[cfg(feature = "tokio")]
    pub(super) fn send_batch(&self) {
        self.batch_queue.send_all(&self.ring);
    }
}

impl Drop for ThreadRing {
    fn drop(&mut self) {
        if !self.ring.belongs_to_parent() {
            self.owner_runtime.stop_task();
            retire(&self.ring);
        }
    }
}

/// Stops the ring from accepting further sends. If memory is in flight, hands the ring to the
/// reaper.
fn retire(ring: &Arc<Ring>) {
    ring.retire();
    if !ring.belongs_to_parent() && ring.in_flight() > 0 {
        reaper::adopt(Box::new(OrphanedRing(Arc::clone(ring))));
    }
}

/// A retired ring with memory in flight.
struct OrphanedRing(Arc<Ring>);

impl Orphan for OrphanedRing {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn ready_for(&self) -> PollFlags {
        PollFlags::IN
    }

    fn reap(&self) -> usize {
        let before = self.0.in_flight();
        self.0.reap();
        before.saturating_sub(self.0.in_flight())
    }

    fn is_done(&self) -> bool {
        self.0.in_flight() == 0
    }

    /// Does nothing, because a ring has no sockets of its own to reset. The sockets that it sent to
    /// either are still open and belong to other code, or have been closed, in which case the
    /// kernel itself gives up on an unresponsive peer.
    fn give_up(&self) {}
}

/// Stands in for the `OwnerRuntime` of tokio: without the `tokio` feature, no ring belongs to a
/// runtime.
#[cfg(not(feature = "tokio"))]
struct OwnerRuntime;

#[cfg(not(feature = "tokio"))]
impl OwnerRuntime {
    fn of(_ring: &Arc<Ring>) -> Result<Self> {
        Ok(Self)
    }

    fn is_current(&self) -> bool {
        true
    }

    fn stop_task(&self) {}
}

#[cfg(test)]
mod tests;
