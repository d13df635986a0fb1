//! Memory that the kernel still reads, and how much of it there may be.
//!
//! A [`Lease`] is a handle of the memory that a ledger keeps, from before the kernel is given the
//! pages until a notice says that it is done with them. While it exists the memory cannot be written
//! to or freed. Whoever cannot wait for the notice leaks the lease; nobody drops it early.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

use crate::arena::{Lending, Pages, RegionPart};
use crate::lenders;

/// So many bytes may be lent by one sender, unless its [options](crate::SendOptions) say otherwise.
pub const LEASED_BY_SENDER: u64 = 16 << 20;

/// So many bytes may be lent by the process, unless [`set_leased_at_most`] says otherwise.
pub const LEASED_BY_PROCESS: u64 = 512 << 20;

static LEASED: AtomicU64 = AtomicU64::new(0);
static AT_MOST: AtomicU64 = AtomicU64::new(LEASED_BY_PROCESS);

/// How many bytes of memory this process has lent to the kernel and not had back. Each lease counts by
/// the pages that it touches.
#[must_use]
pub fn leased_bytes() -> u64 {
    LEASED.load(Ordering::Relaxed)
}

/// Bounds how many bytes all senders of this process together may have lent, from now on; one send is
/// granted when nothing else is lent, however long it is. What is beyond the bound is copied, or waits,
/// as each sender's [options](crate::SendOptions) say.
pub fn set_leased_at_most(bytes: u64) {
    AT_MOST.store(bytes, Ordering::Relaxed);
}

/// Bytes that can be lent, by a handle that keeps them where they are.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Memory {
    /// Frozen pages, which nobody writes to.
    Pages(Pages),
    /// Some bytes of a region, which may be written to at any time.
    Region(RegionPart),
}

impl From<Pages> for Memory {
    fn from(pages: Pages) -> Self {
        Self::Pages(pages)
    }
}

impl From<&Pages> for Memory {
    fn from(pages: &Pages) -> Self {
        Self::Pages(pages.clone())
    }
}

impl From<RegionPart> for Memory {
    fn from(part: RegionPart) -> Self {
        Self::Region(part)
    }
}

impl From<&RegionPart> for Memory {
    fn from(part: &RegionPart) -> Self {
        Self::Region(part.clone())
    }
}

impl Memory {
    pub(crate) fn address(&self) -> usize {
        match self {
            Self::Pages(pages) => pages.as_ptr().addr(),
            Self::Region(part) => part.address(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Pages(pages) => pages.len(),
            Self::Region(part) => part.len(),
        }
    }

    /// Gets the memory ready for one call that lends it, which is made while the answer lives. A
    /// region's pages count as lent from then on, for as long as this handle lives, or a clone or part that
    /// is made of it afterwards.
    ///
    /// # Errors
    ///
    /// Why it can only be copied.
    pub(crate) fn lend(&self) -> Result<Loan<'_>, Errno> {
        Ok(match self {
            Self::Pages(pages) => Loan::Pages(pages),
            Self::Region(part) => Loan::Region(part.lend()?),
        })
    }

    /// Says that the frames are lent where nobody tells when they come back, by a call of before: they are
    /// never written to again.
    ///
    /// A region that cannot do that any more keeps its pages as they are.
    pub(crate) fn give_away(&self) {
        if let Ok(loan) = self.lend() {
            loan.give_away(self.len());
        }
    }

    /// Whether it costs nothing, or has been paid for, that the frames are never written to again.
    pub(crate) fn is_for_good(&self) -> bool {
        match self {
            Self::Pages(pages) => pages.is_for_good(),
            Self::Region(_) => true,
        }
    }

    /// From how many bytes on lending costs less than copying because of where the memory lies.
    pub(crate) fn pays_from(&self) -> usize {
        match self {
            Self::Pages(_) => 0,
            Self::Region(part) => part.pays_from(),
        }
    }

    /// The first `len` bytes of it, or all if it has fewer.
    pub(crate) fn first(&self, len: usize) -> Self {
        match self {
            Self::Pages(pages) => Self::Pages(pages.slice(..len.min(pages.len()))),
            Self::Region(part) => Self::Region(part.slice(..len.min(part.len()))),
        }
    }

    /// Leaves the first `len` bytes of it. What was lent with the rest stays lent as long as this does.
    fn shorten(&mut self, len: usize) {
        match self {
            Self::Pages(pages) => *pages = pages.slice(..len.min(pages.len())),
            Self::Region(part) => part.shorten(len),
        }
    }

    /// What follows the first `len` bytes.
    pub(crate) fn after(&self, len: usize) -> Self {
        match self {
            Self::Pages(pages) => Self::Pages(pages.slice(len.min(pages.len())..)),
            Self::Region(part) => Self::Region(part.slice(len.min(part.len())..)),
        }
    }
}

/// A call that lends memory, while it is made.
#[must_use = "the call is to be made while it lives"]
pub(crate) enum Loan<'a> {
    Pages(&'a Pages),
    Region(Lending<'a>),
}

impl Loan<'_> {
    /// Says that the call took the first `bytes`, and that nobody will tell when they are free.
    pub(crate) fn give_away(self, bytes: usize) {
        match self {
            Self::Pages(pages) => pages.give_away(),
            Self::Region(mut lending) => lending.give_away(bytes),
        }
    }
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
    pub(crate) fn leased(&self) -> u64 {
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
            lenders::ask_all();
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
        assert_eq!(quota.leased(), 8192);
        assert!(Lease::take(memory(1), &quota).is_none());
        drop(first);
        let mut long = Lease::take(memory(100_000), &quota).expect("the first, however long");
        long.shorten(4097);
        assert_eq!((quota.leased(), long.memory().len()), (8192, 4097));
        drop(long);
        assert_eq!(quota.leased(), 0);
    }

    #[test]
    fn a_lease_keeps_the_pages() {
        let pages = PageBuffer::copy_of(b"lent").expect("taken").freeze();
        let quota = Quota::new(1 << 20);
        let lease = Lease::take(Memory::Pages(pages.clone()), &quota).expect("granted");
        let pages = pages.try_into_buffer().expect_err("it is lent");
        drop(lease);
        pages.try_into_buffer().expect("it came back");
    }
}
