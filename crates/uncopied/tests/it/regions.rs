//! Regions that are overwritten while they are being sent.
//!
//! Writers never wait for a send. The receiver, on the same machine and behind, must get what was in the
//! region at each send.

use std::io::Read;
use std::time::{Duration, Instant};

use uncopied::arena::{Region, RegionMut};
use uncopied::{FreeReason, Mechanism, SendOptions, Sender};

use crate::harness::{Family, HANG, expect_bytes, expect_end, for_memory, pair, sender, skip};
use crate::poison::soak_time;

const HUGE: usize = 2 << 20;

/// Whether regions are protected, and huge, here. Where they are not, they are copied, which is the
/// other tests' business.
fn is_protected(region: &Region, test: &str) -> bool {
    let why = match region.protection() {
        Err(errno) => format!("needs userfaultfd, which is refused: {errno}"),
        Ok(_) if !region.is_huge() => "needs transparent huge pages".to_owned(),
        Ok(_) => return true,
    };
    skip(&format!("regions::{test}"), &why);
    false
}

fn fill(writer: &mut RegionMut, round: u64) {
    for (at, eight) in writer.chunks_exact_mut(8).enumerate() {
        eight.copy_from_slice(&word(round, at).to_ne_bytes());
    }
}

/// The round, and next to it the round and the place: a word that was half written tells.
fn word(round: u64, at: usize) -> u64 {
    round << 32 | (round ^ at as u64)
}

#[test]
fn what_is_overwritten_after_the_send_arrives_as_it_was() {
    for family in [Family::Tcp, Family::Unix] {
        for &mechanism in for_memory(family) {
            let (region, mut writer) = Region::new(2 * HUGE).unwrap();
            if !is_protected(
                &region,
                "what_is_overwritten_after_the_send_arrives_as_it_was",
            ) {
                return;
            }
            let (mut sender, mut peer) = sender(family, &[mechanism], SendOptions::default());
            let mut expected = Vec::new();
            std::thread::scope(|scope| {
                let late = scope.spawn(move || {
                    std::thread::sleep(Duration::from_millis(100));
                    let mut got = Vec::new();
                    peer.read_to_end(&mut got).unwrap();
                    got
                });
                let mut completions = Vec::new();
                // Whole, a part in one huge page, one across two, and one that ends nowhere.
                let ranges = [
                    0..2 * HUGE,
                    5..4000,
                    HUGE - 3000..HUGE + 5000,
                    100..HUGE + 1,
                ];
                for (round, range) in ranges.into_iter().cycle().take(12).enumerate() {
                    fill(&mut writer, round as u64);
                    expected.extend_from_slice(&writer[range.clone()]);
                    let sent = sender.send(region.part(range.clone())).unwrap();
                    fill(&mut writer, 1000 + round as u64);
                    assert_eq!(sent.report().by(mechanism), range.len() as u64);
                    completions.push(sent.into_completion());
                }
                for completion in completions {
                    let settled = completion.wait(Some(HANG)).unwrap();
                    let gifted = mechanism == Mechanism::Vmsplice;
                    assert_eq!(settled.reason == FreeReason::Gifted, gifted);
                }
                drop(sender);
                let got = late.join().unwrap();
                assert!(got == expected, "{mechanism} to {family:?}");
            });
        }
    }
}

