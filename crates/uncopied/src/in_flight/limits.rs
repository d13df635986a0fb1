//! Limits on the memory in flight, per sender and per process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::registry;
use crate::sys::fork::{OwnerProcess, PerProcess};

/// Default limit on bytes in flight per sender: 16 MiB.
///
/// [`SendOptions::in_flight_limit`](crate::SendOptions::in_flight_limit) sets another limit.
pub const DEFAULT_SENDER_IN_FLIGHT_LIMIT: u64 = 16 << 20;

/// Default limit on bytes in flight in the whole process: 512 MiB.
///
/// [`set_process_in_flight_limit`] sets another limit.
pub const DEFAULT_PROCESS_IN_FLIGHT_LIMIT: u64 = 512 << 20;

/// The number of bytes that this process has in flight. It is 0 in a new forked child, because the
/// kernel notifies only the parent when it is done with the memory of sends made before the fork.
static PROCESS_IN_FLIGHT_BYTES: PerProcess<AtomicU64> = PerProcess::new();
static PROCESS_IN_FLIGHT_LIMIT: AtomicU64 = AtomicU64::new(DEFAULT_PROCESS_IN_FLIGHT_LIMIT);

/// Returns how many bytes of memory this process has in flight.
///
/// This is the memory of zero-copy sends that the kernel may still read. Each send counts in whole
/// pages: a page that the send covers only in part counts in full. Sends made before a fork count
/// only for the parent.
///
/// ```
/// println!("{} bytes in flight", uncopied::in_flight_bytes());
/// ```
#[must_use]
pub fn in_flight_bytes() -> u64 {
    PROCESS_IN_FLIGHT_BYTES.get().load(Ordering::Relaxed)
}

/// Limits the number of bytes that all senders of this process together may have in flight.
///
/// The limit applies to future sends. A send that would exceed it is copied or waits, depending on
/// the [`at_limit`](crate::SendOptions::at_limit) option of its sender. While nothing is in flight,
/// a send of any length is allowed.
///
/// ```
/// uncopied::set_process_in_flight_limit(64 << 20);
/// ```
pub fn set_process_in_flight_limit(bytes: u64) {
    PROCESS_IN_FLIGHT_LIMIT.store(bytes, Ordering::Relaxed);
}

/// What happens to a send that would put more memory in flight than the limits allow.
///
/// ```
/// use uncopied::{LimitAction, SendOptions};
///
/// let options = SendOptions::default().at_limit(LimitAction::Wait);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimitAction {
    /// The send is copied.
    #[default]
    Copy,
    /// The send waits until the kernel is done with enough of the memory in flight. A peer that
    /// does not read can delay the send indefinitely.
    Wait,
}

/// The number of bytes that one sender has in flight, and the limit on this number.
#[derive(Debug)]
pub(crate) struct Quota {
    /// If a forked child uses the sender of its parent, the child counts its own sends only.
    in_flight: PerProcess<AtomicU64>,
    limit: u64,
}

impl Quota {
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            in_flight: PerProcess::new(),
            limit,
        })
    }

    /// Returns the number of bytes that the sender has in flight.
    pub(crate) fn in_flight_bytes(&self) -> u64 {
        self.in_flight.get().load(Ordering::Relaxed)
    }

    /// Counts `bytes` as in flight for the sender and for the process, until the result is dropped.
    /// If that would exceed either limit, counts nothing and returns `None`.
    ///
    /// A limit allows a send of any length while nothing is in flight, so that even a send that is
    /// longer than the limit can be made.
    pub(super) fn reserve(self: &Arc<Self>, bytes: u64) -> Option<BytesInFlight> {
        let of_sender = self.in_flight.get();
        if !add_within(of_sender, bytes, self.limit) {
            return None;
        }
        if !reserve_of_process(bytes) {
            // Notifications of other senders may be waiting to be processed: process them and try
            // again.
            registry::reap_all();
            if !reserve_of_process(bytes) {
                of_sender.fetch_sub(bytes, Ordering::Relaxed);
                return None;
            }
        }
        Some(BytesInFlight {
            quota: Arc::clone(self),
            owner_process: OwnerProcess::current(),
            count: bytes,
        })
    }
}

/// Bytes that [`Quota::reserve`] has counted as in flight. They count until this value is dropped.
#[derive(Debug)]
pub(super) struct BytesInFlight {
    quota: Arc<Quota>,
    /// The process whose counts include the bytes. Dropping a copy of this value in a forked child
    /// must not change the counts of the child.
    owner_process: OwnerProcess,
    count: u64,
}

impl BytesInFlight {
    /// Reduces the number of bytes to `count`.
    pub(super) fn shrink_to(&mut self, count: u64) {
        let released = self.count - count;
        self.count = count;
        if self.owner_process.is_current() {
            self.quota
                .in_flight
                .get()
                .fetch_sub(released, Ordering::Relaxed);
            PROCESS_IN_FLIGHT_BYTES
                .get()
                .fetch_sub(released, Ordering::Relaxed);
        }
    }
}

impl Drop for BytesInFlight {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

fn reserve_of_process(bytes: u64) -> bool {
    let limit = PROCESS_IN_FLIGHT_LIMIT.load(Ordering::Relaxed);
    add_within(PROCESS_IN_FLIGHT_BYTES.get(), bytes, limit)
}

/// Adds `bytes` to `count`, unless `count` is above 0 and the sum would exceed `limit`. Returns
/// whether `bytes` was added.
fn add_within(count: &AtomicU64, bytes: u64, limit: u64) -> bool {
    let before = count.fetch_add(bytes, Ordering::Relaxed);
    let is_within = before == 0 || before + bytes <= limit;
    if !is_within {
        count.fetch_sub(bytes, Ordering::Relaxed);
    }
    is_within
}
