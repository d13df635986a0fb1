//! The reserved range of addresses: which of its granules (units of 2 MiB) are free, and the table
//! in which [`locate`](super::locate) looks up the owner of a granule.

use std::collections::BTreeMap;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::io::{Errno, Result};
use rustix::process::{Resource, getrlimit};

use crate::sys::Reservation;
use crate::sys::fork::{OwnerProcess, PerProcess};

/// The size of a granule, the unit in which addresses are allocated. A granule has at most one
/// owner.
///
/// This is the size of a huge page, so that a granule can be a single huge page.
pub(super) const GRANULE_BYTES: usize = 2 << 20;

/// The sizes that are tried, in this order, when the arena's addresses are reserved. If the address
/// space of the process is limited (`ulimit -v`), a smaller arena is still useful.
const RESERVATION_BYTES: [usize; 5] = [4 << 40, 512 << 30, 64 << 30, 8 << 30, 1 << 30];

/// If the address space of the process is limited, the arena reserves at most the limit divided by
/// this number.
const ADDRESS_LIMIT_DIVISOR: u64 = 4;

/// The number of granules in a leaf of the owner table. A leaf is 8 KiB of pointers and covers 2
/// GiB of addresses.
const LEAF_GRANULES: usize = 1024;

type Leaf = Box<[AtomicPtr<()>]>;

/// The type of the value that owns a granule. Each owner type has a kind of its own.
#[derive(Clone, Copy, Debug)]
pub(super) enum OwnerKind {
    File = 0,
    Slab = 1,
}

/// The bit of a pointer in the owner table that stores the [`OwnerKind`].
const KIND_BIT: usize = 1;

/// A type whose values own granules.
pub(super) trait GranuleOwner {
    /// Distinguishes the values of this type from those of other owner types. No two types may have
    /// the same kind.
    const KIND: OwnerKind;
}

/// The owner of a granule, as the owner table stores it: a pointer to the owner, with the
/// [`OwnerKind`] in the lowest bit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner(*mut ());

impl Owner {
    fn new<T: GranuleOwner>(owner: *const T) -> Self {
        const {
            assert!(
                align_of::<T>() > KIND_BIT,
                "the kind needs a bit that is 0 in every pointer"
            )
        };
        Self(
            owner
                .cast_mut()
                .cast::<()>()
                .map_addr(|address| address | T::KIND as usize),
        )
    }

    /// Returns the registered pointer if the owner is a `T`.
    pub(super) fn downcast<T: GranuleOwner>(self) -> Option<*const T> {
        let is_a_t = self.0.addr() & KIND_BIT == T::KIND as usize;
        is_a_t.then(|| {
            self.0
                .map_addr(|address| address & !KIND_BIT)
                .cast_const()
                .cast()
        })
    }
}

/// The address space of each process. A forked child reserves its own: in its copy of the parent's
/// space, the lock of the free list may be held by a thread that exists only in the parent, and
/// would never be released.
static SPACES: PerProcess<OnceLock<Result<AddressSpace>>> = PerProcess::new();

/// The address space of the arena of one process.
#[derive(Debug)]
pub(super) struct AddressSpace {
    owner_process: OwnerProcess,
    reservation: Reservation,
    /// The owner table: for each granule a pointer to its owner, or null. A leaf is allocated when
    /// the first owner in its range is registered.
    owners: Box<[OnceLock<Leaf>]>,
    free: Mutex<FreeGranules>,
}

