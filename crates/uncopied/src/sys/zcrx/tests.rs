//! Tests of leases and of the refill ring, with the kernel's side played by the test.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use proptest::prelude::*;
use rustix::io::Errno;

use super::Lease;
use super::lease::Shared;
use super::memory::PageMemory;
use super::refill::Refill;
use super::signal::Signal;
use crate::sys::fork::tests::in_child;
use crate::sys::region_memory::is_mapped;

/// The kernel of the tests uses buffers of this many bytes.
const BUFFER_BYTES: usize = 64;

/// What the kernel of the tests calls the area. The one of Linux is 0.
const TOKEN: u64 = 5 << 48;

/// A kernel that hands out buffers of the area, and takes them back from the refill ring.
struct FakeKernel {
    shared: Arc<Shared>,
    /// How often each buffer is handed out.
    handed_out: Vec<u32>,
    free: Vec<usize>,
    /// Is different in each piece of bytes that was handed out.
    next_byte: u8,
}

/// A lease and the byte of which it consists.
type Held = (Lease, u8);

impl FakeKernel {
    fn new(buffers: usize, refill_entries: u32) -> Self {
        let area = PageMemory::new(buffers * BUFFER_BYTES).expect("memory");
        let any_descriptor = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC);
        let signal = Arc::new(Signal::new().expect("a descriptor"));
        let refill = Refill::fake(refill_entries);
        let ring = any_descriptor.expect("a descriptor");
        Self {
            shared: Arc::new(Shared::new(ring, area, TOKEN, refill, signal)),
            handed_out: vec![0; buffers],
            free: (0..buffers).collect(),
            next_byte: 1,
        }
    }

    /// Receives into a free buffer, and hands it out in `parts` pieces.
    fn hand_out(&mut self, parts: usize) -> Vec<Held> {
        let Some(buffer) = self.free.pop() else {
            return Vec::new();
        };
        assert_eq!(self.handed_out[buffer], 0);
        self.handed_out[buffer] = parts as u32;
        let len = BUFFER_BYTES / parts;
        let part = |index: usize| {
            let offset = buffer * BUFFER_BYTES + index * len;
            let byte = self.next_byte;
            self.next_byte = self.next_byte.wrapping_add(1);
            // SAFETY: the bytes lie within the area.
            let start = unsafe { self.shared.area().at(offset) };
            // SAFETY: the buffer is not handed out, so no lease refers to the bytes.
            unsafe { start.write_bytes(byte, len) };
            // SAFETY: the bytes are handed out with this lease only.
            let lease = unsafe { Lease::new(&self.shared, offset as u64, len) };
            (lease.expect("within the area"), byte)
        };
        (0..parts).map(part).collect()
    }

    /// Takes up to `max` entries from the refill ring. Returns how many there were.
    fn take(&mut self, max: u32) -> usize {
        let taken = self.shared.lock_refill().take(max);
        for entry in &taken {
            assert_eq!((entry.offset & TOKEN, entry.reserved), (TOKEN, 0));
            assert!(entry.len > 0);
            let buffer = (entry.offset ^ TOKEN) as usize / BUFFER_BYTES;
            let handed_out = &mut self.handed_out[buffer];
            assert!(*handed_out > 0, "buffer {buffer} was given back twice");
            *handed_out -= 1;
            if *handed_out == 0 {
                self.free.push(buffer);
            }
        }
        taken.len()
    }
}

fn assert_unchanged(held: &[Held]) {
    for (lease, byte) in held {
        assert!(!lease.is_empty());
        assert!(lease.iter().all(|it| it == byte), "{lease:?} has changed");
    }
}

#[derive(Clone, Debug)]
enum Operation {
    HandOut(usize),
    Drop(usize),
    DropInThread(usize),
    Take(u32),
    Fill,
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let operation = prop_oneof![
        4 => (1..5_usize).prop_map(Operation::HandOut),
        4 => any::<usize>().prop_map(Operation::Drop),
        1 => any::<usize>().prop_map(Operation::DropInThread),
        3 => (1..10_u32).prop_map(Operation::Take),
        1 => Just(Operation::Fill),
    ];
    proptest::collection::vec(operation, 1..200)
}

