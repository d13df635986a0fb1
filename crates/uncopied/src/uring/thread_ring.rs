//! One ring for all connections of a thread, and who watches it.
//!
//! On tokio each thread of a runtime has a ring, and a task of the runtime takes in its notices as they
//! come, so that [completions](crate::Completion) are woken. Elsewhere each thread has one too, which
//! nobody watches: whoever asks for a completion, or waits for it, takes the notices in.
//!
//! A send is one call of the kernel, and is answered at once: `AsyncWrite` needs that. Those who can wait
//! for a turn of the event loop have their sends gathered into one call.

use std::cell::RefCell;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Weak};

use rustix::event::PollFlags;
use rustix::io::Result;

#[cfg(feature = "tokio")]
use super::batch::Batch;
#[cfg(feature = "tokio")]
use super::ring::QueuedSend;
use super::ring::{RETIRED, Ring};
use crate::in_flight::reaper::{self, Orphan};
use crate::in_flight::{Leases, NotificationSource, SendPart, registry};

/// The ring of a thread. Every sender of the thread has a handle.
///
/// When the thread, or the runtime, goes while sends wait for their notices, the ring is
/// [handed on](reaper) and the memory kept.
pub(crate) struct ThreadRing {
    ring: Arc<Ring>,
    home: HomeRuntime,
    #[cfg(feature = "tokio")]
    batch: Batch,
}

thread_local! {
    /// The rings of this thread: one for each runtime that runs on it.
    static RINGS: RefCell<Vec<Arc<ThreadRing>>> = const { RefCell::new(Vec::new()) };
}

impl ThreadRing {
    /// The ring of this thread, and of the tokio runtime that it runs, if any.
    ///
    /// # Errors
    ///
    /// Those of [`Ring::new`]; those of `eventfd(2)` and `epoll_ctl(2)` on tokio; and [`RETIRED`] while
    /// the thread ends.
    ///
    /// # Panics
    ///
    /// If the runtime was built without its I/O driver, in which case it has no sockets either.
    pub(crate) fn of_thread() -> Result<Arc<Self>> {
        RINGS.try_with(Self::among).map_err(|_| RETIRED)?
    }

    fn among(rings: &RefCell<Vec<Arc<Self>>>) -> Result<Arc<Self>> {
        let of_here = |shared: &&Arc<Self>| shared.home.is_here() && !shared.ring.is_retired();
        if let Some(shared) = rings.borrow().iter().find(of_here) {
            return Ok(Arc::clone(shared));
        }
        let shared = Arc::new(Self::new()?);
        let mut all = rings.take();
        let (retired, mut kept): (Vec<_>, Vec<_>) = mem::take(&mut all)
            .into_iter()
            .partition(|it| it.ring.is_retired());
        kept.push(Arc::clone(&shared));
        rings.replace(kept);
        // Only now, when nothing is borrowed: it ends their watchers.
        drop(retired);
        Ok(shared)
    }

    fn new() -> Result<Self> {
        let ring = Arc::new(Ring::new()?);
        let source: Weak<Ring> = Arc::downgrade(&ring);
        registry::register(source);
        let home = HomeRuntime::of(&ring)?;
        Ok(Self {
            ring,
            home,
            #[cfg(feature = "tokio")]
            batch: Batch::default(),
        })
    }

    /// Whom to ask about the notices of sends by this ring.
    pub(crate) fn notification_source(&self) -> Arc<dyn NotificationSource> {
        Arc::clone(&self.ring) as Arc<dyn NotificationSource>
    }

    /// Sends from these leases, and answers at once with how many bytes the socket took. They are kept
    /// until the kernel is done with them; `part` is settled then. After an error `part` does not
    /// count.
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

    #[cfg(feature = "tokio")]
    /// The sends that wait for one call to make them all.
    pub(super) fn batch(&self) -> &Batch {
        &self.batch
    }

    #[cfg(feature = "tokio")]
    /// Makes these sends by as few calls as can be, and tells each with its answer.
    pub(super) fn send_all(
        &self,
        sends: impl IntoIterator<Item = QueuedSend>,
        tell: impl FnMut(Result<usize>),
    ) {
        self.ring.send_all(sends, tell);
    }
}

impl Drop for ThreadRing {
    fn drop(&mut self) {
        if !self.ring.is_of_parent() {
            self.home.leave();
            retire(&self.ring);
        }
    }
}

/// Says that nobody sends by the ring or watches it any more.
fn retire(ring: &Arc<Ring>) {
    ring.retire();
    if !ring.is_of_parent() && ring.in_flight() > 0 {
        reaper::adopt(Box::new(OrphanedRing(Arc::clone(ring))));
    }
}

/// A ring that nobody sends by or watches.
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

    /// The sockets are closed, or others'. The kernel gives up on those that are closed by itself.
    fn give_up(&self) {}
}

#[cfg(feature = "tokio")]
use watched::HomeRuntime;

#[cfg(feature = "tokio")]
mod watched {
    use std::os::fd::OwnedFd;
    use std::sync::Arc;
    #[cfg(test)]
    use std::sync::atomic::{AtomicU64, Ordering};

    use rustix::io::Result;
    use tokio::io::unix::AsyncFd;
    use tokio::runtime::{Handle, Id};
    use tokio::task::AbortHandle;

    use super::super::ring::Ring;
    use crate::sys::uring::watch;

    /// The runtime that a ring belongs to, if any.
    pub(super) struct HomeRuntime(Option<(Id, AbortHandle)>);

    impl HomeRuntime {
        /// Has the runtime that runs here, if one does, watch the ring.
        pub(super) fn of(ring: &Arc<Ring>) -> Result<Self> {
            let Ok(runtime) = Handle::try_current() else {
                return Ok(Self(None));
            };
            let signal = watch(ring.notification_eventfd()?)?;
            let watcher = Watcher(Arc::clone(ring));
            let watching = runtime.spawn(watcher.run(signal));
            Ok(Self(Some((runtime.id(), watching.abort_handle()))))
        }

        /// Whether the caller runs in it.
        pub(super) fn is_here(&self) -> bool {
            let here = Handle::try_current().ok().map(|runtime| runtime.id());
            here == self.0.as_ref().map(|(id, _)| *id)
        }

        /// Ends the watch.
        pub(super) fn leave(&self) {
            if let Some((_, watching)) = &self.0 {
                watching.abort();
            }
        }
    }

    /// How often watchers have had their turn, in all.
    #[cfg(test)]
    pub(super) static TURNS: AtomicU64 = AtomicU64::new(0);

    /// Takes in the notices of a ring. It ends with the runtime, or with the ring's last handle.
    struct Watcher(Arc<Ring>);

    impl Watcher {
        async fn run(self, signal: AsyncFd<OwnedFd>) {
            while let Ok(mut ready) = signal.readable().await {
                #[cfg(test)]
                TURNS.fetch_add(1, Ordering::Relaxed);
                self.0.reap();
                // A notice that came since it was ready has set it again, and is not cleared here.
                ready.clear_ready();
            }
        }
    }

    impl Drop for Watcher {
        fn drop(&mut self) {
            super::retire(&self.0);
        }
    }
}

#[cfg(not(feature = "tokio"))]
struct HomeRuntime;

#[cfg(not(feature = "tokio"))]
impl HomeRuntime {
    fn of(_ring: &Arc<Ring>) -> Result<Self> {
        Ok(Self)
    }

    fn is_here(&self) -> bool {
        true
    }

    fn leave(&self) {}
}

#[cfg(test)]
mod tests;
