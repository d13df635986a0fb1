//! A pool of memory blocks, from which [`PageBuffer`](super::PageBuffer)s are allocated.
//!
//! The length of a block is a power of two, from one page to [`MAX_BLOCK_BYTES`]. Blocks shorter
//! than a granule (2 MiB) share a granule with other blocks of the same length; longer blocks
//! occupy whole granules. The memory of a block is never unmapped. A released block keeps its page
//! frames for the next allocation, as long as all released blocks together have at most
//! [`MAX_WARM_BYTES`]. Beyond that, the frames of a released block are returned to the kernel, and
//! the next allocation reuses only the block's addresses.

use std::cell::RefCell;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::{Errno, Result};

use super::block_count::BlockCount;
use super::space::{AddressSpace, GRANULE_BYTES, GranuleOwner, Granules, OwnerKind};
use crate::sys::fork::PerProcess;

/// The smallest length of a block. If the machine's pages are larger than this, the smallest length
/// is one page.
pub(super) const MIN_BLOCK_BYTES: usize = 4 << 10;

/// The largest length of a block.
pub(super) const MAX_BLOCK_BYTES: usize = 1 << 30;

/// The number of different block lengths.
const LEN_COUNT: usize = (MAX_BLOCK_BYTES / MIN_BLOCK_BYTES).ilog2() as usize + 1;

/// The number of classes of blocks. Blocks of ordinary pages and blocks of huge pages each have one
/// class for every length.
const CLASS_COUNT: usize = 2 * LEN_COUNT;

/// The maximum total length, in bytes, of the free blocks that a thread caches for each class. Most
/// buffers are allocated from this cache and returned to it, which needs no lock.
const THREAD_CACHE_BYTES: usize = 1 << 20;

/// The maximum total length, in bytes, of the free blocks that keep their page frames. Blocks in
/// thread caches are not counted.
const MAX_WARM_BYTES: usize = 64 << 20;

/// The pool of each process. A forked child starts with an empty pool: in its copy of the parent's
/// pool, a lock may be held by a thread that exists only in the parent, and would never be
/// released.
static POOL: PerProcess<Pool> = PerProcess::new();

// A forked child inherits the cache of the thread that forked, and may use the blocks in it: they
// were free during the fork, no other thread could be changing the cache, and the child has its own
// copy of the blocks' memory.
thread_local! {
    static THREAD_CACHE: RefCell<ThreadCache> =
        const { RefCell::new(ThreadCache([const { Vec::new() }; CLASS_COUNT])) };
}

/// A range of memory that is divided into blocks of equal length. It is never freed or divided
/// differently.
#[derive(Debug)]
pub(super) struct Slab {
    memory: Granules,
    block_len: usize,
    /// For each block, a pointer to its [`Block`] if it is frozen, otherwise null.
    /// [`locate`](super::locate) reads these pointers.
    frozen: Box<[AtomicPtr<Block>]>,
}

impl GranuleOwner for Slab {
    const KIND: OwnerKind = OwnerKind::Slab;
}

impl Slab {
    /// Returns the block that contains `address`, or null if that block is not frozen. `address`
    /// must lie in this slab.
    ///
    /// The pointer comes from [`Arc::as_ptr`] and does not keep the block alive. So the caller may
    /// use the pointer only while something else is certain to keep the block alive.
    pub(super) fn frozen_at(&self, address: usize) -> *const Block {
        self.frozen_entry(address).load(Ordering::Acquire)
    }

    fn frozen_entry(&self, address: usize) -> &AtomicPtr<Block> {
        &self.frozen[(address - self.memory.address()) / self.block_len]
    }
}

/// An allocated block. No other `Block` shares its memory, which returns to the pool when this
/// value is dropped.
#[derive(Debug)]
pub(super) struct Block {
    location: BlockLocation,
    /// Whether the page frames may be in kernel queues that never report when they are done with
    /// the frames. If so, the frames must never be written to again.
    is_gifted: AtomicBool,
    /// The sum of the bytes of all sends of the block that are in flight. Created with the first
    /// such send. A forked child has its own, because nothing tells it when its parent's sends end.
    sent_bytes: PerProcess<Arc<AtomicU64>>,
}

/// The address and the class of a block.
#[derive(Clone, Copy, Debug)]
struct BlockLocation {
    slab: &'static Slab,
    address: usize,
    class: usize,
}

