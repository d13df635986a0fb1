//! Regions that are overwritten while they are being sent.
//!
//! The tests write to a region without waiting for its sends to complete. The receiver, which is on
//! the same machine and slower than the sender, must still get the bytes that the region had at the
//! time of each send.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use uncopied::arena::{Region, RegionMut, RegionPart};
use uncopied::{Errno, FreeReason, Mechanism, SendOptions, Sender};

use crate::harness::{
    Family, HANG_TIMEOUT, expect_bytes, expect_eof, in_child, memory_mechanisms, sender, skip,
    soak_time, socket_pair, wait_until,
};

const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Whether the region is write-protected while it is sent, which needs `userfaultfd` and huge
/// pages. If not, reports `test` as skipped: sends of an unprotected region are copied, and other
/// tests cover that.
fn is_protected(region: &Region, test: &str) -> bool {
    let why = match region.protection() {
        Err(errno) => format!("needs userfaultfd, which is refused: {errno}"),
        Ok(_) if !region.is_huge() => "needs transparent huge pages".to_owned(),
        Ok(_) => return true,
    };
    skip(&format!("regions::{test}"), &why);
    false
}

/// Fills the memory with the words of this round; see [`word`].
fn fill_with_round(writer: &mut RegionMut, round: u64) {
    for (at, eight) in writer.chunks_exact_mut(8).enumerate() {
        eight.copy_from_slice(&word(round, at).to_ne_bytes());
    }
}

/// Returns the 8-byte word that is written at position `at` in round `round`. The upper half of the
/// word is the round, and the lower half combines the round with the position. In a word that mixes
/// the bytes of two rounds, the halves do not match.
fn word(round: u64, at: usize) -> u64 {
    round << 32 | (round ^ at as u64)
}

#[test]
fn bytes_overwritten_after_the_send_arrive_unchanged() {
    for family in [Family::Tcp, Family::Unix] {
        for &mechanism in memory_mechanisms(family) {
            let (region, mut writer) = Region::new(2 * HUGE_PAGE_BYTES).unwrap();
            if !is_protected(&region, "bytes_overwritten_after_the_send_arrive_unchanged") {
                return;
            }
            let (mut sender, mut peer) = sender(family, &[mechanism], SendOptions::default());
            let mut expected = Vec::new();
            std::thread::scope(|scope| {
                let late_receiver = scope.spawn(move || {
                    std::thread::sleep(Duration::from_millis(100));
                    let mut received = Vec::new();
                    peer.read_to_end(&mut received).unwrap();
                    received
                });
                let mut completions = Vec::new();
                // Send the whole region, a range within one huge page, a range across two huge
                // pages, and a range of which only the last byte is in the second huge page.
                let ranges = [
                    0..2 * HUGE_PAGE_BYTES,
                    5..4000,
                    HUGE_PAGE_BYTES - 3000..HUGE_PAGE_BYTES + 5000,
                    100..HUGE_PAGE_BYTES + 1,
                ];
                for (round, range) in ranges.into_iter().cycle().take(12).enumerate() {
                    fill_with_round(&mut writer, round as u64);
                    expected.extend_from_slice(&writer[range.clone()]);
                    let sent = sender.send(region.part(range.clone())).unwrap();
                    fill_with_round(&mut writer, 1000 + round as u64);
                    assert_eq!(sent.report().by(mechanism), range.len() as u64);
                    completions.push(sent.into_completion());
                }
                for completion in completions {
                    let outcome = completion.wait(Some(HANG_TIMEOUT)).unwrap();
                    let gifted = mechanism == Mechanism::Vmsplice;
                    assert_eq!(outcome.reason == FreeReason::Gifted, gifted);
                }
                drop(sender);
                let received = late_receiver.join().unwrap();
                assert!(received == expected, "{mechanism} to {family:?}");
            });
        }
    }
}