impl AddressSpace {
    /// Returns the address space of this process. The first call reserves it.
    ///
    /// # Errors
    ///
    /// The errno with which the kernel refused the smallest size that was tried; `ENOMEM` if the
    /// limit on address space is too low for any size. If the first call fails, all later calls
    /// fail with the same error.
    pub(super) fn get() -> Result<&'static Self> {
        SPACES
            .get()
            .get_or_init(Self::reserve)
            .as_ref()
            .map_err(|errno| *errno)
    }

    fn reserve() -> Result<Self> {
        Self::reserve_at_most(max_reservation_bytes())
    }

    fn reserve_at_most(max_bytes: u64) -> Result<Self> {
        let mut error = Errno::NOMEM;
        for size in RESERVATION_BYTES {
            if size as u64 > max_bytes {
                continue;
            }
            match Reservation::new(size, GRANULE_BYTES) {
                Ok(reservation) => {
                    let granules = size / GRANULE_BYTES;
                    let owners = (0..granules.div_ceil(LEAF_GRANULES))
                        .map(|_| OnceLock::new())
                        .collect();
                    let free = Mutex::new(FreeGranules::new(granules));
                    return Ok(Self {
                        owner_process: OwnerProcess::current(),
                        reservation,
                        owners,
                        free,
                    });
                }
                Err(errno) => error = errno,
            }
        }
        Err(error)
    }

    /// Allocates at least `len` bytes of zeroed memory that can be read and written, in whole
    /// granules. With `is_huge`, the memory consists of huge pages if possible.
    pub(super) fn allocate(&'static self, len: usize, is_huge: bool) -> Result<Granules> {
        let granules = self.allocate_addresses(len)?;
        // SAFETY: the granules were free. Either nothing was ever mapped into a free granule, or
        // the granule was reset since. If the call fails, dropping `granules` resets them.
        #[allow(unsafe_code)]
        unsafe {
            self.reservation
                .make_accessible(granules.at(), granules.len(), is_huge)?;
        }
        Ok(granules)
    }

    /// Allocates at least `len` bytes of memory that can be read but not written, in whole
    /// granules. Calls `prepare` with the granules before they can be read.
    pub(super) fn allocate_readable(
        &'static self,
        len: usize,
        prepare: impl FnOnce(&Granules) -> Result<()>,
    ) -> Result<Granules> {
        let granules = self.allocate_addresses(len)?;
        prepare(&granules)?;
        // SAFETY: as in `allocate`.
        #[allow(unsafe_code)]
        unsafe {
            self.reservation
                .make_readable(granules.at(), granules.len())?;
        }
        Ok(granules)
    }

    /// Allocates granules for `len` bytes. Nothing is mapped there yet.
    fn allocate_addresses(&'static self, len: usize) -> Result<Granules> {
        let count = len.div_ceil(GRANULE_BYTES);
        let first = self.free().allocate(count).ok_or(Errno::NOMEM)?;
        Ok(Granules {
            space: self,
            first,
            count,
        })
    }

    fn set_owner(&self, granules: Range<usize>, owner: Option<Owner>) {
        for granule in granules {
            let leaf = &self.owners[granule / LEAF_GRANULES];
            let leaf = match owner {
                Some(_) => leaf.get_or_init(new_leaf),
                // A leaf that is not allocated has no owners to remove. It must not be allocated
                // here: if a thread of the parent was allocating it during a fork, `get_or_init`
                // would wait forever in the child.
                None => match leaf.get() {
                    Some(leaf) => leaf,
                    None => continue,
                },
            };
            let owner = owner.map_or(ptr::null_mut(), |owner| owner.0);
            leaf[granule % LEAF_GRANULES].store(owner, Ordering::Release);
        }
    }

    /// Returns the owner of the granule that contains `address`. `None` if it has no owner, or if
    /// `address` lies outside the arena.
    ///
    /// A forked child also finds the owners that it has inherited. The look-up takes no lock, so
    /// threads that exist only in the parent cannot block it.
    pub(super) fn owner_of(address: usize) -> Option<Owner> {
        SPACES
            .values()
            .filter_map(|space| space.get()?.as_ref().ok())
            .find_map(|space| space.owner(address))
    }

    fn owner(&self, address: usize) -> Option<Owner> {
        let at = address.wrapping_sub(self.reservation.base());
        if at >= self.reservation.len() {
            return None;
        }
        let granule = at / GRANULE_BYTES;
        let leaf = self.owners[granule / LEAF_GRANULES].get()?;
        let owner = leaf[granule % LEAF_GRANULES].load(Ordering::Acquire);
        (!owner.is_null()).then_some(Owner(owner))
    }

    fn free(&self) -> MutexGuard<'_, FreeGranules> {
        // A poisoned lock may still be used: no statement that may panic comes between two changes
        // that belong together, so a panic cannot have left the list inconsistent.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns how many bytes the arena may reserve, given the limit on the address space of the
/// process.
fn max_reservation_bytes() -> u64 {
    let limit = getrlimit(Resource::As).current;
    limit.map_or(u64::MAX, |limit| limit / ADDRESS_LIMIT_DIVISOR)
}

