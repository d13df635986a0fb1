//! What the handles of a region share: its memory, and who has been lent which huge page.
//!
//! Each huge page counts the leases of the frame that it has *now*. When the frame is replaced, the page
//! begins a new epoch without leases: the old ones are of a frame that nobody can write to any more, and
//! their end means nothing to it.
//!
//! Nobody who replaces a page waits for a call that lends it. A call that is under way when a page is
//! replaced may have got the old frame or the fresh one: when it returns, its [`Protected`] protects the
//! fresh one too, before anybody can take the send for done.

use std::io;
use std::ops::Range;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::io::{Errno, Result};

use super::faults::Faults;
use crate::arena::space::{AddressSpace, GRANULE};
use crate::sys;

/// The memory of a region.
#[derive(Debug)]
pub(super) struct RegionState {
    address: usize,
    len: usize,
    is_huge: bool,
    /// Who answers write faults, or why nobody does.
    faults: Result<&'static Faults>,
    pages: Mutex<Box<[HugePage]>>,
    /// A page stopped being [replaced](HugePage::is_moving).
    arrived: Condvar,
}

/// What is known of a huge page.
#[derive(Clone, Debug, Default)]
struct HugePage {
    /// How often the frame was replaced.
    epoch: u64,
    /// How many leases this frame has.
    leases: usize,
    /// This frame lies, or may lie, where nobody tells when it is free.
    is_gifted: bool,
    is_protected: bool,
    /// The frame was replaced, and the kernel would not register the fresh one.
    is_unregistered: bool,
    /// Somebody is replacing the frame, and has let go of the lock meanwhile.
    is_moving: bool,
}

impl HugePage {
    fn is_lent(&self) -> bool {
        self.leases > 0 || self.is_gifted
    }
}

impl RegionState {
    /// Zeroed memory for `len` bytes, with `faults` to protect it.
    pub(super) fn new(len: usize, faults: Result<&'static Faults>) -> Result<Arc<Self>> {
        let memory_len = len.checked_next_multiple_of(GRANULE).ok_or(Errno::NOMEM)?;
        if len == 0 {
            return Err(Errno::INVAL);
        }
        let padded = memory_len.checked_add(GRANULE).ok_or(Errno::NOMEM)?;
        let address = AddressSpace::get()?.open(padded, true)?;
        // From here on the drop gives the memory back.
        let mut shared = Self {
            address,
            len: memory_len,
            is_huge: false,
            faults,
            pages: Mutex::new(vec![HugePage::default(); memory_len / GRANULE].into()),
            arrived: Condvar::new(),
        };
        // The kernel joins neighbours into one mapping, of which it then tells in one figure.
        sys::make_inaccessible(address + memory_len, GRANULE)?;
        sys::wipe_on_fork(address, memory_len)?;
        sys::populate(address, memory_len)?;
        if let Ok(faults) = faults
            && let Err(errno) = faults.userfault().register(address, memory_len)
        {
            shared.faults = Err(errno);
        }
        shared.is_huge = shared.huge_bytes().is_ok_and(|bytes| bytes == memory_len);
        let shared = Arc::new(shared);
        if let Ok(faults) = shared.faults {
            faults.enter(address, &shared);
        }
        Ok(shared)
    }

    pub(super) fn address(&self) -> usize {
        self.address
    }

    pub(super) fn contains(&self, address: usize) -> bool {
        (self.address..self.address + self.len).contains(&address)
    }

    pub(super) fn is_huge(&self) -> bool {
        self.is_huge
    }