proptest! {
    /// Whatever the order in which leases are dropped, and however small the refill ring is: no
    /// bytes change while their lease exists, and in the end the kernel has every buffer back,
    /// once.
    #[test]
    fn every_buffer_comes_back_once_and_no_lease_changes(
        buffers in 1..12_usize,
        refill_entries in 0..4_u32,
        operations in operations(),
    ) {
        let mut kernel = FakeKernel::new(buffers, 1 << refill_entries);
        let mut held: Vec<Held> = Vec::new();
        for operation in operations {
            match operation {
                Operation::HandOut(parts) => held.extend(kernel.hand_out(parts)),
                Operation::Drop(index) if !held.is_empty() => {
                    drop(held.swap_remove(index % held.len()));
                }
                Operation::DropInThread(index) if !held.is_empty() => {
                    let dropped = held.swap_remove(index % held.len());
                    std::thread::spawn(move || drop(dropped)).join().expect("no panic");
                }
                Operation::Drop(_) | Operation::DropInThread(_) => {}
                Operation::Take(max) => {
                    kernel.take(max);
                }
                Operation::Fill => kernel.shared.lock_refill().fill(),
            }
            assert_unchanged(&held);
            let handed_out: u32 = kernel.handed_out.iter().sum();
            prop_assert!(handed_out as usize >= held.len());
        }
        held.clear();
        loop {
            kernel.shared.lock_refill().fill();
            if kernel.take(u32::MAX) == 0 {
                break;
            }
        }
        prop_assert_eq!(kernel.free.len(), buffers);
    }
}

/// Threads drop leases while the kernel takes them from the refill ring and hands them out again.
#[test]
fn threads_drop_leases_while_the_kernel_takes_them_back() {
    const ROUNDS: usize = 20_000;
    let mut kernel = FakeKernel::new(16, 4);
    let (sender, receiver) = std::sync::mpsc::sync_channel::<Held>(8);
    let receiver = Arc::new(std::sync::Mutex::new(receiver));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let receiver = Arc::clone(&receiver);
            scope.spawn(move || {
                loop {
                    let next = receiver.lock().expect("no panic").recv();
                    let Ok(held) = next else { break };
                    assert_unchanged(&[held]);
                }
            });
        }
        let mut handed_out = 0;
        while handed_out < ROUNDS {
            kernel.shared.lock_refill().fill();
            kernel.take(3);
            for held in kernel.hand_out(2) {
                handed_out += 1;
                sender.send(held).expect("the threads live");
            }
        }
        drop(sender);
    });
    loop {
        kernel.shared.lock_refill().fill();
        if kernel.take(u32::MAX) == 0 {
            break;
        }
    }
    assert_eq!(kernel.free.len(), 16);
}

/// The counters of the ring wrap around.
#[test]
fn the_refill_ring_wraps_around() {
    let mut kernel = FakeKernel::new(3, 4);
    for _ in 0..1000 {
        let held = kernel.hand_out(3);
        assert_eq!(held.len(), 3);
        drop(held);
        assert_eq!(kernel.take(u32::MAX), 3);
    }
}

/// A dropped lease raises the signal if that is wanted, once.
#[test]
fn a_dropped_lease_raises_the_signal_if_it_is_wanted() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut kernel = FakeKernel::new(3, 4);
    let shared = Arc::clone(&kernel.shared);
    let is_raised = || {
        let mut awaited = [PollFd::new(shared.signal(), PollFlags::IN)];
        let raised = poll(&mut awaited, Some(&Timespec::default())).expect("polled") > 0;
        shared.signal().reset();
        raised
    };
    drop(kernel.hand_out(1));
    assert!(!is_raised());
    shared.signal().want();
    assert!(!is_raised());
    drop(kernel.hand_out(1));
    assert!(is_raised());
    drop(kernel.hand_out(1));
    assert!(!is_raised());
}

/// A thread of the parent may hold the lock of the refill ring during a fork, and then the child's
/// copy of the lock is held for ever. The child must neither wait for it nor give anything back.
#[test]
fn a_forked_child_gives_nothing_back_and_takes_no_lock() {
    let mut kernel = FakeKernel::new(2, 4);
    let mut held = kernel.hand_out(2);
    let guard = kernel.shared.lock_refill();
    let seen = in_child(|| {
        assert_unchanged(&held);
        held.clear();
        1
    });
    drop(guard);
    assert_eq!(seen, 1);
    assert_unchanged(&held);
    assert_eq!(kernel.take(u32::MAX), 0);
    drop(held);
    assert_eq!(kernel.take(u32::MAX), 2);
}

/// Bytes outside of the area are not handed out, whatever a completion says.
#[test]
fn no_lease_reaches_beyond_the_area() {
    let kernel = FakeKernel::new(1, 1);
    let page = rustix::param::page_size();
    let is_lease = |offset: u64, len: usize| {
        // SAFETY: the test hands out these bytes with this lease only, which is dropped at once.
        unsafe { Lease::new(&kernel.shared, offset, len) }.is_some()
    };
    assert_eq!(kernel.shared.area_bytes(), page);
    assert!(is_lease(0, page));
    assert!(is_lease(page as u64 - 1, 1));
    for (offset, len) in [
        (0, page + 1),
        (page as u64, 1),
        (u64::MAX, 2),
        (1, usize::MAX),
    ] {
        assert!(!is_lease(offset, len), "{offset} {len}");
    }
}