/// If no mechanism is forced, parts of a region that are too small or not aligned to a huge page
/// must be copied. Other parts must be sent without copying, even to a peer on this machine.
#[test]
fn the_plan_copies_small_and_unaligned_parts() {
    let (region, mut writer) = Region::new(4 * HUGE_PAGE_BYTES).unwrap();
    if !is_protected(&region, "the_plan_copies_small_and_unaligned_parts") {
        return;
    }
    fill_with_round(&mut writer, 1);
    let (mut sender, mut peer) = sender(Family::Tcp, &[], SendOptions::default());
    let bytes = writer.to_vec();
    std::thread::scope(|scope| {
        let reading = scope.spawn(move || {
            expect_bytes(&mut peer, &bytes);
            expect_bytes(&mut peer, &bytes[..HUGE_PAGE_BYTES - 1]);
            expect_bytes(&mut peer, &bytes[1..]);
            expect_eof(&mut peer);
        });
        let check_send = |sender: &mut Sender<_>, range: std::ops::Range<usize>, mechanism| {
            let sent = sender.send(region.part(range)).unwrap();
            assert_eq!(
                sent.report().by(mechanism),
                sent.bytes(),
                "{:?}",
                sent.report()
            );
        };
        check_send(&mut sender, 0..4 * HUGE_PAGE_BYTES, Mechanism::Vmsplice);
        check_send(&mut sender, 0..HUGE_PAGE_BYTES - 1, Mechanism::Copy);
        check_send(&mut sender, 1..4 * HUGE_PAGE_BYTES, Mechanism::Copy);
        drop(sender);
        reading.join().unwrap();
    });
}

/// Returns how many bytes of this process's memory count against the limit on data (`RLIMIT_DATA`).
fn data_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmData:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() * 1024
}