    pub(super) fn faults(&self) -> Result<&'static Faults> {
        let faults = self.faults?;
        if faults.is_ours() {
            Ok(faults)
        } else {
            Err(Errno::CHILD)
        }
    }

    /// How much of the memory lies in huge pages now.
    pub(super) fn huge_bytes(&self) -> io::Result<usize> {
        let maps = std::fs::read_to_string("/proc/self/smaps")?;
        let mut is_ours = false;
        let mut kib = 0;
        for line in maps.lines() {
            let mut words = line.split_ascii_whitespace();
            let first = words.next().unwrap_or_default();
            if let Some((start, _)) = first.split_once('-') {
                let start = usize::from_str_radix(start, 16);
                is_ours = start.is_ok_and(|start| self.contains(start));
            } else if is_ours && first == "AnonHugePages:" {
                let figure = words.next().and_then(|figure| figure.parse().ok());
                kib += figure.unwrap_or(0);
            }
        }
        Ok(kib * 1024)
    }

    /// The huge pages that hold bytes of a range of offsets.
    pub(super) fn pages_of(bytes: &Range<usize>) -> Range<usize> {
        if bytes.is_empty() {
            return 0..0;
        }
        bytes.start / GRANULE..bytes.end.div_ceil(GRANULE)
    }

    /// Lets user code write to the huge page at `address`: at once, where nobody has been lent its
    /// frame; after a copy, where somebody has.
    pub(super) fn make_writable(&self, address: usize) -> Result<()> {
        let Ok(faults) = self.faults() else {
            return Ok(());
        };
        let index = (address - self.address) / GRANULE;
        let start = self.address + index * GRANULE;
        let mut pages = self.settled(index..index + 1);
        if !(pages[index].is_protected && pages[index].is_lent()) {
            if !pages[index].is_unregistered {
                faults.userfault().unprotect(start, GRANULE)?;
            }
            pages[index].is_protected = false;
            return Ok(());
        }
        pages[index].is_moving = true;
        drop(pages);
        let replaced = faults.replace(start);
        let mut pages = self.lock();
        let page = &mut pages[index];
        page.is_moving = false;
        if let Ok(is_registered) = replaced {
            *page = HugePage {
                epoch: page.epoch + 1,
                is_unregistered: !is_registered,
                ..HugePage::default()
            };
        }
        self.arrived.notify_all();
        replaced.map(|_| ())
    }

    /// Protects those of the pages that are not.
    fn protect(&self, pages: &mut [HugePage], first: usize) -> Result<()> {
        let userfault = self.faults()?.userfault();
        let at = |index: usize| self.address + (first + index) * GRANULE;
        for (index, page) in pages.iter_mut().enumerate() {
            if page.is_unregistered {
                userfault.register(at(index), GRANULE)?;
                page.is_unregistered = false;
            }
        }
        let mut done = 0;
        for run in pages.chunk_by_mut(|one, next| one.is_protected == next.is_protected) {
            if run.iter().any(|page| !page.is_protected) {
                userfault.protect(at(done), run.len() * GRANULE)?;
                run.iter_mut().for_each(|page| page.is_protected = true);
            }
            done += run.len();
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Box<[HugePage]>> {
        // The states are whole between any two of the statements that could panic.
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pages, when none of `range` is being replaced.
    fn settled(&self, range: Range<usize>) -> MutexGuard<'_, Box<[HugePage]>> {
        self.arrived
            .wait_while(self.lock(), |pages| {
                pages[range.clone()].iter().any(|page| page.is_moving)
            })
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RegionState {
    fn drop(&mut self) {
        if let Ok(faults) = self.faults {
            faults.leave(self.address);
        }
        // Frames that the kernel has been lent or given stay with it.
        if let Some(space) = AddressSpace::existing() {
            space.unmap(self.address, self.len + GRANULE);
        }
    }
}

/// Leases of huge pages: what a part of a region has once it was lent.
#[derive(Debug)]
pub(super) struct Hold {
    shared: Arc<RegionState>,
    first: usize,
    /// Of each page, the epoch of the frame that is held. They change under the lock of the pages.
    epochs: Box<[AtomicU64]>,
}

const NONE_HELD: u64 = u64::MAX;

impl Hold {
    /// A hold of no frame yet.
    pub(super) fn new(shared: &Arc<RegionState>, pages: Range<usize>) -> Self {
        Self {
            shared: Arc::clone(shared),
            first: pages.start,
            epochs: pages.map(|_| AtomicU64::new(NONE_HELD)).collect(),
        }
    }

    /// A hold of those frames of this one that are of some of its pages.
    pub(super) fn of_some(&self, some: Range<usize>) -> Self {
        let hold = Self::new(&self.shared, some.clone());
        let mut pages = self.shared.lock();
        for (index, epoch) in some.clone().zip(&hold.epochs) {
            let held = self.epochs[index - self.first].load(Ordering::Relaxed);
            epoch.store(held, Ordering::Relaxed);
            // Of a frame that was replaced there is nothing to count.
            if pages[index].epoch == held {
                pages[index].leases += 1;
            }
        }
        drop(pages);
        hold
    }

    /// Protects the pages and holds the frames that they have now.
    ///
    /// `start` is the first byte that is lent, by its place in the region.
    pub(super) fn protect(&self, start: usize) -> Result<Protected<'_>> {
        self.renew()?;
        Ok(Protected {
            hold: self,
            start,
            gifted: 0,
        })
    }

    fn pages(&self) -> Range<usize> {
        self.first..self.first + self.epochs.len()
    }

    fn renew(&self) -> Result<()> {
        let mut pages = self.shared.settled(self.pages());
        let pages = &mut pages[self.pages()];
        self.shared.protect(pages, self.first)?;
        for (page, epoch) in pages.iter_mut().zip(&self.epochs) {
            if epoch.swap(page.epoch, Ordering::Relaxed) != page.epoch {
                page.leases += 1;
            }
        }
        Ok(())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut pages = self.shared.lock();
        for (page, epoch) in pages[self.pages()].iter_mut().zip(&self.epochs) {
            if page.epoch == epoch.load(Ordering::Relaxed) {
                page.leases -= 1;
            }
        }
    }
}

/// A call that lends pages of a region, from before it is made until it has returned.
///
/// It must be dropped before the send is said to be done: what the call took is safe from then on.
#[derive(Debug)]
#[must_use = "the call is to be made while it lives"]
pub(crate) struct Protected<'a> {
    hold: &'a Hold,
    start: usize,
    /// So many bytes.
    gifted: usize,
}

impl Protected<'_> {
    /// Says that the call took the first `bytes`, and that nobody will tell when they are free: until
    /// somebody writes to them, these pages stay protected.
    pub(crate) fn gift(&mut self, bytes: usize) {
        self.gifted = bytes;
    }
}

