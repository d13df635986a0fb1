//! The pool that buffers come from and return to.

#![allow(unsafe_code)]

use std::sync::mpsc;

use uncopied::arena::{PageBuffer, Pages};
use uncopied::{Errno, Mechanism, SendOptions};

use crate::harness::{Family, expect_bytes, in_child, pattern, refuse_call, sender};

const MIB: usize = 1 << 20;

/// Returns the resident set size of this process, in bytes. Reads `smaps_rollup`, which counts
/// every page, because the counters in `/proc/self/status` are only approximate.
fn resident_bytes() -> usize {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = rollup
        .lines()
        .find(|line| line.starts_with("Rss:"))
        .unwrap();
    let kib = line.split_whitespace().nth(1).unwrap();
    kib.parse::<usize>().unwrap() * 1024
}

/// Returns `len` bytes of frozen pages, with every byte set to `mark`.
fn pages_filled_with(mark: u8, len: usize) -> Pages {
    let mut buffer = PageBuffer::with_capacity(len).unwrap();
    buffer.set_len(len);
    buffer.fill(mark);
    buffer.freeze()
}

/// Some threads allocate buffers of all sizes, and other threads drop them. The content of a buffer
/// must not change before the buffer is dropped, and the pool must bound the memory that it keeps
/// for later buffers.
#[test]
fn buffers_that_another_thread_drops_are_used_again() {
    in_child(
        "buffer_pool::buffers_that_another_thread_drops_are_used_again",
        |_| {},
        || {
            let before = resident_bytes();
            let mut peak = before;
            let mut filled_bytes = 0;
            for round in 0..3_u8 {
                filled_bytes += churn(round);
                peak = peak.max(resident_bytes());
            }
            // Allow for the memory that the pool may keep, which is at most 109 MiB: 64 MiB shared
            // by all threads, and for each of the 5 threads a cache of 1 MiB for each of the 9
            // block lengths up to 1 MiB.
            let growth = peak - before;
            assert!(growth < 160 * MIB, "grew by {} MiB", growth / MIB);
            assert!(
                filled_bytes > 10 * growth,
                "{filled_bytes} bytes are too few"
            );
        },
    );
}

/// Two threads allocate and fill buffers, and two other threads check and drop them. Returns how
/// many bytes were written in total.
fn churn(round: u8) -> usize {
    // The lengths of the pool's blocks, from 4 KiB to 16 MiB.
    let classes: Vec<usize> = (12..=24).map(|bits| 1 << bits).collect();
    std::thread::scope(|scope| {
        let takers: Vec<_> = [0, 1]
            .map(|taker| {
                // Use a short channel, so that only a few buffers exist at the same time.
                let (send, receive) = mpsc::sync_channel::<(Pages, u8)>(2);
                scope.spawn(move || {
                    for (pages, mark) in receive {
                        assert!(pages.iter().step_by(511).all(|&byte| byte == mark));
                        assert_eq!(pages.last(), Some(&mark));
                    }
                });
                let classes = &classes;
                scope.spawn(move || {
                    let mut bytes = 0;
                    for turn in 0..15_u8 {
                        for (class, &size) in classes.iter().enumerate() {
                            // Alternate between the largest and the smallest buffer for which the
                            // pool uses a block of this length.
                            let len = if turn % 2 == 0 { size } else { size / 2 + 1 };
                            let mark = (turn * 13 + class as u8) ^ (round << 6) ^ taker;
                            send.send((pages_filled_with(mark, len), mark)).unwrap();
                            bytes += len;
                        }
                    }
                    bytes
                })
            })
            .into_iter()
            .collect();
        takers.into_iter().map(|taker| taker.join().unwrap()).sum()
    })
}

/// A buffer of the maximum capacity must use memory only for the pages that are written to, and
/// must return that memory to the kernel when it is dropped.
#[test]
fn buffers_of_maximum_capacity_use_memory_only_for_written_pages() {
    in_child(
        "buffer_pool::buffers_of_maximum_capacity_use_memory_only_for_written_pages",
        |_| {},
        || {
            let before = resident_bytes();
            for mark in 1..20_u8 {
                for make in [PageBuffer::with_capacity, PageBuffer::huge] {
                    let mut buffer = make(PageBuffer::MAX_CAPACITY).unwrap();
                    assert_eq!(buffer.capacity(), PageBuffer::MAX_CAPACITY);
                    buffer.set_len(PageBuffer::MAX_CAPACITY);
                    let last = buffer.len() - 1;
                    for at in [0, last / 2, last] {
                        // The bytes of the previous buffer must be gone, because the pool returns
                        // the memory of blocks of this size to the kernel.
                        assert_eq!(buffer[at], 0);
                        buffer[at] = mark;
                    }
                    assert_eq!(buffer.freeze()[last], mark);
                }
            }
            let growth = resident_bytes().saturating_sub(before);
            assert!(growth < 16 * MIB, "{} MiB are left", growth / MIB);
        },
    );
}

