//! Totals over all notifications of one sender.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
#[cfg(feature = "tokio")]
use std::task::{Context, Poll};

use super::ended_send::SentBytes;
#[cfg(feature = "tokio")]
use super::wakers::isolate;
use crate::arena::CopyCount;

/// Counts the notifications of a sender and the bytes that they report as copied, and keeps the
/// waker of the task that waits for the next notification.
#[derive(Debug, Default)]
pub(crate) struct NotificationStats {
    /// Whether the kernel copies every byte, whatever its notifications say.
    expects_copies: AtomicBool,
    copied_bytes: AtomicU64,
    copied_on_write: CopyCount,
    copied_notifications_in_a_row: AtomicU32,
    notifications: AtomicU64,
    waker: Mutex<Option<Waker>>,
}

impl NotificationStats {
    /// Makes every byte count as copied. Needed if the network interface cannot gather: the kernel
    /// then copies the parts of each packet together, and reports nothing about that.
    pub(crate) fn expect_copies(&self) {
        self.expects_copies.store(true, Ordering::Relaxed);
    }

    /// Returns what really happened to bytes for which the kernel reports `sent`.
    pub(super) fn correct(&self, sent: &SentBytes) -> SentBytes {
        match self.expects_copies.load(Ordering::Relaxed) {
            true => SentBytes {
                copied: sent.bytes,
                copied_on_write: 0,
                ..*sent
            },
            false => *sent,
        }
    }

    /// Counts bytes of which no notification will tell whether the kernel copies them. Returns how
    /// many of them it copies.
    pub(crate) fn count_gifted(&self, bytes: u64) -> u64 {
        let copies = self.expects_copies.load(Ordering::Relaxed);
        let copied = if copies { bytes } else { 0 };
        self.copied_bytes.fetch_add(copied, Ordering::Relaxed);
        copied
    }

    /// Counts a notification for a send of `bytes` bytes, of which the kernel copied `copied`.
    /// Returns the waker of the task that waits for a notification, for the caller to wake once it
    /// has completed the send.
    #[must_use = "the task must be woken"]
    pub(super) fn note(&self, bytes: u64, copied: u64) -> Option<Waker> {
        self.copied_bytes.fetch_add(copied, Ordering::Relaxed);
        if copied < bytes {
            self.copied_notifications_in_a_row
                .store(0, Ordering::Relaxed);
        } else {
            self.copied_notifications_in_a_row
                .fetch_add(1, Ordering::Relaxed);
        }
        self.notifications.fetch_add(1, Ordering::Release);
        self.waker().take()
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
        // Wakers are foreign code, so this one is cloned before the lock is taken, and the one that
        // it replaces is dropped after the lock has been released.
        let waker = cx.waker().clone();
        let replaced = self.waker().replace(waker);
        isolate(|| drop(replaced));
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

    /// Returns the number of bytes of the sender's zero-copy sends that were copied on write,
    /// without those that the kernel copied as well.
    pub(crate) fn copied_on_write(&self) -> &CopyCount {
        &self.copied_on_write
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

#[cfg(all(test, feature = "tokio"))]
mod tests {
    use std::sync::{Arc, mpsc};
    use std::task::Wake;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::in_flight::FreeReason;

    /// A waker that counts a notification when it is dropped. Counting takes the lock of the stored
    /// waker, so dropping this waker while the thread holds that lock is a deadlock.
    struct NotingWaker(Arc<NotificationStats>);

    impl Wake for NotingWaker {
        fn wake(self: Arc<Self>) {}
    }

    impl Drop for NotingWaker {
        fn drop(&mut self) {
            drop(self.0.note(1, 0));
        }
    }

    /// If the network interface cannot gather, the kernel copies every byte and reports nothing
    /// about that, so what it reports must be corrected.
    #[test]
    fn every_byte_counts_as_copied_if_the_interface_cannot_gather() {
        let stats = NotificationStats::default();
        let reported = SentBytes {
            bytes: 10,
            copied: 2,
            copied_on_write: 3,
            reason: FreeReason::Notification,
        };
        let corrected = || {
            let sent = stats.correct(&reported);
            (sent.bytes, sent.copied, sent.copied_on_write, sent.reason)
        };
        assert_eq!(corrected(), (10, 2, 3, FreeReason::Notification));
        assert_eq!((stats.count_gifted(7), stats.copied_bytes()), (0, 0));

        stats.expect_copies();
        assert_eq!(corrected(), (10, 10, 0, FreeReason::Notification));
        assert_eq!((stats.count_gifted(7), stats.copied_bytes()), (7, 7));
    }

    #[test]
    fn a_task_waits_for_a_notification_that_it_has_not_seen() {
        let stats = NotificationStats::default();
        let mut cx = Context::from_waker(Waker::noop());
        for seen in 0..3 {
            assert_eq!(stats.notifications(), seen);
            assert!(stats.poll_notification(&mut cx, seen).is_pending());
            assert!(stats.note(1, 0).is_some());
            assert!(stats.poll_notification(&mut cx, seen).is_ready());
        }
        // Notifications that the task has missed count as well.
        assert!(stats.poll_notification(&mut cx, 0).is_ready());
    }

    /// A waker may call this library when it is dropped, so a waker that has been replaced must be
    /// dropped while no lock is held. Otherwise the thread of this test never finishes.
    #[test]
    fn a_waker_that_another_replaces_is_dropped_without_the_lock() {
        let (done, is_done) = mpsc::channel();
        thread::spawn(move || {
            let stats = Arc::new(NotificationStats::default());
            let first = Waker::from(Arc::new(NotingWaker(Arc::clone(&stats))));
            let _ = stats.poll_notification(&mut Context::from_waker(&first), 0);
            drop(first);
            let _ = stats.poll_notification(&mut Context::from_waker(Waker::noop()), 0);
            done.send(stats.notifications()).expect("received");
        });
        let notifications = is_done.recv_timeout(Duration::from_secs(20));
        assert_eq!(notifications, Ok(1));
    }
}
