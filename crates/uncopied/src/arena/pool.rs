//! A pool of memory blocks.
//!
//! The length of a block is a power of two, from a page to [`MAX_BLOCK_BYTES`]. Blocks smaller than
//! a granule share one; larger ones have granules of their own. Addresses that have become memory
//! stay memory: a released block keeps its page frames for the next allocation, up to a limit.
//! Beyond the limit the frames go back to the kernel, and only the addresses are kept.

use std::cell::RefCell;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::{Errno, Result};

use super::space::{AddressSpace, GRANULE_BYTES, GranuleOwner, OwnerKind};

/// The smallest length of a block. Where pages are larger than this, it is a page.
pub(super) const MIN_BLOCK_BYTES: usize = 4 << 10;

/// The largest length of a block.
pub(super) const MAX_BLOCK_BYTES: usize = 1 << 30;

/// The number of lengths that blocks have.
const LEN_COUNT: usize = (MAX_BLOCK_BYTES / MIN_BLOCK_BYTES).ilog2() as usize + 1;

/// The number of classes of blocks: one for each length, and again one for each length of blocks of
/// huge pages.
const CLASS_COUNT: usize = 2 * LEN_COUNT;

/// How many free bytes of each class a thread caches. Most buffers are allocated from that cache
/// and released to it, without a lock.
const THREAD_CACHE_BYTES: usize = 1 << 20;

/// How many bytes of free blocks keep their page frames, not counting those that threads cache.
const MAX_WARM_BYTES: usize = 64 << 20;

static POOL: Pool = Pool {
    free: [const { Mutex::new(FreeBlocks::new()) }; CLASS_COUNT],
    warm_bytes: AtomicUsize::new(0),
};

thread_local! {
    static THREAD_CACHE: RefCell<ThreadCache> =
        const { RefCell::new(ThreadCache([const { Vec::new() }; CLASS_COUNT])) };
}

/// Memory that is divided into blocks of one length. It stays so for as long as the process runs.
#[derive(Debug)]
pub(super) struct Slab {
    address: usize,
    block_len: usize,
    /// For each block, a pointer to it if it is frozen, which [`locate`](super::locate) reads. The
    /// others are null.
    frozen: Box<[AtomicPtr<Block>]>,
}

impl GranuleOwner for Slab {
    const KIND: OwnerKind = OwnerKind::Slab;
}

impl Slab {
    /// The frozen block that holds `address`, which must lie in this slab. Null if that block is
    /// not frozen.
    ///
    /// The pointer was made by [`Arc::as_ptr`]. It is valid for as long as something else keeps the
    /// block alive.
    pub(super) fn frozen_at(&self, address: usize) -> *const Block {
        self.frozen[(address - self.address) / self.block_len].load(Ordering::Acquire)
    }
}

/// An allocated block: memory that belongs to nothing else.
#[derive(Debug)]
pub(super) struct Block {
    location: BlockLocation,
    /// Its page frames are, or may be, in queues of the kernel that do not report when they are
    /// empty.
    is_gifted: AtomicBool,
}

/// Where a block is, and of which class.
#[derive(Clone, Copy, Debug)]
struct BlockLocation {
    slab: &'static Slab,
    address: usize,
    class: usize,
}

impl Block {
    /// Allocates a block of at least `len` bytes. It contains zeroes, or what an earlier block in
    /// this process left there.
    pub(super) fn allocate(len: usize, is_huge: bool) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            location: allocate(class_of(len, is_huge)?)?,
            is_gifted: AtomicBool::new(false),
        }))
    }

    pub(super) fn address(&self) -> usize {
        self.location.address
    }

    pub(super) fn len(&self) -> usize {
        self.location.slab.block_len
    }

    /// Makes [`locate`](super::locate) find the block.
    pub(super) fn freeze(self: &Arc<Self>) {
        self.frozen_entry()
            .store(Arc::as_ptr(self).cast_mut(), Ordering::Release);
    }

    /// Makes [`locate`](super::locate) no longer find the block.
    pub(super) fn unfreeze(&self) {
        self.frozen_entry()
            .store(ptr::null_mut(), Ordering::Release);
    }

    /// Leaves the page frames to the kernel, because nothing reports when it is done with them.
    /// They are never written to again.
    pub(super) fn gift(&self) {
        self.is_gifted.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_gifted(&self) -> bool {
        self.is_gifted.load(Ordering::Relaxed)
    }

    fn frozen_entry(&self) -> &AtomicPtr<Self> {
        let slab = self.location.slab;
        &slab.frozen[(self.location.address - slab.address) / slab.block_len]
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.unfreeze();
        let is_gifted = *self.is_gifted.get_mut();
        release(self.location, is_gifted);
    }
}