/// Adjacent granules that were allocated, and what is mapped there. No other value has any of them.
///
/// Dropping this value removes the granules from the owner table, unmaps what is mapped there, and
/// frees the granules. So code that makes references into the granules must keep this value for as
/// long as a reference exists. To make such a reference, unsafe code is needed anyway, because this
/// type only returns the address.
#[derive(Debug)]
pub(super) struct Granules {
    space: &'static AddressSpace,
    first: usize,
    count: usize,
}

impl Granules {
    /// Returns the address of the first byte.
    pub(super) fn address(&self) -> usize {
        self.space.reservation.base() + self.at()
    }

    /// Returns the length in bytes.
    pub(super) fn len(&self) -> usize {
        self.count * GRANULE_BYTES
    }

    /// Registers `owner` as the owner of these granules, until they are dropped.
    ///
    /// # Safety
    ///
    /// `owner` must be valid for as long as a slice exists that begins in these granules. A look-up
    /// returns the pointer for such a slice, and the pointer may then be used while the slice is
    /// borrowed.
    #[allow(unsafe_code)]
    pub(super) unsafe fn register<T: GranuleOwner>(&self, owner: *const T) {
        self.space
            .set_owner(self.indices(), Some(Owner::new(owner)));
    }

    /// Returns the page frames of a part of [allocated](AddressSpace::allocate) memory to the
    /// kernel. The part is given by the address of its first byte and its length in bytes. The
    /// memory stays accessible and then reads as zeroes. A frame that is also used elsewhere, such
    /// as in a socket's queue, keeps its content there.
    ///
    /// # Safety
    ///
    /// The part must lie within these granules, and no reference into it may exist. If this fails,
    /// the part must never be used again.
    #[allow(unsafe_code)]
    pub(super) unsafe fn discard_frames(&self, address: usize, len: usize) -> Result<()> {
        let at = address.wrapping_sub(self.space.reservation.base());
        // SAFETY: the part lies within these granules, which belong to `self`. The rest is what the
        // caller guarantees.
        unsafe { self.space.reservation.discard_frames(at, len) }
    }

    /// Returns the position in the reservation, in bytes.
    fn at(&self) -> usize {
        self.first * GRANULE_BYTES
    }

    fn indices(&self) -> Range<usize> {
        self.first..self.first + self.count
    }
}

impl Drop for Granules {
    fn drop(&mut self) {
        self.space.set_owner(self.indices(), None);
        // SAFETY: the granules belong to `self`. Code that makes references into them keeps `self`
        // for as long as a reference exists, so no reference exists any longer.
        #[allow(unsafe_code)]
        let reset = unsafe { self.space.reservation.reset(self.at(), self.len()) };
        // If what is mapped there cannot be removed, the addresses are leaked, so that they are not
        // used twice. A forked child leaks the addresses that it has inherited: the child's copy of
        // the free list may be locked forever, by a thread that exists only in the parent.
        if reset.is_ok() && self.space.owner_process.is_current() {
            self.space.free().release(self.first, self.count);
        }
    }
}

fn new_leaf() -> Leaf {
    (0..LEAF_GRANULES)
        .map(|_| AtomicPtr::new(ptr::null_mut()))
        .collect()
}

/// The free granules.
#[derive(Debug)]
struct FreeGranules {
    /// The runs of adjacent free granules: the number of granules in a run, by the index of its
    /// first granule. Adjacent runs are always merged into one.
    runs: BTreeMap<usize, usize>,
}

impl FreeGranules {
    fn new(count: usize) -> Self {
        Self {
            runs: BTreeMap::from([(0, count)]),
        }
    }

    /// Allocates `count` adjacent granules, and returns the index of the first of them. They are
    /// taken from the start of the first run that is long enough.
    fn allocate(&mut self, count: usize) -> Option<usize> {
        let (&first, &available) = self.runs.iter().find(|&(_, &len)| len >= count)?;
        self.runs.remove(&first);
        if available > count {
            self.runs.insert(first + count, available - count);
        }
        Some(first)
    }

