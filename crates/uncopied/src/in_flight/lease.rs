//! Memory that the kernel still reads, and how much of it there may be.
//!
//! A [`Lease`] is a handle of the memory that a ledger keeps, from before the kernel is given the
//! pages until a notice says that it is done with them. While it exists the memory cannot be written
//! to or freed. Whoever cannot wait for the notice leaks the lease; nobody drops it early.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::registry;
use crate::arena::Memory;

/// So many bytes may be lent by one sender, unless its [options](crate::SendOptions) say otherwise.
pub const DEFAULT_SENDER_IN_FLIGHT_LIMIT: u64 = 16 << 20;

/// So many bytes may be lent by the process, unless [`set_process_in_flight_limit`] says otherwise.
pub const DEFAULT_PROCESS_IN_FLIGHT_LIMIT: u64 = 512 << 20;

static LEASED: AtomicU64 = AtomicU64::new(0);
static AT_MOST: AtomicU64 = AtomicU64::new(DEFAULT_PROCESS_IN_FLIGHT_LIMIT);

/// How many bytes of memory this process has lent to the kernel and not had back. Each lease counts by
/// the pages that it touches.
#[must_use]
pub fn in_flight_bytes() -> u64 {
    LEASED.load(Ordering::Relaxed)
}

/// Bounds how many bytes all senders of this process together may have lent, from now on; one send is
/// granted when nothing else is lent, however long it is. What is beyond the bound is copied, or waits,
/// as each sender's [options](crate::SendOptions) say.
pub fn set_process_in_flight_limit(bytes: u64) {
    AT_MOST.store(bytes, Ordering::Relaxed);
}

/// What becomes of a send that would put more memory in flight than the limits allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LimitAction {
    /// It is copied.
    #[default]
    Copy,
    /// It waits until some of the memory in flight is free, which depends on the peer.
    Wait,
}

/// How much a sender has lent, and how much it may lend.
#[derive(Debug)]
pub(crate) struct Quota {
    leased: AtomicU64,
    at_most: u64,
}

impl Quota {
    pub(crate) fn new(at_most: u64) -> Arc<Self> {
        Arc::new(Self {
            leased: AtomicU64::new(0),
            at_most,
        })
    }

    /// How many bytes are lent.
    pub(crate) fn in_flight_bytes(&self) -> u64 {
        self.leased.load(Ordering::Relaxed)
    }
}

/// Memory that is lent. Dropping it says that the kernel is done with it.
#[derive(Debug)]
#[must_use = "dropping a lease gives the memory back"]
pub(crate) struct Lease {
    memory: Memory,
    bytes: u64,
    quota: Arc<Quota>,
}

impl Lease {
    /// A lease of `memory`, if neither the sender nor the process has lent too much. Where nothing else is
    /// lent it is always granted, so that no send is too long for ever.
    pub(crate) fn take(memory: Memory, quota: &Arc<Quota>) -> Option<Self> {
        let bytes = pages_touched(&memory);
        let before = quota.leased.fetch_add(bytes, Ordering::Relaxed);
        if before > 0 && before + bytes > quota.at_most {
            quota.leased.fetch_sub(bytes, Ordering::Relaxed);
            return None;
        }
        if !lend_of_process(bytes) {
            // What others have had back without looking is to be had.
            registry::reap_all();
            if !lend_of_process(bytes) {
                quota.leased.fetch_sub(bytes, Ordering::Relaxed);
                return None;
            }
        }
        Some(Self {
            memory,
            bytes,
            quota: Arc::clone(quota),
        })
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Gives back what lies behind the first `len` bytes: the kernel took no more. It may be called while
    /// the [loan](Memory::lend) of the call still lives.
    pub(crate) fn shorten(&mut self, len: usize) {
        self.memory.shorten(len);
        let bytes = pages_touched(&self.memory);
        give_back(&self.quota, self.bytes - bytes);
        self.bytes = bytes;
    }
}

/// Counts bytes against the process's bound, unless they are beyond it.
fn lend_of_process(bytes: u64) -> bool {
    let before = LEASED.fetch_add(bytes, Ordering::Relaxed);
    let is_granted = before == 0 || before + bytes <= AT_MOST.load(Ordering::Relaxed);
    if !is_granted {
        LEASED.fetch_sub(bytes, Ordering::Relaxed);
    }
    is_granted
}

impl Drop for Lease {
    fn drop(&mut self) {
        give_back(&self.quota, self.bytes);
    }
}

fn give_back(quota: &Quota, bytes: u64) {
    quota.leased.fetch_sub(bytes, Ordering::Relaxed);
    LEASED.fetch_sub(bytes, Ordering::Relaxed);
}

/// The bytes of all pages that hold some of the memory: so many the kernel keeps.
fn pages_touched(memory: &Memory) -> u64 {
    let page = rustix::param::page_size();
    let start = memory.address() / page * page;
    let end = (memory.address() + memory.len()).next_multiple_of(page);
    (end - start) as u64
}

/// The memory of one send: one lease at least, and most often no more.
#[derive(Debug)]
pub(crate) struct Leases {
    first: Lease,
    rest: Vec<Lease>,
}

impl Leases {
    /// These leases, in this order; `None` if there is none.
    pub(crate) fn of(leases: impl IntoIterator<Item = Lease>) -> Option<Self> {
        let mut leases = leases.into_iter();
        let first = leases.next()?;
        let rest = leases.collect();
        Some(Self { first, rest })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Lease> {
        std::iter::once(&self.first).chain(&self.rest)
    }

    /// Gives back what lies behind the first `len` bytes of all of them together.
    pub(crate) fn shorten(&mut self, len: usize) {
        let mut left = len;
        for lease in std::iter::once(&mut self.first).chain(&mut self.rest) {
            let taken = left.min(lease.memory().len());
            lease.shorten(taken);
            left -= taken;
        }
        self.rest.retain(|lease| lease.memory().len() > 0);
    }
}

impl From<Lease> for Leases {
    fn from(first: Lease) -> Self {
        let rest = Vec::new();
        Self { first, rest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::PageBuffer;

    fn memory(len: usize) -> Memory {
        Memory::Pages(PageBuffer::zeroed(len).expect("taken").freeze())
    }

    #[test]
    fn a_quota_holds_and_comes_back() {
        let quota = Quota::new(10_000);
        let first = Lease::take(memory(5000), &quota).expect("the first");
        assert_eq!(quota.in_flight_bytes(), 8192);
        assert!(Lease::take(memory(1), &quota).is_none());
        drop(first);
        let mut long = Lease::take(memory(100_000), &quota).expect("the first, however long");
        long.shorten(4097);
        assert_eq!((quota.in_flight_bytes(), long.memory().len()), (8192, 4097));
        drop(long);
        assert_eq!(quota.in_flight_bytes(), 0);
    }

    #[test]
    fn a_lease_keeps_the_pages() {
        let pages = PageBuffer::copy_from_slice(b"lent")
            .expect("taken")
            .freeze();
        let quota = Quota::new(1 << 20);
        let lease = Lease::take(Memory::Pages(pages.clone()), &quota).expect("granted");
        let pages = pages.try_into_buffer().expect_err("it is lent");
        drop(lease);
        pages.try_into_buffer().expect("it came back");
    }
}
