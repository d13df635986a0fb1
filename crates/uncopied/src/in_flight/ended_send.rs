//! Completes sends that have ended. All sources of notifications use [`complete_all`], and so does
//! a send that fails.

use super::completion::{FreeReason, SendPart};
use super::lease::Leases;
use super::wakers::{isolate, wake_all};

/// The resources of an ended send: its leases, its [`SendPart`], or both.
///
/// Releasing them may run foreign code. So a source of notifications only collects ended sends
/// while it holds its lock, and passes them to [`complete_all`] after it has released the lock.
#[must_use = "nothing is released until `complete_all` is called"]
pub(crate) struct EndedSend {
    leases: Option<Leases>,
    part: Option<SendPart>,
    sent: Option<SentBytes>,
}

/// What an ended send adds to the outcome of its completion.
#[derive(Clone, Copy)]
pub(super) struct SentBytes {
    /// The number of bytes that the socket accepted.
    pub(super) bytes: u64,
    /// The number of these bytes that the kernel copied.
    pub(super) copied: u64,
    /// The number of the other bytes whose page was copied on write.
    pub(super) copied_on_write: u64,
    pub(super) reason: FreeReason,
}

impl EndedSend {
    /// Creates the value for a send of which the socket accepted `bytes` bytes. The kernel copied
    /// `copied` of them.
    pub(crate) fn sent(
        leases: impl Into<Leases>,
        part: Option<SendPart>,
        bytes: u64,
        copied: u64,
        reason: FreeReason,
    ) -> Self {
        let leases = leases.into();
        let copied_on_write = leases.copied_on_write().min(bytes.saturating_sub(copied));
        Self {
            leases: Some(leases),
            part,
            sent: Some(SentBytes {
                bytes,
                copied,
                copied_on_write,
                reason,
            }),
        }
    }

    /// Creates the value for a send of `bytes` bytes whose memory was gifted, and whose lease has
    /// ended. Until then, the pages of `copied_on_write` of these bytes were copied on write.
    pub(crate) fn gifted(part: SendPart, bytes: u64, copied_on_write: u64) -> Self {
        Self {
            leases: None,
            part: Some(part),
            sent: Some(SentBytes {
                bytes,
                copied: 0,
                copied_on_write,
                reason: FreeReason::Gifted,
            }),
        }
    }

    /// Creates the value for a send of which no byte counts in the outcome. Pass `None` as `leases`
    /// if the kernel may still read the memory, so that only the part is released. Pass `None` as
    /// `part` to release only memory.
    pub(crate) fn unsent(leases: Option<Leases>, part: Option<SendPart>) -> Self {
        Self {
            leases,
            part,
            sent: None,
        }
    }
}

/// Drops the leases of these sends, completes their parts, and then wakes the tasks that wait for
/// them. If dropping memory or waking a task panics, all other sends are completed nevertheless.
///
/// The caller must not hold a lock, because dropping memory and waking tasks run foreign code.
pub(crate) fn complete_all(ended: impl IntoIterator<Item = EndedSend>) {
    let mut wakers = Vec::new();
    for EndedSend { leases, part, sent } in ended {
        // The leases are dropped first, because completing the part may wake a thread that wants to
        // reuse the pages at once.
        isolate(|| drop(leases));
        match (part, sent) {
            (Some(part), Some(sent)) => part.complete(&sent, &mut wakers),
            (Some(part), None) => part.remove(&mut wakers),
            (None, _) => {}
        }
    }
    wake_all(wakers);
}
