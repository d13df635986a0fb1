//! Totals over all notifications of one sender.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
#[cfg(feature = "tokio")]
use std::task::{Context, Poll};

/// Counts the notifications of a sender and the bytes that they report as copied. Wakes the task
/// that waits for the next notification.
#[derive(Debug, Default)]
pub(crate) struct NotificationStats {
    copied_bytes: AtomicU64,
    copied_notifications_in_a_row: AtomicU32,
    notifications: AtomicU64,
    waker: Mutex<Option<Waker>>,
}

impl NotificationStats {
    /// Counts a notification for a send of `bytes` bytes, of which the kernel copied `copied`.
    pub(super) fn note(&self, bytes: u64, copied: u64) {
        self.copied_bytes.fetch_add(copied, Ordering::Relaxed);
        if copied < bytes {
            self.copied_notifications_in_a_row
                .store(0, Ordering::Relaxed);
        } else {
            self.copied_notifications_in_a_row
                .fetch_add(1, Ordering::Relaxed);
        }
        self.notifications.fetch_add(1, Ordering::Release);
        let waker = self.waker().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn waker(&self) -> MutexGuard<'_, Option<Waker>> {
        self.waker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of notifications counted so far.
    #[cfg(feature = "tokio")]
    pub(crate) fn notifications(&self) -> u64 {
        self.notifications.load(Ordering::Acquire)
    }

    /// Returns `Ready` once more than `seen` notifications have been counted. Only the task that
    /// polled last is woken.
    #[cfg(feature = "tokio")]
    pub(crate) fn poll_notification(&self, cx: &mut Context<'_>, seen: u64) -> Poll<()> {
        *self.waker() = Some(cx.waker().clone());
        if self.notifications() > seen {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Returns the number of bytes that the kernel copied although they were sent with a zero-copy
    /// call.
    pub(crate) fn copied_bytes(&self) -> u64 {
        self.copied_bytes.load(Ordering::Relaxed)
    }

    /// Returns the number of consecutive notifications, up to the latest, that reported every byte
    /// as copied.
    pub(crate) fn copied_notifications_in_a_row(&self) -> u32 {
        self.copied_notifications_in_a_row.load(Ordering::Relaxed)
    }

    /// Resets the count of [`copied_notifications_in_a_row`](Self::copied_notifications_in_a_row)
    /// to 0.
    pub(crate) fn reset_copied_in_a_row(&self) {
        self.copied_notifications_in_a_row
            .store(0, Ordering::Relaxed);
    }
}
