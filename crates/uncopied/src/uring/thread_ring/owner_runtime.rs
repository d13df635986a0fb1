//! The tokio runtime that a ring belongs to, and the task on this runtime that processes the ring's
//! notifications.

use std::os::fd::OwnedFd;
use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Result;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Handle, Id};
use tokio::task::AbortHandle;

use super::retire;
use crate::sys::uring::register_with_tokio;
use crate::uring::ring::Ring;

/// The runtime that a ring belongs to, and the task that processes the ring's notifications; `None`
/// for a ring that was created outside any runtime.
pub(super) struct OwnerRuntime(Option<(Id, AbortHandle)>);

impl OwnerRuntime {
    /// If the caller is in a runtime, makes this runtime the owner of `ring`, and spawns the task
    /// that processes the ring's notifications.
    pub(super) fn of(ring: &Arc<Ring>) -> Result<Self> {
        let Ok(runtime) = Handle::try_current() else {
            return Ok(Self(None));
        };
        let eventfd = register_with_tokio(ring.notification_eventfd()?)?;
        let notifications = NotificationTask(Arc::clone(ring));
        let task = runtime.spawn(notifications.run(eventfd));
        Ok(Self(Some((runtime.id(), task.abort_handle()))))
    }

    /// Whether the caller is in the owner runtime. If the ring has no owner runtime, whether the
    /// caller is outside any runtime.
    pub(super) fn is_current(&self) -> bool {
        let current = Handle::try_current().ok().map(|runtime| runtime.id());
        current == self.0.as_ref().map(|(id, _)| *id)
    }

    /// Aborts the task that processes the ring's notifications, if there is one.
    pub(super) fn stop_task(&self) {
        if let Some((_, task)) = &self.0 {
            task.abort();
        }
    }
}

/// The number of times that the notification tasks of all rings have been woken, in total.
#[cfg(test)]
pub(super) static WAKEUPS: AtomicU64 = AtomicU64::new(0);

/// Processes the notifications of a ring until the runtime shuts down, or the last handle to the
/// [`ThreadRing`](super::ThreadRing) is dropped. In both cases tokio drops this value, which
/// retires the ring.
struct NotificationTask(Arc<Ring>);

impl NotificationTask {
    async fn run(self, eventfd: AsyncFd<OwnedFd>) {
        while let Ok(mut ready) = eventfd.readable().await {
            #[cfg(test)]
            WAKEUPS.fetch_add(1, Ordering::Relaxed);
            self.0.reap();
            // If another notification has arrived since `readable` returned, tokio keeps the
            // eventfd ready, so that no notification is missed.
            ready.clear_ready();
        }
    }
}

impl Drop for NotificationTask {
    fn drop(&mut self) {
        retire(&self.0);
    }
}
