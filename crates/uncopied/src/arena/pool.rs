//! Blocks of memory: which are free, and which go back.
//!
//! A block is a power of two of bytes, from a page to [`LARGEST`]. Blocks below a granule share one;
//! larger ones have granules of their own. Addresses that were once memory stay memory: a block that
//! is given back keeps its frames for the next taker, up to a limit, beyond which the frames go back to
//! the kernel and the addresses are kept.

use std::cell::RefCell;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::{Errno, Result};

use super::space::{AddressSpace, GRANULE};

/// The least that a block has, in bytes: a page, where pages are not larger.
pub(super) const SMALLEST: usize = 4 << 10;

/// The most that a block can have, in bytes.
pub(super) const LARGEST: usize = 1 << 30;

/// The sizes, and the sizes again for blocks of huge pages.
const CLASSES: usize = 2 * SIZES;
const SIZES: usize = (LARGEST / SMALLEST).ilog2() as usize + 1;

/// How many free bytes of a class a thread keeps for itself, so that most buffers are taken and given
/// back without a lock.
const THREAD_BYTES: usize = 1 << 20;

/// How many bytes of free blocks keep their frames, beyond what the threads keep for themselves.
const WARM_BYTES: usize = 64 << 20;

static POOL: Pool = Pool {
    free: [const { Mutex::new(FreeBlocks::new()) }; CLASSES],
    warm_bytes: AtomicUsize::new(0),
};

thread_local! {
    static OWN: RefCell<OwnBlocks> = const { RefCell::new(OwnBlocks([const { Vec::new() }; CLASSES])) };
}

/// Memory that was carved into blocks of one size. It is never taken apart again.
#[derive(Debug)]
pub(super) struct Slab {
    address: usize,
    block_len: usize,
    /// The blocks that are frozen, where [`locate`](super::locate) finds them; null for the others.
    frozen: Box<[AtomicPtr<Block>]>,
}

impl Slab {
    /// The frozen block that holds `address`, which must lie in this slab. The pointer came from
    /// [`Arc::as_ptr`], and is good for as long as somebody else keeps the block.
    pub(super) fn frozen_at(&self, address: usize) -> *const Block {
        self.frozen[(address - self.address) / self.block_len].load(Ordering::Acquire)
    }
}

/// A block in use: memory that is nobody else's.
#[derive(Debug)]
pub(super) struct Block {
    place: Place,
    /// Its frames lie, or may lie, in queues of which nobody tells when they are empty.
    gifted: AtomicBool,
}

/// Where a block lies.
#[derive(Clone, Copy, Debug)]
struct Place {
    slab: &'static Slab,
    address: usize,
    class: usize,
}

impl Block {
    /// A block of at least `len` bytes. Its content is whatever was in it before, in this process, or
    /// zeroes.
    pub(super) fn take(len: usize, is_huge: bool) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            place: take(class_of(len, is_huge)?)?,
            gifted: AtomicBool::new(false),
        }))
    }

    pub(super) fn address(&self) -> usize {
        self.place.address
    }

    pub(super) fn len(&self) -> usize {
        self.place.slab.block_len
    }

    /// From now on [`locate`](super::locate) finds the block.
    pub(super) fn freeze(self: &Arc<Self>) {
        self.entry()
            .store(Arc::as_ptr(self).cast_mut(), Ordering::Release);
    }

    /// From now on it does not.
    pub(super) fn thaw(&self) {
        self.entry().store(ptr::null_mut(), Ordering::Release);
    }

    /// Says that the frames lie where nobody tells when they are free: they are never written again.
    pub(super) fn gift(&self) {
        self.gifted.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_gifted(&self) -> bool {
        self.gifted.load(Ordering::Relaxed)
    }

    fn entry(&self) -> &AtomicPtr<Self> {
        let slab = self.place.slab;
        &slab.frozen[(self.place.address - slab.address) / slab.block_len]
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.thaw();
        let is_gifted = *self.gifted.get_mut();
        give(self.place, is_gifted);
    }
}