impl Block {
    /// Allocates a block of at least `len` bytes. It contains zeroes, or data that an earlier block
    /// of this process left there.
    pub(super) fn allocate(len: usize, is_huge: bool) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            location: allocate(class_of(len, is_huge)?)?,
            is_gifted: AtomicBool::new(false),
            sent_bytes: PerProcess::new(),
        }))
    }

    pub(super) fn address(&self) -> usize {
        self.location.address
    }

    pub(super) fn len(&self) -> usize {
        self.location.slab.block_len
    }

    /// Publishes the block, so that [`locate`](super::locate) finds it.
    pub(super) fn freeze(self: &Arc<Self>) {
        self.frozen_entry()
            .store(Arc::as_ptr(self).cast_mut(), Ordering::Release);
    }

    /// Hides the block from [`locate`](super::locate) again.
    pub(super) fn unfreeze(&self) {
        self.frozen_entry()
            .store(ptr::null_mut(), Ordering::Release);
    }

    /// Gifts the page frames: they are never written to again. This is needed if the kernel does
    /// not report when it is done with them.
    pub(super) fn gift(&self) {
        self.is_gifted.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_gifted(&self) -> bool {
        self.is_gifted.load(Ordering::Relaxed)
    }

    pub(super) fn count(&self) -> BlockCount {
        BlockCount {
            sent_bytes: Arc::clone(self.sent_bytes.get()),
            block_len: self.len() as u64,
        }
    }

    fn frozen_entry(&self) -> &AtomicPtr<Self> {
        self.location.slab.frozen_entry(self.location.address)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.unfreeze();
        let is_gifted = *self.is_gifted.get_mut();
        release(self.location, is_gifted);
    }
}

/// Returns the class of the shortest blocks that have room for `len` bytes.
fn class_of(len: usize, is_huge: bool) -> Result<usize> {
    // A block never shares a page with another block, because a page frame can only be returned to
    // the kernel as a whole.
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

/// Returns the length, in bytes, of the blocks of a class.
fn block_len(class: usize) -> usize {
    MIN_BLOCK_BYTES << (class % LEN_COUNT)
}

fn allocate(class: usize) -> Result<BlockLocation> {
    let cached = THREAD_CACHE.try_with(|cache| cache.borrow_mut().0[class].pop());
    if let Ok(Some(location)) = cached {
        return Ok(location);
    }
    let pool = POOL.get();
    let mut free = pool.free(class);
    if let Some(location) = free.warm.pop() {
        pool.warm_bytes
            .fetch_sub(block_len(class), Ordering::Relaxed);
        return Ok(location);
    }
    match free.cold.pop() {
        Some(location) => Ok(location),
        None => allocate_slab(class, &mut free.cold),
    }
}

/// Allocates a slab of blocks of this class. Returns its first block, and adds its other blocks to
/// `free`.
#[allow(unsafe_code)]
fn allocate_slab(class: usize, free: &mut Vec<BlockLocation>) -> Result<BlockLocation> {
    let block_len = block_len(class);
    let len = block_len.max(GRANULE_BYTES);
    let memory = AddressSpace::get()?.allocate(len, class >= LEN_COUNT)?;
    let address = memory.address();
    let frozen = (0..len / block_len)
        .map(|_| AtomicPtr::new(ptr::null_mut()))
        .collect();
    let slab: &'static Slab = Box::leak(Box::new(Slab {
        memory,
        block_len,
        frozen,
    }));
    // SAFETY: the slab is never freed.
    unsafe { slab.memory.register(slab) };
    let location = |address| BlockLocation {
        slab,
        address,
        class,
    };
    // In reverse order: blocks are taken from the end of `free`, so the lowest address is allocated
    // first.
    let others = (address + block_len..address + len)
        .step_by(block_len)
        .rev();
    free.extend(others.map(location));
    Ok(location(address))
}

fn release(location: BlockLocation, is_gifted: bool) {
    let max_cached = THREAD_CACHE_BYTES / block_len(location.class);
    if is_gifted {
        POOL.get().release_cold(location);
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
    // The thread's cache is full, or already destroyed because the thread is ending.
    if !matches!(is_cached, Ok(true)) {
        POOL.get().release(location);
    }
}

struct Pool {
    free: [Mutex<FreeBlocks>; CLASS_COUNT],
    /// The total length of the warm blocks in `free`, in bytes.
    warm_bytes: AtomicUsize,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            free: std::array::from_fn(|_| Mutex::default()),
            warm_bytes: AtomicUsize::new(0),
        }
    }
}

/// The free blocks of one class.
#[derive(Default)]
struct FreeBlocks {
    /// Blocks that still have the page frames from their last use.
    warm: Vec<BlockLocation>,
    /// Blocks without page frames. The first write to each page allocates a zeroed frame.
    cold: Vec<BlockLocation>,
}

impl Pool {
    fn free(&self, class: usize) -> MutexGuard<'_, FreeBlocks> {
        // A poisoned lock may still be used: no statement that may panic comes between two changes
        // that belong together, so a panic cannot have left the lists inconsistent.
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

    /// Returns the page frames to the kernel, and then the block to the pool. If the kernel refuses
    /// to take the frames back, the block is leaked, because its frames may still be in use, for
    /// example by a socket's queue.
    #[allow(unsafe_code)]
    fn release_cold(&self, location: BlockLocation) {
        let len = block_len(location.class);
        let memory = &location.slab.memory;
        // SAFETY: the block lies within the memory of its slab. It is free, so no reference into it
        // exists. If the call fails, the block is not returned to the pool, and so never used
        // again.
        let discarded = unsafe { memory.discard_frames(location.address, len) };
        if discarded.is_ok() {
            self.free(location.class).cold.push(location);
        }
    }
}