/// The plan: what is too small to win is copied, what is not goes out without a copy even here.
#[test]
fn the_plan_copies_what_does_not_pay() {
    let (region, mut writer) = Region::new(4 * HUGE).unwrap();
    if !is_protected(&region, "the_plan_copies_what_does_not_pay") {
        return;
    }
    fill(&mut writer, 1);
    let (mut sender, mut peer) = sender(Family::Tcp, &[], SendOptions::default());
    let bytes = writer.to_vec();
    std::thread::scope(|scope| {
        let reading = scope.spawn(move || {
            expect_bytes(&mut peer, &bytes);
            expect_bytes(&mut peer, &bytes[..HUGE - 1]);
            expect_bytes(&mut peer, &bytes[1..]);
            expect_end(&mut peer);
        });
        let by = |sender: &mut Sender<_>, range: std::ops::Range<usize>, mechanism| {
            let sent = sender.send(region.part(range)).unwrap();
            assert_eq!(
                sent.report().by(mechanism),
                sent.bytes(),
                "{:?}",
                sent.report()
            );
        };
        by(&mut sender, 0..4 * HUGE, Mechanism::Vmsplice);
        by(&mut sender, 0..HUGE - 1, Mechanism::Copy);
        by(&mut sender, 1..4 * HUGE, Mechanism::Copy);
        drop(sender);
        reading.join().unwrap();
    });
}

/// A writer that fills its half over and over, and senders that send both halves whenever they like. Each
/// word carries its place and the round it was written in: what arrives of a half was written in one round
/// or two that follow each other, and never in an earlier one than the last that had arrived.
#[test]
fn writers_that_never_wait_change_nothing_in_flight() {
    let (region, writer) = Region::new(2 * HUGE).unwrap();
    if !is_protected(&region, "writers_that_never_wait_change_nothing_in_flight") {
        return;
    }
    let end = Instant::now() + soak_time(Duration::from_secs(3));
    let (left, right) = writer.split_at(HUGE);
    let mut halves = [left, right];
    halves.iter_mut().for_each(|half| fill(half, 1));
    let sends = std::thread::scope(|scope| {
        for mut half in halves {
            scope.spawn(move || {
                let mut round = 2;
                while Instant::now() < end {
                    fill(&mut half, round);
                    round += 1;
                }
            });
        }
        let running: Vec<_> = for_memory(Family::Tcp)
            .iter()
            .map(|&mechanism| {
                let (socket, mut peer) = pair(Family::Tcp);
                let options = SendOptions::default().force_mechanisms(&[mechanism]);
                let mut sender = Sender::with(socket, options);
                let region = region.clone();
                scope.spawn(move || {
                    while Instant::now() < end {
                        assert_eq!(
                            sender.send(region.part(..)).unwrap().bytes(),
                            2 * HUGE as u64
                        );
                    }
                });
                scope.spawn(move || {
                    let mut got = vec![0; 2 * HUGE];
                    let (mut last, mut sends) = ([1, 1], 0_u64);
                    while peer.read_exact(&mut got).is_ok() {
                        for (half, last) in got.chunks_exact(HUGE).zip(&mut last) {
                            *last = check_half(half, *last, mechanism);
                        }
                        sends += 1;
                    }
                    sends
                })
            })
            .collect();
        let sends = running.into_iter().map(|receiver| receiver.join().unwrap());
        sends.sum::<u64>()
    });
    println!(
        "{sends} sends of {} bytes under writers that never waited",
        2 * HUGE
    );
    assert!(sends > 10, "{sends} sends prove nothing");
}

/// Checks one half as it arrived after round `last`, and answers the latest round in it.
///
/// A send takes a moment, as `write(2)` does, in which a writer goes through some rounds. What must hold is
/// that every word stands in its own place, and that none is older than what was sent before: then what
/// was sent before was changed in flight. Words that were just being written, where the kernel stopped or
/// met the writer, may be half of one round and half of the next.
fn check_half(half: &[u8], last: u64, mechanism: Mechanism) -> u64 {
    let (mut latest, mut torn) = (last, 0);
    for (at, eight) in half.chunks_exact(8).enumerate() {
        let found = u64::from_ne_bytes(eight.try_into().unwrap());
        let round = found >> 32;
        if found != word(round, at) {
            torn += 1;
            continue;
        }
        // One that was being written when the send before looked may be a round behind the latest then.
        assert!(round + 1 >= last, "{mechanism}: {round} after {last}");
        latest = latest.max(round);
    }
    // The two may go at the same speed for a while.
    assert!(
        torn < half.len() / 8 / 20,
        "{mechanism}: {torn} words are of no round"
    );
    latest
}