impl Drop for Protected<'_> {
    fn drop(&mut self) {
        if let Err(errno) = self.hold.renew() {
            // The kernel reads a frame that user code can write to. Only a page that was replaced
            // meanwhile comes here, and the kernel has no reason that is known to refuse it.
            eprintln!("uncopied: a lent page cannot be protected ({errno}); aborting");
            process::abort();
        }
        let end = (self.start + self.gifted).div_ceil(GRANULE);
        let mut pages = self.hold.shared.lock();
        for page in &mut pages[self.hold.first..end.min(self.hold.pages().end)] {
            page.is_gifted = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Region, RegionMut};
    use super::*;
    use crate::arena::Memory;
    use crate::in_flight::{Lease, Quota};

    fn region() -> (Region, RegionMut) {
        let (region, writer) = Region::new(3 * GRANULE).expect("taken");
        region.protection().expect("userfaultfd is there");
        (region, writer)
    }

    fn page(region: &Region, index: usize) -> HugePage {
        region.shared.settled(index..index + 1)[index].clone()
    }

    #[test]
    fn a_page_is_protected_until_its_last_lease_ends_and_then_lifted() {
        let (region, mut writer) = region();
        let two = [(); 2].map(|()| region.part(GRANULE - 1..=GRANULE));
        for part in &two {
            drop(part.protect().expect("lent"));
        }
        drop(two[0].protect().expect("lent again"));
        assert_eq!(
            [0, 1, 2].map(|index| page(&region, index).leases),
            [2, 2, 0]
        );
        assert!(!page(&region, 2).is_protected);
        let [first, second] = two;
        drop(first);
        assert_eq!(page(&region, 0).leases, 1);
        writer[0] = 1;
        let replaced = page(&region, 0);
        assert_eq!((replaced.epoch, replaced.leases), (1, 0));
        assert!(!replaced.is_protected);
        let of_the_fresh_frame = region.part(..1);
        drop(of_the_fresh_frame.protect().expect("lent"));
        let clone = second.clone();
        drop(second);
        assert_eq!(page(&region, 1).leases, 1, "a clone holds it");
        drop(clone);
        let page_1 = page(&region, 1);
        assert!(page_1.is_protected, "until somebody writes");
        assert_eq!((page(&region, 0).leases, page_1.leases), (1, 0));
        writer[GRANULE] = 1;
        let lifted = page(&region, 1);
        assert_eq!((lifted.epoch, lifted.is_protected), (0, false));
        assert_eq!((writer[0], writer[1], writer[GRANULE]), (1, 0, 1));
    }

    #[test]
    fn a_page_given_away_is_replaced_once() {
        let (region, mut writer) = region();
        let lend = || {
            let part = region.part(..GRANULE + 1);
            part.protect().expect("lent").gift(GRANULE);
        };
        lend();
        lend();
        assert!(page(&region, 0).is_gifted && !page(&region, 1).is_gifted);
        writer.fill(7);
        assert_eq!([0, 1].map(|index| page(&region, index).epoch), [1, 0]);
        writer.fill(8);
        assert_eq!(page(&region, 0).epoch, 1);
        lend();
        assert!(page(&region, 0).is_protected && page(&region, 0).is_gifted);
        writer.prepare().expect("prepared");
        assert_eq!([0, 1].map(|index| page(&region, index).epoch), [2, 0]);
        assert!(writer.iter().all(|byte| *byte == 8));
    }

    /// The call may have taken the old frame or the fresh one.
    #[test]
    fn a_page_replaced_during_the_call_is_protected_after_it() {
        let (region, mut writer) = region();
        let part = region.part(..2 * GRANULE);
        let mut lending = part.protect().expect("lent");
        writer[5] = 1;
        assert!(!page(&region, 0).is_protected);
        lending.gift(1);
        drop(lending);
        let [first, second] = [0, 1].map(|index| page(&region, index));
        assert_eq!((first.epoch, first.leases), (1, 1));
        assert!(first.is_protected && first.is_gifted);
        assert!(second.is_protected && !second.is_gifted);
        drop(part);
        writer[5] = 2;
        assert_eq!(page(&region, 0).epoch, 2);
    }

    /// Such a frame was lent, and then written to: what was in flight changed.
    #[test]
    fn a_lease_shortened_during_the_call_holds_what_replaced_its_page() {
        let (region, mut writer) = region();
        let memory = Memory::Region(region.part(..2 * GRANULE));
        let loan = memory.prepare().expect("lent");
        let quota = Quota::new(u64::MAX);
        let mut lease = Lease::take(memory.clone(), &quota).expect("granted");
        writer[5] = 1;
        lease.shorten(100);
        drop(loan);
        drop(memory);
        let fresh = page(&region, 0);
        assert_eq!((fresh.epoch, fresh.leases), (1, 1));
        assert!(fresh.is_protected);
        writer[5] = 2;
        assert_eq!(
            page(&region, 0).epoch,
            2,
            "it was lent, and so it is replaced"
        );
        drop(lease);
        assert_eq!(page(&region, 1).leases, 0);
    }

    #[test]
    fn a_part_of_what_was_lent_holds_its_own_pages() {
        let (region, mut writer) = region();
        let whole = region.part(..);
        drop(whole.protect().expect("lent"));
        writer[GRANULE] = 1;
        let part = whole.slice(GRANULE..);
        drop(whole);
        assert_eq!(
            [0, 1, 2].map(|index| page(&region, index).leases),
            [0, 0, 1]
        );
        drop(part);
        assert_eq!(page(&region, 2).leases, 0);
    }

    #[test]
    fn a_page_that_was_not_registered_again_is_before_it_is_lent() {
        let (region, mut writer) = region();
        let faults = region.shared.faults().expect("there");
        let part = region.part(..1);
        part.protect().expect("lent").gift(1);
        // What the kernel leaves when it refuses.
        let spare = AddressSpace::get().and_then(|space| space.open(GRANULE, true));
        sys::replace_page(region.shared.address(), spare.expect("taken"), GRANULE)
            .expect("replaced");
        region.shared.lock()[0] = HugePage {
            is_unregistered: true,
            epoch: 1,
            ..HugePage::default()
        };
        writer.prepare().expect("nothing is lent");
        writer[0] = 3;
        part.protect().expect("lent").gift(1);
        assert!(page(&region, 0).is_protected && !page(&region, 0).is_unregistered);
        writer[0] = 4;
        assert_eq!(page(&region, 0).epoch, 2);
        assert!(faults.is_ours());
    }
}
