//! The refill ring: the queue through which received memory is given back to the kernel.

use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::memory::PageMemory;

/// `struct io_uring_zcrx_rqe`: memory that is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Entry {
    /// The offset of the bytes in the area, plus the token of the area.
    pub(super) offset: u64,
    pub(super) len: u32,
    pub(super) reserved: u32,
}

const _: () = assert!(size_of::<Entry>() == 16 && align_of::<Entry>() == 8);

/// Where the parts of the ring are within its memory, in bytes. The kernel decides that.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offsets {
    pub(super) head: usize,
    pub(super) tail: usize,
    pub(super) entries: usize,
    /// A `struct zcrx_notif_stats`, if the kernel counts what it copies.
    pub(super) stats: Option<usize>,
}

/// The size of a `struct zcrx_notif_stats`: the number of copies, and the number of copied bytes.
const STATS_BYTES: usize = 16;

/// The refill ring. The kernel reads entries from its head, and this process adds entries at its
/// tail. If the ring is full, further entries wait in a list.
#[derive(Debug)]
pub(super) struct Refill {
    memory: PageMemory,
    offsets: Offsets,
    /// The number of entries: a power of two.
    capacity: u32,
    /// The number of entries that were added so far. Both counters wrap around.
    tail: u32,
    /// Entries for which the ring had no room. There are at most as many as there were leases.
    waiting: VecDeque<Entry>,
}

impl Refill {
    /// Returns the number of bytes that a ring of `capacity` entries needs. The counters are in
    /// front of the entries, and the statistics after them. Both together fit into a page.
    pub(super) fn memory_bytes(capacity: u32) -> usize {
        rustix::param::page_size() + capacity as usize * size_of::<Entry>()
    }

    /// Returns where the kernel can put the statistics of a ring of `capacity` entries: at the end.
    pub(super) fn stats_offset(capacity: u32) -> usize {
        Self::memory_bytes(capacity) - STATS_BYTES
    }

    /// Uses `memory`, which the kernel has accepted as a ring of `capacity` entries. Returns `None`
    /// if the offsets or the capacity do not fit, which would be an error of the kernel.
    pub(super) fn new(memory: PageMemory, offsets: Offsets, capacity: u32) -> Option<Self> {
        let fits = |offset: usize, bytes: usize, align: usize| {
            let end = offset.checked_add(bytes);
            offset.is_multiple_of(align) && end.is_some_and(|end| end <= memory.len())
        };
        let is_valid = capacity.is_power_of_two()
            && fits(offsets.head, size_of::<u32>(), align_of::<u32>())
            && fits(offsets.tail, size_of::<u32>(), align_of::<u32>())
            && fits(
                offsets.entries,
                (capacity as usize).checked_mul(size_of::<Entry>())?,
                align_of::<Entry>(),
            )
            && offsets
                .stats
                .is_none_or(|stats| fits(stats, STATS_BYTES, align_of::<u64>()));
        is_valid.then(|| Self {
            memory,
            offsets,
            capacity,
            tail: 0,
            waiting: VecDeque::new(),
        })
    }

    /// Gives memory back: adds an entry to the ring, or to the list if the ring is full.
    pub(super) fn give_back(&mut self, entry: Entry) {
        self.waiting.push_back(entry);
        self.fill();
    }

    /// Moves entries from the list to the ring, as long as there is room.
    pub(super) fn fill(&mut self) {
        let mut room = self.capacity - self.in_ring();
        while room > 0 {
            let Some(entry) = self.waiting.pop_front() else {
                break;
            };
            self.write(entry);
            room -= 1;
        }
    }

    /// Returns the number of entries in the ring that the kernel has not taken yet.
    pub(super) fn in_ring(&self) -> u32 {
        let taken = self.counter(self.offsets.head).load(Ordering::Acquire);
        // The kernel never takes more than was added. If it claimed so, treat the ring as full
        // rather than to overwrite an entry that was not taken.
        self.tail.wrapping_sub(taken).min(self.capacity)
    }

    /// Returns how many bytes the kernel has copied into the area, if it counts that.
    pub(super) fn copied_bytes(&self) -> Option<u64> {
        let address = self.at(self.offsets.stats? + 8).cast::<u64>();
        // SAFETY: `new` has checked that the statistics lie within the memory, and are aligned. The
        // memory lives as long as `self`. This process and the kernel access them atomically only.
        let copied = unsafe { AtomicU64::from_ptr(address.as_ptr()) };
        Some(copied.load(Ordering::Relaxed))
    }

    fn write(&mut self, entry: Entry) {
        let index = (self.tail & (self.capacity - 1)) as usize;
        let at = self.offsets.entries + index * size_of::<Entry>();
        let address = self.at(at).cast::<Entry>();
        // SAFETY: `new` has checked that all entries lie within the memory, and are aligned. The
        // kernel does not read this entry: it reads only entries between the head and the tail, and
        // the caller has checked that there is room after the tail. No other thread writes to it,
        // because `self` is borrowed exclusively.
        unsafe { address.write(entry) };
        self.tail = self.tail.wrapping_add(1);
        // The kernel loads the tail with acquire semantics, so it sees the entry.
        self.counter(self.offsets.tail)
            .store(self.tail, Ordering::Release);
    }

    fn counter(&self, offset: usize) -> &AtomicU32 {
        let address = self.at(offset).cast::<u32>();
        // SAFETY: `new` has checked that the counter lies within the memory, and is aligned. The
        // memory lives as long as `self`. This process and the kernel access it atomically only.
        unsafe { AtomicU32::from_ptr(address.as_ptr()) }
    }

    fn at(&self, offset: usize) -> NonNull<u8> {
        // SAFETY: all callers pass offsets that `new` has checked to lie within the memory.
        unsafe { self.memory.at(offset) }
    }
}

#[cfg(test)]
pub(super) mod fake {
    //! The kernel's side of the ring.

    use super::*;

    impl Refill {
        /// Creates a ring that no kernel knows, with the layout that Linux uses.
        pub(in crate::sys::zcrx) fn fake(capacity: u32) -> Self {
            let memory = PageMemory::new(Self::memory_bytes(capacity)).expect("memory");
            let offsets = Offsets {
                head: 0,
                tail: 4,
                entries: 64,
                stats: None,
            };
            Self::new(memory, offsets, capacity).expect("a valid layout")
        }

        /// Takes up to `max` entries from the head, as the kernel does.
        pub(in crate::sys::zcrx) fn take(&self, max: u32) -> Vec<Entry> {
            let head = self.counter(self.offsets.head);
            let tail = self.counter(self.offsets.tail).load(Ordering::Acquire);
            let first = head.load(Ordering::Relaxed);
            let count = tail.wrapping_sub(first).min(self.capacity).min(max);
            let entry = |index: u32| {
                let index = (first.wrapping_add(index) & (self.capacity - 1)) as usize;
                let at = self.offsets.entries + index * size_of::<Entry>();
                // SAFETY: the entry lies within the memory, and was written before the tail.
                unsafe { self.at(at).cast::<Entry>().read() }
            };
            let taken = (0..count).map(entry).collect();
            head.store(first.wrapping_add(count), Ordering::Release);
            taken
        }
    }
}