/// Nobody but the kernel and the network card may write to the area.
#[test]
fn memory_that_is_made_read_only_cannot_be_written_to() {
    let memory = PageMemory::new(5000).expect("memory");
    assert_eq!(memory.len() % rustix::param::page_size(), 0);
    let zeroes = std::fs::File::open("/dev/zero").expect("opened");
    let write = || {
        let start = memory.start().as_ptr().cast();
        // SAFETY: the kernel writes `len` bytes, if it may, and nothing refers to them.
        unsafe { libc::read(zeroes.as_raw_fd(), start, memory.len()) }
    };
    assert_eq!(write(), memory.len() as isize);
    memory.make_read_only().expect("read-only");
    assert_eq!(write(), -1);
}

#[test]
fn memory_is_unmapped_when_it_is_dropped() {
    // In the child, no other thread maps anything there.
    let result = in_child(|| {
        let memory = PageMemory::new(1).expect("memory");
        let (start, len) = (memory.start().as_ptr().addr(), memory.len());
        let was_mapped = is_mapped(start, len);
        drop(memory);
        u8::from(!was_mapped || is_mapped(start, len))
    });
    assert_eq!(result, 0);
}

#[test]
fn a_lack_of_memory_for_completions_ends_no_wait_with_an_error() {
    use super::ring::unless_interrupted;
    let ended_with = |errno: Errno| unless_interrupted(Err(errno.into()));
    assert_eq!(unless_interrupted(Ok(3)), Ok(()));
    for errno in [Errno::INTR, Errno::BUSY, Errno::AGAIN] {
        assert_eq!(ended_with(errno), Ok(()));
    }
    assert_eq!(ended_with(Errno::BADF), Err(Errno::BADF));
    let without_errno = std::io::Error::other("no errno");
    assert_eq!(unless_interrupted(Err(without_errno)), Err(Errno::IO));
}

/// A ring that does not lie within its memory is refused.
#[test]
fn the_refill_ring_lies_within_its_memory() {
    use super::refill::Offsets;
    let is_accepted_with = |head, tail, entries, stats, capacity| {
        let memory = PageMemory::new(Refill::memory_bytes(8)).expect("memory");
        if let Some(stats) = stats
            && stats + 16 <= memory.len()
        {
            // SAFETY: the bytes lie within the memory.
            let copied = unsafe { memory.at(stats + 8) }.cast::<u64>();
            // SAFETY: as above, and nothing refers to them.
            unsafe { copied.write_unaligned(7) };
        }
        let offsets = Offsets {
            head,
            tail,
            entries,
            stats,
        };
        let refill = Refill::new(memory, offsets, capacity)?;
        Some(refill.copied_bytes())
    };
    let is_accepted = |head, tail, entries, capacity| {
        is_accepted_with(head, tail, entries, None, capacity).is_some()
    };
    let bytes = rustix::param::page_size() * 2;
    assert!(is_accepted(0, 4, 64, 8));
    assert!(is_accepted(0, bytes - 4, 64, 8));
    assert!(!is_accepted(0, bytes, 64, 8));
    assert!(!is_accepted(bytes - 2, 4, 64, 8));
    assert!(!is_accepted(0, 2, 64, 8));
    assert!(!is_accepted(0, 4, 60, 8));
    assert!(!is_accepted(0, 4, bytes - 64, 8));
    assert!(!is_accepted(0, 4, usize::MAX - 7, 8));
    assert!(!is_accepted(0, 4, 64, 0));
    assert!(!is_accepted(0, 4, 64, 6));

    let with_stats = |stats| is_accepted_with(0, 4, 64, Some(stats), 8);
    assert_eq!(with_stats(Refill::stats_offset(8)), Some(Some(7)));
    assert_eq!(with_stats(bytes - 16), Some(Some(7)));
    assert_eq!(with_stats(bytes - 8), None);
    assert_eq!(with_stats(bytes - 20), None);
}

/// The kernel puts the counters in front of the entries, and the statistics where it is told to.
#[test]
fn the_memory_of_a_ring_has_room_for_entries_and_statistics() {
    let counters_max = rustix::param::page_size() - 16;
    for capacity in [1, 8, 1 << 15] {
        let entries_end = counters_max + capacity as usize * 16;
        let stats = Refill::stats_offset(capacity);
        assert!(entries_end <= stats, "{capacity}");
        assert_eq!(stats + 16, Refill::memory_bytes(capacity));
    }
}