/// The free blocks that one thread keeps for itself, by class.
struct ThreadCache([Vec<BlockLocation>; CLASS_COUNT]);

impl Drop for ThreadCache {
    fn drop(&mut self) {
        for location in self.0.iter_mut().flat_map(std::mem::take) {
            POOL.get().release(location);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fork::tests::in_child;

    /// Allocates this many blocks of `len` bytes.
    fn blocks(count: usize, len: usize) -> Vec<Arc<Block>> {
        let allocate = |_| Block::allocate(len, false).expect("allocated");
        (0..count).map(allocate).collect()
    }

    /// Returns how many free blocks of `len` bytes are in this thread's cache, and how many warm
    /// and cold ones in the pool.
    fn free_blocks(len: usize) -> [usize; 3] {
        let class = class_of(len, false).expect("not too long");
        let cached = THREAD_CACHE.with(|cache| cache.borrow().0[class].len());
        let free = POOL.get().free(class);
        [cached, free.warm.len(), free.cold.len()]
    }

    fn warm_bytes() -> usize {
        POOL.get().warm_bytes.load(Ordering::Relaxed)
    }

    /// Runs `run` in a child, in a thread whose cache is empty. The child has a pool of its own.
    fn with_empty_pool(run: fn()) {
        let result = in_child(|| u8::from(std::thread::spawn(run).join().is_err()));
        assert_eq!(result, 0);
    }

    #[test]
    fn a_thread_keeps_a_mebibyte_of_blocks_of_each_length() {
        with_empty_pool(|| {
            const MIB: usize = 1 << 20;
            let page = rustix::param::page_size().max(MIN_BLOCK_BYTES);
            let kept = MIB / page;
            let keep = move || {
                drop((blocks(kept + 44, page), blocks(3, MIB), blocks(1, 2 * MIB)));
                assert_eq!(free_blocks(page)[..2], [kept, 44]);
                assert_eq!(free_blocks(MIB)[..2], [1, 2]);
                assert_eq!(free_blocks(2 * MIB), [0, 1, 0]);
                assert_eq!(warm_bytes(), 44 * page + 4 * MIB);
            };
            std::thread::spawn(keep).join().expect("no panic");
            // The thread has ended, and so the pool has got the blocks of its cache.
            assert_eq!(free_blocks(page)[..2], [0, kept + 44]);
            assert_eq!(warm_bytes(), 44 * page + 6 * MIB);
        });
    }

    #[test]
    fn the_pool_keeps_the_frames_of_64_mib() {
        with_empty_pool(|| {
            const LEN: usize = 4 << 20;
            drop(blocks(18, LEN));
            assert_eq!((free_blocks(LEN), warm_bytes()), ([0, 16, 2], 64 << 20));
            let used = blocks(17, LEN);
            assert_eq!((free_blocks(LEN), warm_bytes()), ([0, 0, 1], 0));
            used[0].gift();
            drop(used);
            assert_eq!(free_blocks(LEN), [0, 16, 2]);
        });
    }

    #[test]
    fn short_blocks_share_a_slab() {
        with_empty_pool(|| {
            let used = blocks(1, 100_000);
            assert_eq!(used[0].len(), 128 << 10);
            assert_eq!(free_blocks(100_000), [0, 0, 15]);
            let longest = blocks(1, MAX_BLOCK_BYTES);
            assert_eq!(longest[0].len(), MAX_BLOCK_BYTES);
            let too_long = Block::allocate(MAX_BLOCK_BYTES + 1, false);
            assert_eq!(too_long.map(|_| ()), Err(Errno::NOMEM));
        });
    }

    /// Linux lists the advice of `MADV_HUGEPAGE` as a flag of the mapping.
    #[test]
    fn only_huge_blocks_ask_for_huge_pages() {
        let asks = |is_huge| {
            let block = Block::allocate(GRANULE_BYTES, is_huge).expect("allocated");
            let maps = std::fs::read_to_string("/proc/self/smaps").expect("read");
            let mut contains = false;
            let of_block = maps.lines().find(|line| {
                let range = line
                    .split(' ')
                    .next()
                    .and_then(|range| range.split_once('-'));
                let parse = |address| usize::from_str_radix(address, 16);
                if let Some((Ok(start), Ok(end))) = range.map(|(s, e)| (parse(s), parse(e))) {
                    contains = (start..end).contains(&block.address());
                }
                contains && line.starts_with("VmFlags:")
            });
            of_block.is_some_and(|flags| flags.contains(" hg"))
        };
        assert_eq!([true, false].map(asks), [true, false]);
    }
}