/// The class of blocks that hold `len` bytes.
fn class_of(len: usize, is_huge: bool) -> Result<usize> {
    // No two blocks share a page: its frame goes back to the kernel as a whole.
    let least = if is_huge {
        GRANULE
    } else {
        SMALLEST.max(rustix::param::page_size())
    };
    if len > LARGEST {
        return Err(Errno::NOMEM);
    }
    let size = (len.max(least).next_power_of_two() / SMALLEST).ilog2() as usize;
    Ok(size + if is_huge { SIZES } else { 0 })
}

/// The length of a class's blocks, in bytes.
fn block_len(class: usize) -> usize {
    SMALLEST << (class % SIZES)
}

fn take(class: usize) -> Result<Place> {
    let own = OWN.try_with(|own| own.borrow_mut().0[class].pop());
    if let Ok(Some(place)) = own {
        return Ok(place);
    }
    let mut free = POOL.free(class);
    if let Some(place) = free.warm.pop() {
        POOL.warm_bytes
            .fetch_sub(block_len(class), Ordering::Relaxed);
        return Ok(place);
    }
    match free.cold.pop() {
        Some(place) => Ok(place),
        None => carve(class, &mut free.cold),
    }
}

/// Makes a slab of blocks of this class: one to take, the others into `free`.
fn carve(class: usize, free: &mut Vec<Place>) -> Result<Place> {
    let block_len = block_len(class);
    let len = block_len.max(GRANULE);
    let address = AddressSpace::get()?.open(len, class >= SIZES)?;
    let frozen = (0..len / block_len)
        .map(|_| AtomicPtr::new(ptr::null_mut()))
        .collect();
    let slab: &'static Slab = Box::leak(Box::new(Slab {
        address,
        block_len,
        frozen,
    }));
    AddressSpace::get()?.enter_slab(slab, address, len);
    let place = |address| Place {
        slab,
        address,
        class,
    };
    // The lowest addresses are taken first.
    let others = (address + block_len..address + len)
        .step_by(block_len)
        .rev();
    free.extend(others.map(place));
    Ok(place(address))
}

fn give(place: Place, is_gifted: bool) {
    let most = THREAD_BYTES / block_len(place.class);
    if is_gifted {
        POOL.give_cold(place);
        return;
    }
    let kept = OWN.try_with(|own| {
        let blocks = &mut own.borrow_mut().0[place.class];
        let has_room = blocks.len() < most;
        if has_room {
            blocks.push(place);
        }
        has_room
    });
    // A thread that ends has no list any more.
    if !matches!(kept, Ok(true)) {
        POOL.give(place);
    }
}

struct Pool {
    free: [Mutex<FreeBlocks>; CLASSES],
    /// The bytes of all warm blocks in `free`.
    warm_bytes: AtomicUsize,
}

/// The free blocks of a class.
struct FreeBlocks {
    /// With the frames of their last user.
    warm: Vec<Place>,
    /// Without frames: the first write to a page brings a zeroed one.
    cold: Vec<Place>,
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
        // The lists are whole between any two of the statements that could panic.
        self.free[class]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn give(&self, place: Place) {
        let len = block_len(place.class);
        let warm_bytes = self.warm_bytes.fetch_add(len, Ordering::Relaxed) + len;
        if warm_bytes <= WARM_BYTES {
            self.free(place.class).warm.push(place);
        } else {
            self.warm_bytes.fetch_sub(len, Ordering::Relaxed);
            self.give_cold(place);
        }
    }

    /// Gives the frames to the kernel first. Where it does not take them, the block is never used
    /// again: they may be somebody's.
    fn give_cold(&self, place: Place) {
        let discarded = AddressSpace::existing()
            .is_some_and(|space| space.discard(place.address, block_len(place.class)).is_ok());
        if discarded {
            self.free(place.class).cold.push(place);
        }
    }
}

struct OwnBlocks([Vec<Place>; CLASSES]);

impl Drop for OwnBlocks {
    fn drop(&mut self) {
        for place in self.0.iter_mut().flat_map(std::mem::take) {
            POOL.give(place);
        }
    }
}
