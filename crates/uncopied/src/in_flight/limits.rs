//! Limits on the memory in flight, per sender and per process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::registry;
use crate::arena::{BlockCount, Memory};
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
/// This is the memory of zero-copy sends that the kernel may still read:
///
/// - A send counts in whole pages: a page that it covers only in part counts in full.
/// - All sends of one [buffer](crate::arena::PageBuffer) together count at most the length of the
///   buffer. So a page that is sent to many peers counts once, although it counts for each sender.
///   The sends of a [region](crate::arena::Region) each count in full, because the region may be
///   overwritten between them, and each of them then keeps pages of its own.
/// - Bytes that were sent with `vmsplice` count until they have left the queue of their socket. A
///   TCP peer has then acknowledged them, and a Unix peer has read them. This function reads the
///   length of each such queue, with one or two system calls per sender. **After a TCP peer on this
///   machine has acknowledged such bytes, its receive queue holds the same pages until the peer
///   reads them.** The sender cannot see that, so they no longer count. The peer's receive buffer
///   limits the number of these bytes. It does not limit the number of their pages: with forced
///   sends of a few bytes each, every send may keep a page.
/// - Bytes that `vmsplice` has moved into a pipe, but that the socket has not accepted yet, count
///   until the sender sends other bytes or is dropped.
/// - Sends made before a fork count only for the parent.
///
/// The kernel may keep more memory allocated than it reads: a single byte in flight keeps all of
/// its huge page.
///
/// ```
/// println!("{} bytes in flight", uncopied::in_flight_bytes());
/// ```
#[must_use]
pub fn in_flight_bytes() -> u64 {
    registry::recount_all();
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
    ///
    /// Nothing reports that bytes sent with `vmsplice` have left the socket's queue. So a send that
    /// waits for them polls the queue every millisecond, and if
    /// [`try_send`](crate::Sender::try_send) has sent nothing although the socket is writable, try
    /// again after a moment.
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

    /// Returns the number of bytes that the sender has in flight, as far as it is known without a
    /// system call.
    pub(crate) fn in_flight_bytes(&self) -> u64 {
        self.in_flight.get().load(Ordering::Relaxed)
    }

    /// Counts the pages of `memory` as in flight for the sender and for the process, until the
    /// result is dropped. If that would exceed either limit, counts nothing and returns `None`.
    ///
    /// A limit allows a send of any length while nothing is in flight, so that even a send that is
    /// longer than the limit can be made.
    pub(crate) fn reserve(self: &Arc<Self>, memory: &Memory) -> Option<BytesInFlight> {
        let bytes = bytes_of_touched_pages(memory);
        let block = memory.block_count();
        let of_sender = self.in_flight.get();
        if !add_within(of_sender, bytes, self.limit) {
            return None;
        }
        if !reserve_of_process(bytes, block.as_ref()) {
            // Notifications of other senders may be waiting to be processed: process them and try
            // again.
            registry::reap_all();
            if !reserve_of_process(bytes, block.as_ref()) {
                of_sender.fetch_sub(bytes, Ordering::Relaxed);
                return None;
            }
        }
        Some(self.counted(bytes, block))
    }

    /// Does the same as [`reserve`](Self::reserve), but even beyond the limits. For memory that the
    /// limits have already allowed, but that is now counted in another way.
    pub(super) fn reserve_unchecked(self: &Arc<Self>, memory: &Memory) -> BytesInFlight {
        let bytes = bytes_of_touched_pages(memory);
        let block = memory.block_count();
        self.in_flight.get().fetch_add(bytes, Ordering::Relaxed);
        add_to_process(bytes, block.as_ref(), |growth| {
            PROCESS_IN_FLIGHT_BYTES
                .get()
                .fetch_add(growth, Ordering::Relaxed);
            true
        });
        self.counted(bytes, block)
    }

    fn counted(self: &Arc<Self>, count: u64, block: Option<BlockCount>) -> BytesInFlight {
        BytesInFlight {
            quota: Arc::clone(self),
            owner_process: OwnerProcess::current(),
            block,
            count,
        }
    }
}

/// Bytes that [`Quota::reserve`] has counted as in flight. They count until this value is dropped.
#[derive(Debug)]
pub(crate) struct BytesInFlight {
    quota: Arc<Quota>,
    /// The process whose counts include the bytes. Dropping a copy of this value in a forked child
    /// must not change the counts of the child.
    owner_process: OwnerProcess,
    /// The count of the buffer that the bytes belong to, if its sends share one.
    block: Option<BlockCount>,
    count: u64,
}

impl BytesInFlight {
    /// Counts only the pages of `memory`, which must be a part of the memory that was counted.
    pub(crate) fn shrink_to(&mut self, memory: &Memory) {
        self.shrink_to_bytes(bytes_of_touched_pages(memory));
    }

    fn shrink_to_bytes(&mut self, count: u64) {
        let released = self.count.saturating_sub(count);
        self.count -= released;
        if released == 0 || !self.owner_process.is_current() {
            return;
        }
        let of_sender = self.quota.in_flight.get();
        of_sender.fetch_sub(released, Ordering::Relaxed);
        let block = self.block.as_ref();
        let shrinkage = block.map_or(released, |block| block.remove(released));
        PROCESS_IN_FLIGHT_BYTES
            .get()
            .fetch_sub(shrinkage, Ordering::Relaxed);
    }
}

impl Drop for BytesInFlight {
    fn drop(&mut self) {
        self.shrink_to_bytes(0);
    }
}

fn reserve_of_process(bytes: u64, block: Option<&BlockCount>) -> bool {
    let limit = PROCESS_IN_FLIGHT_LIMIT.load(Ordering::Relaxed);
    let in_flight = PROCESS_IN_FLIGHT_BYTES.get();
    // A send of memory that is in flight already needs no room.
    add_to_process(bytes, block, |growth| {
        growth == 0 || add_within(in_flight, growth, limit)
    })
}

/// Adds `bytes` bytes of a send to the count of the process, if `admit` admits the number of bytes
/// by which the memory in flight grows, and adds this number. Returns whether it did.
fn add_to_process(bytes: u64, block: Option<&BlockCount>, admit: impl Fn(u64) -> bool) -> bool {
    let in_flight = PROCESS_IN_FLIGHT_BYTES.get();
    let retract = |growth| {
        in_flight.fetch_sub(growth, Ordering::Relaxed);
    };
    match block {
        Some(block) => block.add(bytes, admit, retract),
        None => admit(bytes),
    }
}

/// Returns the total size of all pages that the memory touches. A page that the memory covers only
/// in part counts in full, because the kernel holds references to whole pages.
fn bytes_of_touched_pages(memory: &Memory) -> u64 {
    if memory.len() == 0 {
        return 0;
    }
    let page = rustix::param::page_size();
    let start = memory.address() / page * page;
    let end = (memory.address() + memory.len()).next_multiple_of(page);
    (end - start) as u64
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
