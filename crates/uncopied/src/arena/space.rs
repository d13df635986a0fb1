//! The reserved addresses: who has which granules, and the table that [`locate`](super::locate)
//! reads.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::io::{Errno, Result};
use rustix::process::{Resource, getrlimit};

use super::mapping::MappedSpan;
use super::pool::Slab;
use crate::sys::{Kernel, Reservation};

/// Owners are told apart by granule: a span starts at a granule's start and fills whole granules.
///
/// 2 MiB is a huge page, so that spans of huge pages fit as well.
pub(super) const GRANULE: usize = 2 << 20;

/// How much address space is asked for, in bytes, first to last: under a limit on it (`ulimit -v`)
/// less is still useful.
const SIZES: [usize; 5] = [4 << 40, 512 << 30, 64 << 30, 8 << 30, 1 << 30];

/// Where addresses are limited, this share of them is the most that the arena takes.
const SHARE: u64 = 4;

/// Granules in a leaf of the table: 8 KiB of pointers for 2 GiB of addresses.
const LEAF: usize = 1024;

type Leaf = Box<[AtomicPtr<()>]>;

/// Whose a granule is: what the table's pointers point to. The lowest bit of the pointer tells which,
/// as both are aligned to more than a byte.
#[derive(Clone, Copy, Debug)]
pub(super) enum Owner {
    File(*const MappedSpan),
    Slab(*const Slab),
}

const SLAB_BIT: usize = 1;

impl Owner {
    fn to_pointer(self) -> *mut () {
        match self {
            Self::File(span) => span.cast_mut().cast(),
            Self::Slab(slab) => slab
                .cast_mut()
                .cast::<()>()
                .map_addr(|address| address | SLAB_BIT),
        }
    }

    fn from_pointer(pointer: *mut ()) -> Option<Self> {
        if pointer.is_null() {
            return None;
        }
        let untagged = pointer.map_addr(|address| address & !SLAB_BIT);
        Some(if untagged == pointer {
            Self::File(pointer.cast())
        } else {
            Self::Slab(untagged.cast())
        })
    }
}

static SPACE: OnceLock<Result<AddressSpace>> = OnceLock::new();

/// The arena of this process.
#[derive(Debug)]
pub(super) struct AddressSpace {
    reservation: Reservation,
    table: Box<[OnceLock<Leaf>]>,
    free: Mutex<FreeList>,
}

impl AddressSpace {
    /// The process's arena, reserved at the first call.
    ///
    /// # Errors
    ///
    /// What the kernel answered to the smallest reservation, at every call from then on.
    pub(super) fn get() -> Result<&'static Self> {
        SPACE
            .get_or_init(Self::reserve)
            .as_ref()
            .map_err(|errno| *errno)
    }

    /// The arena, if anything was ever put into it.
    pub(super) fn existing() -> Option<&'static Self> {
        SPACE.get()?.as_ref().ok()
    }

    fn reserve() -> Result<Self> {
        let mut refused = Errno::NOMEM;
        let most = getrlimit(Resource::As)
            .current
            .map_or(u64::MAX, |limit| limit / SHARE);
        for size in SIZES.into_iter().filter(|&size| size as u64 <= most) {
            match Reservation::new(size, GRANULE) {
                Ok(reservation) => {
                    let granules = size / GRANULE;
                    let table = (0..granules.div_ceil(LEAF))
                        .map(|_| OnceLock::new())
                        .collect();
                    let free = Mutex::new(FreeList::new(granules));
                    return Ok(Self {
                        reservation,
                        table,
                        free,
                    });
                }
                Err(errno) => refused = errno,
            }
        }
        Err(refused)
    }

    /// Maps the file, takes granules for `len` bytes and moves it there. Answers the address.
    pub(super) fn map(
        &self,
        kernel: &impl Kernel,
        file: BorrowedFd<'_>,
        offset: u64,
        len: usize,
    ) -> Result<usize> {
        let mapping = kernel.map(file, offset, len)?;
        let count = len.div_ceil(GRANULE);
        let first = self.free().take(count).ok_or(Errno::NOMEM)?;
        // After an error the granules stay taken: strangers may be mapped there by now.
        self.reservation.place(first * GRANULE, mapping)?;
        Ok(self.reservation.base() + first * GRANULE)
    }

    /// Takes granules for `len` bytes of memory that can be written to, zeroes all of it. It stays
    /// memory for good.
    pub(super) fn open(&self, len: usize, is_huge: bool) -> Result<usize> {
        let count = len.div_ceil(GRANULE);
        let first = self.free().take(count).ok_or(Errno::NOMEM)?;
        // After an error the granules stay taken, as it is not known what they are now.
        self.reservation
            .make_accessible(first * GRANULE, count * GRANULE, is_huge)?;
        Ok(self.reservation.base() + first * GRANULE)
    }

    /// Gives the frames of memory back to the kernel, whoever else refers to them. The addresses stay
    /// memory, all zeroes.
    pub(super) fn discard(&self, address: usize, len: usize) -> Result<()> {
        self.reservation
            .discard_frames(address - self.reservation.base(), len)
    }

    /// Enters `span` as the owner of its granules.
    pub(super) fn enter(&self, address: usize, len: usize, span: *const MappedSpan) {
        self.set_owner(address, len, Owner::File(span).to_pointer());
    }

    /// Takes the owner of these granules out.
    pub(super) fn leave(&self, address: usize, len: usize) {
        self.set_owner(address, len, ptr::null_mut());
    }

    /// Enters `slab` as the owner of its granules, for good.
    pub(super) fn enter_slab(&self, slab: &'static Slab, address: usize, len: usize) {
        self.set_owner(address, len, Owner::Slab(slab).to_pointer());
    }

    fn set_owner(&self, address: usize, len: usize, owner: *mut ()) {
        let first = (address - self.reservation.base()) / GRANULE;
        for granule in first..first + len.div_ceil(GRANULE) {
            let leaf = self.table[granule / LEAF].get_or_init(new_leaf);
            leaf[granule % LEAF].store(owner, Ordering::Release);
        }
    }

    /// Unmaps what [`map`](Self::map) mapped and gives the granules back.
    pub(super) fn unmap(&self, address: usize, len: usize) {
        let at = address - self.reservation.base();
        // Addresses whose mapping would not go stay taken: leaked before they are used twice.
        if self
            .reservation
            .reset(at, len.next_multiple_of(GRANULE))
            .is_ok()
        {
            self.free().give(at / GRANULE, len.div_ceil(GRANULE));
        }
    }

    /// The owner of the granule that holds `address`.
    pub(super) fn owner(&self, address: usize) -> Option<Owner> {
        let at = address.wrapping_sub(self.reservation.base());
        if at >= self.reservation.len() {
            return None;
        }
        let granule = at / GRANULE;
        let leaf = self.table[granule / LEAF].get()?;
        Owner::from_pointer(leaf[granule % LEAF].load(Ordering::Acquire))
    }

    fn free(&self) -> MutexGuard<'_, FreeList> {
        // The list is consistent between any two of its statements that could panic.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn new_leaf() -> Leaf {
    (0..LEAF).map(|_| AtomicPtr::new(ptr::null_mut())).collect()
}