/// When the last handle to frozen pages is dropped, the pool normally keeps their memory for the
/// next buffer. Pages that were frozen permanently, or that `vmsplice` has gifted to the kernel
/// (so they must never be written to again), are returned to the kernel instead.
#[test]
fn gifted_pages_are_not_kept() {
    in_child(
        "buffer_pool::gifted_pages_are_not_kept",
        |_| {},
        || {
            const BUFFER_BYTES: usize = 16 * MIB;
            // Generate the pattern before the first measurement, so that the memory of the pattern
            // itself is not measured.
            drop(pattern(BUFFER_BYTES));
            let filled_buffer = || {
                let mut buffer = PageBuffer::with_capacity(BUFFER_BYTES).unwrap();
                buffer.set_len(BUFFER_BYTES);
                buffer.copy_from_slice(&pattern(BUFFER_BYTES));
                buffer
            };
            let kept_after = |pages: Pages| {
                let before = resident_bytes();
                drop(pages);
                (resident_bytes() + BUFFER_BYTES).saturating_sub(before)
            };
            let kept = kept_after(filled_buffer().freeze_permanently());
            assert!(kept < MIB, "{kept} bytes of pages frozen permanently");

            let pages = filled_buffer().freeze();
            let (mut sender, mut peer) =
                sender(Family::Tcp, &[Mechanism::Vmsplice], SendOptions::default());
            std::thread::scope(|scope| {
                scope.spawn(|| expect_bytes(&mut peer, &pattern(BUFFER_BYTES)));
                let sent = sender.send(pages.clone()).unwrap();
                assert_eq!(sent.report().by(Mechanism::Vmsplice), BUFFER_BYTES as u64);
            });
            let kept = kept_after(pages);
            assert!(kept < MIB, "{kept} bytes of pages sent by vmsplice");

            let kept = kept_after(filled_buffer().freeze());
            assert!(
                kept > BUFFER_BYTES - MIB,
                "only {kept} bytes of reusable pages"
            );
        },
    );
}

const BLOCK_BYTES: usize = 64 << 10;

/// Freezes pages permanently, calls `prepare` with their address, and drops the pages. Returns
/// whether a later buffer has the same address. Asserts that such a buffer contains only zeroes,
/// which shows that it has new page frames.
fn is_reused_after_gift(prepare: impl FnOnce(*const u8)) -> bool {
    let mut buffer = PageBuffer::zeroed(BLOCK_BYTES).unwrap();
    buffer.fill(7);
    let pages = buffer.freeze_permanently();
    let address = pages.as_ptr();
    prepare(address);
    drop(pages);
    // Allocate more buffers than a slab of the pool has blocks, so that the pool has to use every
    // free block of the slab.
    let mut later: Vec<_> = (0..100)
        .map(|_| PageBuffer::with_capacity(BLOCK_BYTES).unwrap())
        .collect();
    let reused = later.iter_mut().find(|it| it.as_ptr() == address);
    reused.is_some_and(|buffer| {
        assert!(buffer.spare_mut().iter().all(|&byte| byte == 0));
        true
    })
}

/// The kernel refuses `MADV_DONTNEED` for pages that are locked in memory (`mlock(2)`,
/// `mlockall(2)`). The pool must then discard their page frames in another way. Fails if it leaks
/// the pages instead.
#[test]
fn gifted_pages_that_are_locked_do_not_leak() {
    in_child(
        "buffer_pool::gifted_pages_that_are_locked_do_not_leak",
        |_| {},
        || {
            let lock = |address: *const u8| {
                // SAFETY: locking pages in memory changes no content.
                let result = unsafe { libc::mlock(address.cast(), BLOCK_BYTES) };
                assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
            };
            assert!(is_reused_after_gift(lock), "the locked pages have leaked");
        },
    );
}

/// Before Linux 5.18, `madvise(2)` cannot discard locked pages at all: it fails with `EINVAL`. The
/// pool must then map new memory over the pages. Fails if it leaks the pages instead.
#[test]
fn gifted_pages_for_which_no_advice_exists_do_not_leak() {
    in_child(
        "buffer_pool::gifted_pages_for_which_no_advice_exists_do_not_leak",
        |_| {},
        || {
            assert!(is_reused_after_gift(|_| refuse_call(
                libc::SYS_madvise,
                None,
                Errno::INVAL
            )));
        },
    );
}

/// If the frames of gifted pages cannot be discarded, the kernel may still be sending them. So the
/// pages must never be written to again, and the pool must leak their block. Fails if
/// `release_cold` returns such a block to the pool.
#[test]
fn gifted_pages_that_the_kernel_does_not_take_back_are_never_used_again() {
    in_child(
        "buffer_pool::gifted_pages_that_the_kernel_does_not_take_back_are_never_used_again",
        |_| {},
        || {
            assert!(!is_reused_after_gift(|_| refuse_call(
                libc::SYS_madvise,
                None,
                Errno::NOMEM
            )));
        },
    );
}
