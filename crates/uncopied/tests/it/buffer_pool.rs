//! The pool that buffers come from and return to.

#![allow(unsafe_code)]

use std::sync::mpsc;

use uncopied::arena::{PageBuffer, Pages};
use uncopied::{Errno, Mechanism, SendOptions};

use crate::harness::{Family, expect_bytes, in_child, pattern, sender};

const MIB: usize = 1 << 20;

/// The resident set size of this process in bytes, counted page by page.
fn resident_bytes() -> usize {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = rollup
        .lines()
        .find(|line| line.starts_with("Rss:"))
        .unwrap();
    let kib = line.split_whitespace().nth(1).unwrap();
    kib.parse::<usize>().unwrap() * 1024
}

/// Frozen pages of `len` bytes, each of them `mark`.
fn pages_filled_with(mark: u8, len: usize) -> Pages {
    let mut buffer = PageBuffer::with_capacity(len).unwrap();
    buffer.set_len(len);
    buffer.fill(mark);
    buffer.freeze()
}

/// Threads take buffers of all sizes, and other threads drop them. No buffer changes until then,
/// and the memory that the process keeps for the next buffers is bounded.
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
            // 64 MiB that all threads share, and less than 10 MiB for each of 5 threads.
            let growth = peak - before;
            assert!(growth < 160 * MIB, "grew by {} MiB", growth / MIB);
            assert!(
                filled_bytes > 10 * growth,
                "{filled_bytes} bytes are too few"
            );
        },
    );
}

/// Two threads take buffers, and two others drop them. Returns how many bytes were written in
/// total.
fn churn(round: u8) -> usize {
    let classes: Vec<usize> = (12..=24).map(|bits| 1 << bits).collect();
    std::thread::scope(|scope| {
        let takers: Vec<_> = [0, 1]
            .map(|taker| {
                // The channel is short, so that few buffers exist at a time.
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
                            // The largest buffer of a size class, and the smallest.
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

/// The longest buffers use memory only for the pages that are written, and return it when they are
/// dropped.
#[test]
fn the_longest_buffers_use_only_what_is_written() {
    in_child(
        "buffer_pool::the_longest_buffers_use_only_what_is_written",
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
                        // The bytes of an earlier buffer are gone: blocks of this size are not
                        // kept.
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

/// When their last handle is dropped, pages that are frozen permanently or were gifted by
/// `vmsplice` go back to the kernel. Others are kept for the next buffer.
#[test]
fn gifted_pages_are_not_kept() {
    in_child(
        "buffer_pool::gifted_pages_are_not_kept",
        |_| {},
        || {
            const BUFFER_BYTES: usize = 16 * MIB;
            // Generates the pattern before anything is measured.
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

/// Drops pages that are never written to again, after `prepare` was called with their address.
/// Returns whether a later buffer has the same address. Such a buffer must contain zeroes.
fn is_reused_after_gift(prepare: impl FnOnce(*const u8)) -> bool {
    let mut buffer = PageBuffer::zeroed(BLOCK_BYTES).unwrap();
    buffer.fill(7);
    let pages = buffer.freeze_permanently();
    let address = pages.as_ptr();
    prepare(address);
    drop(pages);
    // More buffers than a slab of the pool has.
    let mut later: Vec<_> = (0..100)
        .map(|_| PageBuffer::with_capacity(BLOCK_BYTES).unwrap())
        .collect();
    let reused = later.iter_mut().find(|it| it.as_ptr() == address);
    reused.is_some_and(|buffer| {
        assert!(buffer.spare_mut().iter().all(|&byte| byte == 0));
        true
    })
}

/// Makes every later `madvise(2)` of this thread fail with `errno`.
fn refuse_madvise(errno: Errno) {
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    let errno = errno.raw_os_error().unsigned_abs();
    let mut filter = [
        // The number of the system call is at the start of the data.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        libc::sock_filter {
            jf: 1,
            ..statement(
                libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
                libc::SYS_madvise as u32,
            )
        },
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the call only forbids this process to gain privileges.
    let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(result, 0);
    // SAFETY: the program is a local, and refers to a local array of the given length. The kernel
    // copies both.
    let result = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// After `mlockall(2)`, and for locked pages in general, the kernel refuses `MADV_DONTNEED`. Fails
/// if the pool then leaks the pages.
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

/// Before Linux 5.18, no advice discards locked pages. Fails if the pool does not then map new
/// memory over them.
#[test]
fn gifted_pages_for_which_no_advice_exists_do_not_leak() {
    in_child(
        "buffer_pool::gifted_pages_for_which_no_advice_exists_do_not_leak",
        |_| {},
        || {
            assert!(is_reused_after_gift(|_| refuse_madvise(Errno::INVAL)));
        },
    );
}

/// The kernel may still send pages whose frames could not be discarded, so they must not be written
/// to. Fails if `release_cold` returns such a block to the pool.
#[test]
fn gifted_pages_that_the_kernel_does_not_take_back_are_never_used_again() {
    in_child(
        "buffer_pool::gifted_pages_that_the_kernel_does_not_take_back_are_never_used_again",
        |_| {},
        || {
            assert!(!is_reused_after_gift(|_| refuse_madvise(Errno::NOMEM)));
        },
    );
}
