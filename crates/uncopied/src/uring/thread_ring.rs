//! One ring for all connections of a thread.
//!
//! On tokio, each thread of a runtime has a ring, and a task of the runtime processes its
//! notifications as they arrive, which wakes the tasks that await [completions](crate::Completion).
//! Elsewhere each thread has a ring as well, but no task: its notifications are processed when a
//! completion is polled or waited for.
//!
//! A send is one system call, and returns at once, as `AsyncWrite` requires. A caller that can wait
//! for the event loop to come round again can batch its sends into one call.

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

/// The ring of a thread. Every sender of the thread has a handle to it.
///
/// If the thread or the runtime ends while memory is in flight, the ring is handed to the
/// [reaper], which keeps the memory until the notifications have arrived.
pub(crate) struct ThreadRing {
    ring: Arc<Ring>,
    owner_runtime: OwnerRuntime,
    #[cfg(feature = "tokio")]
    batch_queue: BatchQueue,
}

thread_local! {
    /// The rings of this thread: one for each runtime that runs on it.
    static RINGS: RefCell<Vec<Arc<ThreadRing>>> = const { RefCell::new(Vec::new()) };
}

impl ThreadRing {
    /// Returns the ring of this thread for the current tokio runtime, or for no runtime. It is
    /// created if there is none.
    ///
    /// # Errors
    ///
    /// - Those of [`Ring::new`].
    /// - On tokio, those of `eventfd(2)` and `epoll_ctl(2)`.
    /// - [`RING_RETIRED`] while the thread ends.
    ///
    /// # Panics
    ///
    /// If the runtime was built without its I/O driver, in which case it has no sockets either.
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
        // Dropped while nothing is borrowed, because this ends their tasks.
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

    /// Where the notifications of sends by this ring arrive.
    pub(crate) fn notification_source(&self) -> Arc<dyn NotificationSource> {
        Arc::clone(&self.ring) as Arc<dyn NotificationSource>
    }

    /// Sends from these leases, and returns at once how many bytes the socket accepted.
    ///
    /// The leases are kept until the kernel is done with the memory, and then `part` is completed.
    /// After an error, `part` does not count.
    ///
    /// # Errors
    ///
    /// Those of [`Ring::send`].
    pub(crate) fn send(
        &self,
        sink: BorrowedFd<'_>,
        leases: impl Into<Leases>,
        part: SendPart,
    ) -> Result<usize> {
        self.ring.send(sink, leases.into(), part)
    }

    /// The sends of this thread that wait for the next batch.
    #[cfg(feature = "tokio")]
    pub(super) fn batch_queue(&self) -> &BatchQueue {
        &self.batch_queue
    }

    /// Makes the sends that wait for the next batch, in as few calls as possible.
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

/// Refuses further sends by the ring. If memory is in flight, hands the ring to the reaper.
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

    /// Does nothing: the sockets are closed or belong to others. The kernel itself gives up on the
    /// closed ones.
    fn give_up(&self) {}
}

/// Without tokio, no ring belongs to a runtime.
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
