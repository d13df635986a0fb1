//! Limits on the memory in flight, per sender and per process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::registry;

/// Default limit on bytes in flight per sender: 16 MiB.
///
/// [`SendOptions::in_flight_limit`](crate::SendOptions::in_flight_limit) sets another limit.
pub const DEFAULT_SENDER_IN_FLIGHT_LIMIT: u64 = 16 << 20;

/// Default limit on bytes in flight in the whole process: 512 MiB.
///
/// [`set_process_in_flight_limit`] sets another limit.
pub const DEFAULT_PROCESS_IN_FLIGHT_LIMIT: u64 = 512 << 20;

static PROCESS_IN_FLIGHT_BYTES: AtomicU64 = AtomicU64::new(0);
static PROCESS_IN_FLIGHT_LIMIT: AtomicU64 = AtomicU64::new(DEFAULT_PROCESS_IN_FLIGHT_LIMIT);

/// Returns how many bytes of memory this process has in flight.
///
/// This is the memory of zero-copy sends that the kernel may still read. Each send counts in whole
/// pages: a page that the send covers only in part counts in full.
///
/// ```
/// println!("{} bytes in flight", uncopied::in_flight_bytes());
/// ```
#[must_use]
pub fn in_flight_bytes() -> u64 {
    PROCESS_IN_FLIGHT_BYTES.load(Ordering::Relaxed)
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
    in_flight: AtomicU64,
    limit: u64,
}

impl Quota {
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            in_flight: AtomicU64::new(0),
            limit,
        })
    }

    /// Returns the number of bytes that the sender has in flight.
    pub(crate) fn in_flight_bytes(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Counts `bytes` as in flight for the sender and for the process, and returns true. If that
    /// would exceed either limit, counts nothing and returns false.
    ///
    /// A limit allows a send of any length while nothing is in flight, so that even a send that is
    /// longer than the limit can be made.
    pub(super) fn reserve(&self, bytes: u64) -> bool {
        if !add_within(&self.in_flight, bytes, self.limit) {
            return false;
        }
        if reserve_of_process(bytes) {
            return true;
        }
        // Notifications of other senders may be waiting to be processed: process them and try
        // again.
        registry::reap_all();
        let is_reserved = reserve_of_process(bytes);
        if !is_reserved {
            self.in_flight.fetch_sub(bytes, Ordering::Relaxed);
        }
        is_reserved
    }

    /// Subtracts bytes that [`reserve`](Self::reserve) has counted.
    pub(super) fn release(&self, bytes: u64) {
        self.in_flight.fetch_sub(bytes, Ordering::Relaxed);
        PROCESS_IN_FLIGHT_BYTES.fetch_sub(bytes, Ordering::Relaxed);
    }
}

fn reserve_of_process(bytes: u64) -> bool {
    let limit = PROCESS_IN_FLIGHT_LIMIT.load(Ordering::Relaxed);
    add_within(&PROCESS_IN_FLIGHT_BYTES, bytes, limit)
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