    fn release(&mut self, mut first: usize, mut count: usize) {
        if let Some((&before, &len)) = self.runs.range(..first).next_back()
            && before + len == first
        {
            first = before;
            count += len;
        }
        if let Some(after) = self.runs.remove(&(first + count)) {
            count += after;
        }
        self.runs.insert(first, count);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;
    use rustix::process::{Rlimit, setrlimit};

    use super::*;
    use crate::sys::fork::tests::in_child;

    /// The parent holds the lock of the free list during the fork, so the child hangs if it takes
    /// that lock.
    #[test]
    fn a_child_can_drop_granules_of_its_parent() {
        let space = AddressSpace::get().expect("the arena exists");
        let mut granules = space.allocate(1, false).ok();
        assert!(granules.is_some());
        let free = space.free();
        let result = in_child(|| {
            drop(granules.take());
            let own = AddressSpace::get().and_then(|space| space.allocate(1, false));
            u8::from(own.is_err())
        });
        drop(free);
        assert_eq!(result, 0);
    }

    #[test]
    fn dropped_granules_are_allocated_again_and_have_no_owner() {
        #[repr(align(2))]
        struct Owner;
        static OWNER: Owner = Owner;
        impl GranuleOwner for Owner {
            const KIND: OwnerKind = OwnerKind::File;
        }
        // The child has a space of its own, which no other test uses.
        let result = in_child(|| {
            let space = AddressSpace::get().expect("the arena exists");
            let granules = space.allocate(GRANULE_BYTES + 1, false).expect("allocated");
            assert_eq!(granules.len(), 2 * GRANULE_BYTES);
            let address = granules.address();
            // SAFETY: nobody looks up the owner of a slice in these granules.
            #[allow(unsafe_code)]
            unsafe {
                granules.register(&raw const OWNER);
            }
            let has_owner = |granule: usize| {
                AddressSpace::owner_of(address + granule * GRANULE_BYTES).is_some()
            };
            assert_eq!([0, 1, 2].map(has_owner), [true, true, false]);
            drop(granules);
            assert_eq!([0, 1, 2].map(has_owner), [false; 3]);
            let again = space.allocate(1, false).expect("allocated");
            u8::from(again.address() != address || again.len() != GRANULE_BYTES)
        });
        assert_eq!(result, 0);
    }

    #[test]
    fn the_arena_reserves_the_largest_size_within_the_limit() {
        let result = in_child(|| {
            let reserved = |max_bytes| {
                let space = AddressSpace::reserve_at_most(max_bytes);
                space.map(|space| space.reservation.len())
            };
            for shift in [42_u8, 39, 36, 33, 30] {
                assert_eq!(reserved(1 << shift), Ok(1 << shift));
                assert_eq!(reserved((2 << shift) - 1), Ok(1 << shift));
            }
            u8::from(reserved((1 << 30) - 1) != Err(Errno::NOMEM))
        });
        assert_eq!(result, 0);
    }

    #[test]
    fn the_arena_takes_a_quarter_of_a_limited_address_space() {
        let result = in_child(|| {
            let maximum = getrlimit(Resource::As).maximum;
            let current = Some(64 << 40);
            setrlimit(Resource::As, Rlimit { current, maximum }).expect("set");
            u8::from(max_reservation_bytes() != 16 << 40)
        });
        assert_eq!(result, 0);
    }

    proptest! {
        #[test]
        fn every_granule_is_either_free_or_allocated_once(steps in prop::collection::vec((any::<bool>(), 1_usize..9), 1..200)) {
            let total = 64;
            let mut list = FreeGranules::new(total);
            let mut allocated: Vec<(usize, usize)> = Vec::new();
            for (is_allocation, n) in steps {
                if is_allocation {
                    if let Some(first) = list.allocate(n) {
                        allocated.push((first, n));
                    }
                } else if !allocated.is_empty() {
                    let (first, count) = allocated.swap_remove(n % allocated.len());
                    list.release(first, count);
                }
                prop_assert!(list.runs.values().all(|&len| len > 0));
                let mut seen = HashSet::new();
                let free = list.runs.iter().map(|(&first, &count)| (first, count));
                for (first, count) in allocated.iter().copied().chain(free) {
                    for granule in first..first + count {
                        prop_assert!(granule < total && seen.insert(granule));
                    }
                }
                prop_assert_eq!(seen.len(), total);
            }
            for (first, count) in allocated {
                list.release(first, count);
            }
            prop_assert_eq!(list.runs, BTreeMap::from([(0, total)]));
        }
    }
}