/// The free stretches of granules, first granule → count. No two of them touch.
#[derive(Debug)]
struct FreeList {
    stretches: BTreeMap<usize, usize>,
}

impl FreeList {
    fn new(count: usize) -> Self {
        Self {
            stretches: BTreeMap::from([(0, count)]),
        }
    }

    /// The first stretch that is long enough, from its start.
    fn take(&mut self, count: usize) -> Option<usize> {
        let (&first, &have) = self.stretches.iter().find(|&(_, &have)| have >= count)?;
        self.stretches.remove(&first);
        if have > count {
            self.stretches.insert(first + count, have - count);
        }
        Some(first)
    }

    fn give(&mut self, mut first: usize, mut count: usize) {
        if let Some((&before, &have)) = self.stretches.range(..first).next_back()
            && before + have == first
        {
            first = before;
            count += have;
        }
        if let Some(after) = self.stretches.remove(&(first + count)) {
            count += after;
        }
        self.stretches.insert(first, count);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use std::fs::File;
    use std::os::fd::AsFd;

    use proptest::prelude::*;

    use super::*;
    use crate::sys::Linux;

    /// A hole would be filled by the next `malloc` of another thread, which the next mapping into the
    /// same granules would then overwrite. The guard: `UnplacedMapping`, mapped elsewhere first.
    #[test]
    fn a_refused_mapping_leaves_no_hole() {
        let space = AddressSpace::get().expect("reserved");
        // A file system that cannot map says so before the kernel has touched the old mapping, a
        // file of procfs after.
        let file = File::open("/proc/version").expect("opened");
        for _ in 0..3 {
            space
                .map(&Linux, file.as_fd(), 0, GRANULE)
                .expect_err("procfs cannot be mapped");
        }
        let mut covered = space.reservation.base();
        let end = covered + space.reservation.len();
        let maps = std::fs::read_to_string("/proc/self/maps").expect("read");
        for line in maps.lines() {
            let range = line.split(' ').next().expect("a range");
            let (from, to) = range.split_once('-').expect("two addresses");
            let address = |hex| usize::from_str_radix(hex, 16).expect("an address");
            if address(from) <= covered {
                covered = covered.max(address(to));
            }
        }
        assert!(covered >= end, "a hole at {covered:#x}");
    }

    proptest! {
        /// Whatever is taken and given back, no granule has two owners and none is lost.
        #[test]
        fn granules_have_one_owner(steps in prop::collection::vec((any::<bool>(), 1_usize..9), 1..200)) {
            let total = 64;
            let mut list = FreeList::new(total);
            let mut taken: Vec<(usize, usize)> = Vec::new();
            for (take, n) in steps {
                if take {
                    if let Some(first) = list.take(n) {
                        taken.push((first, n));
                    }
                } else if !taken.is_empty() {
                    let (first, count) = taken.swap_remove(n % taken.len());
                    list.give(first, count);
                }
                let mut seen = HashSet::new();
                let free = list.stretches.iter().map(|(&first, &count)| (first, count));
                for (first, count) in taken.iter().copied().chain(free) {
                    for granule in first..first + count {
                        prop_assert!(granule < total && seen.insert(granule));
                    }
                }
                prop_assert_eq!(seen.len(), total);
            }
            for (first, count) in taken {
                list.give(first, count);
            }
            prop_assert_eq!(list.stretches, BTreeMap::from([(0, total)]));
        }
    }
}
