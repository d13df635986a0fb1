//! Buffers that come and go.

use std::sync::mpsc;

use uncopied::arena::{PageBuffer, Pages};
use uncopied::{Mechanism, SendOptions};

use crate::harness::{Family, content, expect_bytes, in_child, sender};

const MIB: usize = 1 << 20;

/// How much memory this process has, in bytes, counted page by page.
fn resident() -> usize {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = rollup
        .lines()
        .find(|line| line.starts_with("Rss:"))
        .unwrap();
    let kib = line.split_whitespace().nth(1).unwrap();
    kib.parse::<usize>().unwrap() * 1024
}

/// A buffer of so many bytes, all of them written.
fn filled(len: usize, mark: u8) -> Pages {
    let mut buffer = PageBuffer::with_capacity(len).unwrap();
    buffer.set_len(len);
    buffer.fill(mark);
    buffer.freeze()
}

/// Threads take buffers of all sizes, others give them back: each has the bytes of its own until then,
/// and what the process keeps for the next is bounded, however much has come and gone.
#[test]
fn buffers_that_are_given_back_elsewhere_are_used_again() {
    in_child(
        "pool::buffers_that_are_given_back_elsewhere_are_used_again",
        |_| {},
        || {
            let before = resident();
            let mut most = before;
            let mut filled_bytes = 0;
            for round in 0..3_u8 {
                filled_bytes += churn(round);
                most = most.max(resident());
            }
            // 64 MiB that are kept for all, and less than 10 MiB for each of 5 threads.
            let grown = most - before;
            assert!(grown < 160 * MIB, "it has grown by {} MiB", grown / MIB);
            assert!(
                filled_bytes > 10 * grown,
                "{filled_bytes} bytes prove nothing"
            );
        },
    );
}

/// Two threads take, two others give back. Answers how many bytes were written in all.
fn churn(round: u8) -> usize {
    let classes: Vec<usize> = (12..=24).map(|bits| 1 << bits).collect();
    std::thread::scope(|scope| {
        let takers: Vec<_> = [0, 1]
            .map(|taker| {
                // Few wait: what is alive at a time is bounded too.
                let (give, given) = mpsc::sync_channel::<(Pages, u8)>(2);
                scope.spawn(move || {
                    for (pages, mark) in given {
                        assert!(pages.iter().step_by(511).all(|&byte| byte == mark));
                        assert_eq!(pages.last(), Some(&mark));
                    }
                });
                let classes = &classes;
                scope.spawn(move || {
                    let mut bytes = 0;
                    for turn in 0..15_u8 {
                        for (class, &size) in classes.iter().enumerate() {
                            // All of a class, and just more than the one below has.
                            let len = if turn % 2 == 0 { size } else { size / 2 + 1 };
                            let mark = (turn * 13 + class as u8) ^ (round << 6) ^ taker;
                            give.send((filled(len, mark), mark)).unwrap();
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

/// The longest buffer there is costs nothing but what is written of it, and its frames go back.
#[test]
fn the_longest_buffers_come_and_go() {
    in_child(
        "pool::the_longest_buffers_come_and_go",
        |_| {},
        || {
            let before = resident();
            for mark in 1..20_u8 {
                for make in [PageBuffer::with_capacity, PageBuffer::huge] {
                    let mut buffer = make(PageBuffer::MAX_CAPACITY).unwrap();
                    assert_eq!(buffer.capacity(), PageBuffer::MAX_CAPACITY);
                    buffer.set_len(PageBuffer::MAX_CAPACITY);
                    let last = buffer.len() - 1;
                    for at in [0, last / 2, last] {
                        // What an earlier one had there is gone, as so long a block does not stay warm.
                        assert_eq!(buffer[at], 0);
                        buffer[at] = mark;
                    }
                    assert_eq!(buffer.freeze()[last], mark);
                }
            }
            let grown = resident().saturating_sub(before);
            assert!(grown < 16 * MIB, "{} MiB are left", grown / MIB);
        },
    );
}

/// Pages that are frozen for good, or were sent by vmsplice, go back to the kernel with the last handle;
/// others are kept for the next buffer.
#[test]
fn what_was_given_away_is_not_kept() {
    in_child(
        "pool::what_was_given_away_is_not_kept",
        |_| {},
        || {
            const LEN: usize = 16 * MIB;
            // What the test itself needs is there before it measures.
            drop(content(LEN));
            let filled_buffer = || {
                let mut buffer = PageBuffer::with_capacity(LEN).unwrap();
                buffer.set_len(LEN);
                buffer.copy_from_slice(&content(LEN));
                buffer
            };
            let kept_after = |pages: Pages| {
                let before = resident();
                drop(pages);
                (resident() + LEN).saturating_sub(before)
            };
            let kept = kept_after(filled_buffer().freeze_permanently());
            assert!(kept < MIB, "{kept} bytes of pages frozen for good");

            let pages = filled_buffer().freeze();
            let (mut sender, mut peer) =
                sender(Family::Tcp, &[Mechanism::Vmsplice], SendOptions::default());
            std::thread::scope(|scope| {
                scope.spawn(|| expect_bytes(&mut peer, &content(LEN)));
                let sent = sender.send(pages.clone()).unwrap();
                assert_eq!(sent.report().by(Mechanism::Vmsplice), LEN as u64);
            });
            let kept = kept_after(pages);
            assert!(kept < MIB, "{kept} bytes of pages sent by vmsplice");

            let kept = kept_after(filled_buffer().freeze());
            assert!(kept > LEN - MIB, "{kept} bytes, not kept for the next");
        },
    );
}