/// The class of blocks that hold `len` bytes.
fn class_of(len: usize, is_huge: bool) -> Result<usize> {
    // No two blocks share a page, because the kernel takes page frames back as a whole.
    let min_bytes = if is_huge {
        GRANULE_BYTES
    } else {
        MIN_BLOCK_BYTES.max(rustix::param::page_size())
    };
    if len > MAX_BLOCK_BYTES {
        return Err(Errno::NOMEM);
    }
    let len_index = (len.max(min_bytes).next_power_of_two() / MIN_BLOCK_BYTES).ilog2() as usize;
    Ok(len_index + if is_huge { LEN_COUNT } else { 0 })
}

/// The length of the blocks of a class, in bytes.
fn block_len(class: usize) -> usize {
    MIN_BLOCK_BYTES << (class % LEN_COUNT)
}

fn allocate(class: usize) -> Result<BlockLocation> {
    let cached = THREAD_CACHE.try_with(|cache| cache.borrow_mut().0[class].pop());
    if let Ok(Some(location)) = cached {
        return Ok(location);
    }
    let mut free = POOL.free(class);
    if let Some(location) = free.warm.pop() {
        POOL.warm_bytes
            .fetch_sub(block_len(class), Ordering::Relaxed);
        return Ok(location);
    }
    match free.cold.pop() {
        Some(location) => Ok(location),
        None => allocate_slab(class, &mut free.cold),
    }
}

/// Allocates a slab of blocks of this class. Returns the first block, and adds the others to
/// `free`.
fn allocate_slab(class: usize, free: &mut Vec<BlockLocation>) -> Result<BlockLocation> {
    let block_len = block_len(class);
    let len = block_len.max(GRANULE_BYTES);
    let space = AddressSpace::get()?;
    let address = space.allocate(len, class >= LEN_COUNT)?;
    let frozen = (0..len / block_len)
        .map(|_| AtomicPtr::new(ptr::null_mut()))
        .collect();
    let slab: &'static Slab = Box::leak(Box::new(Slab {
        address,
        block_len,
        frozen,
    }));
    space.register(address, len, slab);
    let location = |address| BlockLocation {
        slab,
        address,
        class,
    };
    // In reverse, so that the lowest addresses are allocated first.
    let others = (address + block_len..address + len)
        .step_by(block_len)
        .rev();
    free.extend(others.map(location));
    Ok(location(address))
}

fn release(location: BlockLocation, is_gifted: bool) {
    let max_cached = THREAD_CACHE_BYTES / block_len(location.class);
    if is_gifted {
        POOL.release_cold(location);
        return;
    }
    let is_cached = THREAD_CACHE.try_with(|cache| {
        let blocks = &mut cache.borrow_mut().0[location.class];
        let has_room = blocks.len() < max_cached;
        if has_room {
            blocks.push(location);
        }
        has_room
    });
    // A thread that is ending has no cache any more.
    if !matches!(is_cached, Ok(true)) {
        POOL.release(location);
    }
}

struct Pool {
    free: [Mutex<FreeBlocks>; CLASS_COUNT],
    /// The bytes of all warm blocks in `free`.
    warm_bytes: AtomicUsize,
}

/// The free blocks of a class.
struct FreeBlocks {
    /// Blocks that still have the page frames of their last use.
    warm: Vec<BlockLocation>,
    /// Blocks without page frames: the first write to a page gets it a zeroed one.
    cold: Vec<BlockLocation>,
}

impl FreeBlocks {
    const fn new() -> Self {
        Self {
            warm: Vec::new(),
            cold: Vec::new(),
        }
    }
}

impl Pool {
    fn free(&self, class: usize) -> MutexGuard<'_, FreeBlocks> {
        // A panic cannot leave the lists inconsistent: no statement that may panic comes between
        // two changes that belong together.
        self.free[class]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn release(&self, location: BlockLocation) {
        let len = block_len(location.class);
        let warm_bytes = self.warm_bytes.fetch_add(len, Ordering::Relaxed) + len;
        if warm_bytes <= MAX_WARM_BYTES {
            self.free(location.class).warm.push(location);
        } else {
            self.warm_bytes.fetch_sub(len, Ordering::Relaxed);
            self.release_cold(location);
        }
    }

    /// Returns the page frames to the kernel, and then the block to the pool. If the kernel does
    /// not take the frames, the block is never used again, because something may still read them.
    fn release_cold(&self, location: BlockLocation) {
        let len = block_len(location.class);
        let is_discarded = AddressSpace::existing()
            .is_some_and(|space| space.discard_frames(location.address, len).is_ok());
        if is_discarded {
            self.free(location.class).cold.push(location);
        }
    }
}

/// The free blocks of each class that a thread keeps for itself.
struct ThreadCache([Vec<BlockLocation>; CLASS_COUNT]);

impl Drop for ThreadCache {
    fn drop(&mut self) {
        for location in self.0.iter_mut().flat_map(std::mem::take) {
            POOL.release(location);
        }
    }
}