/// A thread writes to a page that is in flight. Such a page must be copied first, but there is no
/// memory for the copy, so the thread has to wait. Meanwhile, another thread must be able to write
/// to a page that needs no copy. Fails if the fault handler sleeps until it retries the first page,
/// instead of handling the faults of other pages.
#[test]
fn a_page_without_memory_for_its_copy_delays_no_other_page() {
    const NAME: &str = "a_page_without_memory_for_its_copy_delays_no_other_page";
    static MAY_WRITE: [AtomicBool; 2] = [const { AtomicBool::new(false) }; 2];
    static HAS_WRITTEN: [AtomicBool; 2] = [const { AtomicBool::new(false) }; 2];
    let has_written = |index: usize| HAS_WRITTEN[index].load(Ordering::SeqCst);
    in_child(
        &format!("regions::{NAME}"),
        |_| {},
        || {
            let regions = [(); 2].map(|()| Region::new(HUGE_PAGE_BYTES).unwrap());
            if !is_protected(&regions[0].0, NAME) {
                return;
            }
            // The page of the first region stays in flight, because nothing reports when the kernel
            // is done with memory sent by `vmsplice`. So a write to that page needs a copy. The
            // page of the second region is still write-protected, but no longer in flight, so a
            // write to it needs no copy.
            let plan = [Mechanism::Vmsplice];
            let (mut gifting, _peer) = sender(Family::Tcp, &plan, SendOptions::default());
            let sent = gifting.send(regions[0].0.part(..4096)).unwrap();
            assert_eq!(sent.report().by(Mechanism::Vmsplice), 4096);
            let plan = [Mechanism::MsgZerocopy];
            let (mut leasing, mut peer) = sender(Family::Tcp, &plan, SendOptions::default());
            let sent = leasing.send(regions[1].0.part(..4096)).unwrap();
            assert_eq!(sent.report().by(Mechanism::MsgZerocopy), 4096);
            expect_bytes(&mut peer, &[0; 4096]);
            sent.into_completion().wait(Some(HANG_TIMEOUT)).unwrap();

            let mut writers = regions.map(|(_, writer)| writer).into_iter();
            for index in 0..2 {
                let mut writer = writers.next().unwrap();
                std::thread::spawn(move || {
                    while !MAY_WRITE[index].load(Ordering::SeqCst) {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    writer[5000] = 1;
                    HAS_WRITTEN[index].store(true, Ordering::SeqCst);
                    std::thread::park();
                });
            }
            let limit = getrlimit(Resource::Data);
            // Leave some memory for the allocator, but less than the huge page that the copy needs.
            let current = Some(data_bytes() + HUGE_PAGE_BYTES as u64 / 2);
            setrlimit(Resource::Data, Rlimit { current, ..limit }).unwrap();
            MAY_WRITE[0].store(true, Ordering::SeqCst);
            // Give the fault handler time to find that there is no memory for the copy.
            std::thread::sleep(Duration::from_millis(100));
            MAY_WRITE[1].store(true, Ordering::SeqCst);
            let began = Instant::now();
            while !has_written(1) && began.elapsed() < HANG_TIMEOUT {
                std::thread::sleep(Duration::from_millis(1));
            }
            let written = [0, 1].map(has_written);
            // Restore the limit before the assertion, because a failed assertion needs memory to
            // report the failure.
            setrlimit(Resource::Data, limit).unwrap();
            assert_eq!(written, [false, true], "has the page been written to?");
            wait_until("the write that needs a copy", || has_written(0));
        },
    );
}

/// Two writers keep filling their halves of a region, round after round, while several senders send
/// the whole region without coordination. Each word identifies its position and the round in which
/// it was written, so that [`check_half`] can check the halves that arrive: each word must be at
/// its position, and no word may be more than one round older than the latest round that arrived
/// before.
#[test]
fn writers_that_never_wait_change_nothing_in_flight() {
    let (region, writer) = Region::new(2 * HUGE_PAGE_BYTES).unwrap();
    if !is_protected(&region, "writers_that_never_wait_change_nothing_in_flight") {
        return;
    }
    let end = Instant::now() + soak_time(Duration::from_secs(3));
    let (left, right) = writer.split_at(HUGE_PAGE_BYTES);
    let mut halves = [left, right];
    halves.iter_mut().for_each(|half| fill_with_round(half, 1));
    let sends = std::thread::scope(|scope| {
        for mut half in halves {
            scope.spawn(move || {
                let mut round = 2;
                while Instant::now() < end {
                    fill_with_round(&mut half, round);
                    round += 1;
                }
            });
        }
        let running: Vec<_> = memory_mechanisms(Family::Tcp)
            .iter()
            .map(|&mechanism| {
                let (socket, mut peer) = socket_pair(Family::Tcp);
                let options = SendOptions::default().force_mechanisms(&[mechanism]);
                let mut sender = Sender::with(socket, options);
                let region = region.clone();
                scope.spawn(move || {
                    while Instant::now() < end {
                        assert_eq!(
                            sender.send(region.part(..)).unwrap().bytes(),
                            2 * HUGE_PAGE_BYTES as u64
                        );
                    }
                });
                scope.spawn(move || {
                    let mut received = vec![0; 2 * HUGE_PAGE_BYTES];
                    let (mut latest_rounds, mut sends) = ([1, 1], 0_u64);
                    while peer.read_exact(&mut received).is_ok() {
                        let halves = received.chunks_exact(HUGE_PAGE_BYTES);
                        for (half, latest_round) in halves.zip(&mut latest_rounds) {
                            *latest_round = check_half(half, *latest_round, mechanism);
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
        "{sends} sends of {} bytes while writers never waited",
        2 * HUGE_PAGE_BYTES
    );
    assert!(sends > 10, "{sends} sends are too few");
}

/// Checks a received half of the region, and returns the latest round in it, or `previous` if that
/// is later. `previous` is the latest round that arrived with earlier sends.
///
/// The writer may complete several rounds during one send, so a half may contain words of several
/// rounds. Each word must be at its own position. A few words may mix two rounds, because the
/// writer was writing them while they were sent.
///
/// No word may be more than one round older than `previous`. The writer begins a round only after
/// it has completed the round before. So once it has begun round `previous`, which an earlier send
/// contained, every word of the half dates from the round before `previous` or from a later round.
/// If an even older word arrives now, the writer cannot have begun round `previous` when the
/// earlier send was made. So a later write must have changed that send while it was in flight.
fn check_half(half: &[u8], previous: u64, mechanism: Mechanism) -> u64 {
    let (mut latest, mut torn_words) = (previous, 0);
    for (at, eight) in half.chunks_exact(8).enumerate() {
        let found = u64::from_ne_bytes(eight.try_into().unwrap());
        let round = found >> 32;
        if found != word(round, at) {
            torn_words += 1;
            continue;
        }
        // Accept words of the round before `previous`. The previous send may have been made while
        // the writer was in the middle of round `previous`, and this send may still have found
        // words that the writer had not yet replaced.
        assert!(
            round + 1 >= previous,
            "{mechanism}: {round} after {previous}"
        );
        latest = latest.max(round);
    }
    // Allow several torn words, because the writer and the sender may advance through the region at
    // the same speed for a while.
    assert!(
        torn_words < half.len() / 8 / 20,
        "{mechanism}: {torn_words} words belong to no round"
    );
    latest
}

/// The number of bytes that a test sends from each of two huge pages. Few enough to fit into the
/// socket buffers, so that the peer need not read.
const PART_BYTES: usize = 32 << 10;

/// Returns a part with [`PART_BYTES`] bytes at the end of the first huge page, and as many at the
/// start of the second.
fn part_of_two_pages(region: &Region) -> RegionPart {
    region.part(HUGE_PAGE_BYTES - PART_BYTES..HUGE_PAGE_BYTES + PART_BYTES)
}

/// A send is in flight until its acknowledgement is processed. If the program writes to one of its
/// pages before that, the outcome and the sender's report must say that the bytes in this page were
/// copied.
#[test]
fn pages_copied_while_a_send_is_in_flight_are_reported() {
    let (region, mut writer) = Region::new(2 * HUGE_PAGE_BYTES).unwrap();
    if !is_protected(
        &region,
        "pages_copied_while_a_send_is_in_flight_are_reported",
    ) {
        return;
    }
    let options = SendOptions::default().assume_remote_peer(true);
    let (mut sender, _peer) = sender(Family::Tcp, &[Mechanism::Vmsplice], options);
    let sent = sender.send(part_of_two_pages(&region)).unwrap();
    writer[0] = 1;
    let outcome = sent.completion().wait(Some(HANG_TIMEOUT)).unwrap();
    assert_eq!(outcome.reason, FreeReason::Acknowledged);
    let bytes = PART_BYTES as u64;
    assert_eq!((outcome.bytes, outcome.copied), (2 * bytes, bytes));
    let report = sender.report();
    assert_eq!(
        (report.copied_on_write(), report.kernel_copied()),
        (bytes, 0)
    );
    assert_eq!(
        (report.zero_copy_bytes(), report.copied_bytes()),
        (bytes, bytes)
    );

    // Nothing is in flight any longer, so a write to the other page copies nothing.
    writer[HUGE_PAGE_BYTES] = 1;
    assert_eq!(sender.report(), report);
}

/// A gifted send is complete at once, so its outcome reports no copy. If the program writes to a
/// page later, the reports of the senders that have sent it must say that it was copied.
#[test]
fn gifted_pages_that_are_copied_later_are_reported() {
    let (region, mut writer) = Region::new(2 * HUGE_PAGE_BYTES).unwrap();
    if !is_protected(&region, "gifted_pages_that_are_copied_later_are_reported") {
        return;
    }
    for family in [Family::Tcp, Family::Unix] {
        let senders = [(), ()].map(|()| {
            let plan = [Mechanism::Vmsplice];
            let (mut sender, peer) = sender(family, &plan, SendOptions::default());
            let sent = sender.send(part_of_two_pages(&region)).unwrap();
            let outcome = sent.completion().outcome().expect("complete at once");
            assert_eq!((outcome.copied, outcome.reason), (0, FreeReason::Gifted));
            assert_eq!(sender.report().copied_on_write(), 0);
            (sender, peer)
        });
        let bytes = PART_BYTES as u64;
        for (page, copied) in [(1, bytes), (1, bytes), (0, 2 * bytes), (0, 2 * bytes)] {
            writer[page * HUGE_PAGE_BYTES] += 1;
            for (sender, _) in &senders {
                let report = sender.report();
                assert_eq!(report.copied_on_write(), copied, "{family:?}");
                assert_eq!(report.zero_copy_bytes(), 2 * bytes - copied);
            }
        }
    }
}

/// A page that is sent several times and then overwritten is copied once, so no more bytes than the
/// page has must be reported as copied.
#[test]
fn a_page_that_is_sent_several_times_is_copied_once() {
    let (region, mut writer) = Region::new(HUGE_PAGE_BYTES).unwrap();
    if !is_protected(&region, "a_page_that_is_sent_several_times_is_copied_once") {
        return;
    }
    let (mut sender, mut peer) =
        sender(Family::Tcp, &[Mechanism::Vmsplice], SendOptions::default());
    std::thread::spawn(move || std::io::copy(&mut peer, &mut std::io::sink()));
    let page = HUGE_PAGE_BYTES as u64;
    for overwrites in 1..4 {
        for _ in 0..3 {
            sender.send(region.part(..)).unwrap();
        }
        writer[5] = overwrites;
        let report = sender.report();
        assert_eq!(report.copied_on_write(), u64::from(overwrites) * page);
        assert_eq!(report.zero_copy_bytes(), u64::from(overwrites) * 2 * page);
    }
}

/// The kernel copies every byte that is sent with `MSG_ZEROCOPY` to a peer on this machine. If the
/// page was copied on write as well, the bytes must be counted once.
#[test]
fn bytes_that_the_kernel_copied_are_not_counted_again() {
    let (region, mut writer) = Region::new(HUGE_PAGE_BYTES).unwrap();
    if !is_protected(
        &region,
        "bytes_that_the_kernel_copied_are_not_counted_again",
    ) {
        return;
    }
    for mechanism in [Mechanism::MsgZerocopy, Mechanism::SendZc] {
        let (mut sender, mut peer) = sender(Family::Tcp, &[mechanism], SendOptions::default());
        let sent = sender.send(region.part(..PART_BYTES)).unwrap();
        writer[0] += 1;
        peer.read_exact(&mut [0; PART_BYTES]).unwrap();
        let outcome = sent.completion().wait(Some(HANG_TIMEOUT)).unwrap();
        let bytes = PART_BYTES as u64;
        assert_eq!(
            (outcome.bytes, outcome.copied),
            (bytes, bytes),
            "{mechanism}"
        );
        let report = sender.report();
        assert_eq!(report.kernel_copied() + report.copied_on_write(), bytes);
        assert_eq!(
            (report.copied_bytes(), report.zero_copy_bytes()),
            (bytes, 0)
        );
    }
}

/// If the program overwrites a page after each send, the sender must copy it for a while, which is
/// cheaper. It must continue to send other pages without a copy.
#[test]
fn a_page_that_is_overwritten_after_each_send_is_copied_for_a_while() {
    const SENDS: usize = 40;
    let (region, mut writer) = Region::new(2 * HUGE_PAGE_BYTES).unwrap();
    let name = "a_page_that_is_overwritten_after_each_send_is_copied_for_a_while";
    if !is_protected(&region, name) {
        return;
    }
    let (mut sender, mut peer) = sender(Family::Tcp, &[], SendOptions::default());
    std::thread::spawn(move || std::io::copy(&mut peer, &mut std::io::sink()));
    let page = HUGE_PAGE_BYTES as u64;
    let mut first_copied = None;
    for at in 0..SENDS {
        let sent = sender.send(region.part(..HUGE_PAGE_BYTES)).unwrap();
        writer[at] = 1;
        let is_copied = sent.report().by(Mechanism::Copy) == page;
        assert!(is_copied || sent.report().by(Mechanism::Vmsplice) == page);
        assert!(
            is_copied || first_copied.is_none(),
            "zero copy again at {at}"
        );
        if is_copied && first_copied.is_none() {
            first_copied = Some(at);
        }
        let other = sender.send(region.part(HUGE_PAGE_BYTES..)).unwrap();
        assert_eq!(other.report().by(Mechanism::Vmsplice), page);
    }
    let first_copied = first_copied.expect("copied") as u64;
    assert!(first_copied < 20, "{first_copied}");
    let report = sender.report();
    assert_eq!(report.copied_on_write(), first_copied * page);
    assert_eq!(
        report.zero_copy_bytes(),
        SENDS as u64 * page,
        "those of the other page"
    );
}

/// If the first region cannot be protected because the process has too many descriptors, a later
/// one must be protected.
#[test]
fn regions_are_protected_again_after_descriptors_ran_out() {
    in_child(
        "regions::regions_are_protected_again_after_descriptors_ran_out",
        |_| {},
        || {
            let limit = getrlimit(Resource::Nofile);
            let none = Rlimit {
                current: Some(3),
                ..limit
            };
            setrlimit(Resource::Nofile, none).unwrap();
            let (region, _writer) = Region::new(1).unwrap();
            assert_eq!(region.protection(), Err(Errno::MFILE));
            setrlimit(Resource::Nofile, limit).unwrap();
            let (region, _writer) = Region::new(1).unwrap();
            assert!(region.protection().is_ok(), "{:?}", region.protection());
        },
    );
}
