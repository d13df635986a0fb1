//! The failures that others shipped, where only the arguments of a call show the guard.

use rustix::io::Errno;

use super::*;
use crate::error::ErrorKind;

const EACH: [(Mechanism, &[Call]); 4] = [
    (Mechanism::Sendfile, &[Call::Sendfile]),
    (Mechanism::Splice, &[Call::SpliceIn, Call::SpliceOut]),
    (Mechanism::MmapWrite, &[Call::SendMapped]),
    (Mechanism::Copy, &[Call::ReadAt, Call::Send]),
];

/// No call is asked for more than a step, whatever the length: neither 0x7ffff000 bytes are reached,
/// where each call is cut short, nor `usize::MAX`, which splice refuses. The guard: `Job::want`.
#[test]
fn no_call_is_asked_for_more_than_a_step() {
    let lengths = [
        Length::UntilEof,
        Length::Exact(u64::MAX),
        Length::Exact(u64::MAX - 3),
        Length::Exact(0x7fff_f000),
        Length::Exact(usize::MAX as u64),
    ];
    for (mechanism, calls) in EACH {
        for length in lengths {
            let kernel = sound();
            let mut bench = Bench::new(3, length, &[mechanism]);
            let result = bench.run(&kernel);
            assert_eq!(result.is_ok(), length == Length::UntilEof, "{mechanism}");
            assert_eq!(bench.by(mechanism), SIZE - 3, "{mechanism} {length:?}");
            assert!(bench.transfer.report().fallbacks().is_empty());
            for &call in calls {
                let most = kernel.made(call).iter().map(|made| made.count).max();
                let most = most.expect("the call is made");
                assert!(
                    (1..=crate::mechanism::MAX_STEP_BYTES).contains(&most),
                    "{call:?}: {most}"
                );
            }
        }
    }
}

/// One byte a call, at odd and even offsets: nothing is lost or doubled.
#[test]
fn one_byte_at_a_time() {
    for (mechanism, _) in EACH {
        let kernel = sound().at_most(1);
        let mut bench = Bench::of(content(2_049), 3, Length::Exact(2_046), &[mechanism]);
        bench.run(&kernel).expect("sent");
        assert_eq!(bench.received.len(), 2_046, "{mechanism}");
        assert_eq!(bench.by(mechanism), 2_046);
    }
}

/// Signals without end: every call is interrupted, fifty times in a row, before it moves a byte. The
/// guard: `again`.
#[test]
fn a_storm_of_signals_loses_nothing() {
    for (mechanism, calls) in EACH {
        for &call in calls {
            for first in [0, 2] {
                let storm = FaultRule::during(call, first..first + 50, Fault::Fails(Errno::INTR));
                let kernel = Faulty::new(vec![storm]).at_most(40_000);
                let mut bench = Bench::new(3, Length::UntilEof, &[mechanism]);
                bench.run(&kernel).expect("sent");
                assert_eq!(bench.by(mechanism), SIZE - 3, "{mechanism} {call:?}");
                assert!(kernel.made(call).len() > 50);
            }
        }
    }
}

/// A pipe of one slot is full after one page, and `EAGAIN` then is no word about the socket nor the
/// file: what it holds is drained, and the transfer never says that it is blocked on the source. The
/// guard: the arm for a pipe that holds bytes in `Pipe::fill`.
#[test]
fn a_pipe_that_is_full_by_slots_is_drained_first() {
    let page = rustix::param::page_size();
    for length in [Length::Exact(SIZE - 3), Length::UntilEof] {
        let kernel = sound().narrow_pipes(page);
        let mut bench = Bench::new(3, length, &[Mechanism::Splice]);
        bench.run(&kernel).expect("sent");
        assert_eq!(bench.by(Mechanism::Splice), SIZE - 3);
        assert!(
            !bench.blocked.contains(&Side::Source),
            "{:?}",
            bench.blocked
        );
        let out = kernel.made(Call::SpliceOut);
        assert!(out.len() as u64 >= SIZE / page as u64, "the pipe was wide");
        assert!(out.iter().all(|made| made.count <= page));
    }
}

/// `SPLICE_F_MORE` holds the last bytes back for up to 200 ms, so it is said when bytes surely follow
/// and never with the last ones. The guard: `more` in `Pipe::drain`.
#[test]
fn more_is_said_only_when_more_surely_follows() {
    let kernel = sound().narrow_pipes(64 << 10);
    let mut bench = Bench::new(0, Length::Exact(SIZE), &[Mechanism::Splice]);
    bench.run(&kernel).expect("sent");
    let mut left = SIZE;
    for made in kernel.made(Call::SpliceOut) {
        assert_eq!(made.more, left > made.count as u64, "with {left} left");
        left -= made.count as u64;
    }
    assert_eq!(left, 0);

    let kernel = sound().narrow_pipes(64 << 10);
    let mut bench = Bench::new(0, Length::UntilEof, &[Mechanism::Splice]);
    bench.run(&kernel).expect("sent");
    let out = kernel.made(Call::SpliceOut);
    assert!(out.iter().all(|made| !made.more), "no end was promised");
}

/// Nor is sendfile asked for more than there is, which kernels before 6.5 take for the same word. The
/// guard: `count` in `sendfile`.
#[test]
fn sendfile_is_not_asked_for_more_than_there_is() {
    let kernel = sound().at_most(70_001);
    let mut bench = Bench::new(3, Length::UntilEof, &[Mechanism::Sendfile]);
    bench.run(&kernel).expect("sent");
    let made = kernel.made(Call::Sendfile);
    let (end, sending) = made.split_last().expect("calls");
    assert_eq!(end.offset, SIZE, "the last call finds the end");
    for made in sending {
        assert_eq!(made.offset + made.count as u64, SIZE);
    }
}

/// A transfer that is blocked makes one call a step and waits to be told: the driver does the waiting.
#[test]
fn a_blocked_step_makes_one_try() {
    for (mechanism, calls) in EACH {
        let sending = calls[calls.len() - 1];
        let full = FaultRule::during(sending, 0..usize::MAX, Fault::Fails(Errno::AGAIN));
        let kernel = Faulty::new(vec![full]);
        let mut bench = Bench::new(3, Length::UntilEof, &[mechanism]);
        for tries in 1..=5 {
            let progress = bench.step(&kernel).expect("blocked");
            assert_eq!(progress, Progress::Blocked(Side::Sink), "{mechanism}");
            assert_eq!(kernel.made(sending).len(), tries, "{mechanism}");
        }
    }
}

/// With a length, a file that grows while it is sent gives not one byte more; without, its new end
/// counts. The guard: `Job::want`.
#[test]
fn a_file_that_grows_never_exceeds_what_was_promised() {
    for (mechanism, _) in EACH {
        for (length, expected) in [
            (Length::Exact(SIZE), SIZE),
            (Length::UntilEof, SIZE + 50_000),
        ] {
            let kernel = sound().at_most(70_000);
            let mut bench = Bench::new(0, length, &[mechanism]);
            bench.content = content(SIZE + 50_000);
            bench.step(&kernel).expect("a first step");
            let grown = &bench.content[SIZE as usize..];
            bench.file.write_all_at(grown, SIZE).expect("grown");
            bench.run(&kernel).expect("sent");
            assert_eq!(bench.received.len() as u64, expected, "{mechanism}");
        }
    }
}

/// A file that shrinks while it is sent is an error that says how many bytes went. The guard:
/// `Transfer::ended`, and the second look at the size in `mmap_write`.
#[test]
fn a_file_that_shrinks_is_an_error_with_the_count() {
    let page = rustix::param::page_size() as u64;
    for (mechanism, _) in EACH {
        for new_size in [0, 100_000 / page * page, 100_000, 60_000, 1] {
            let what = format!("{mechanism}, cut to {new_size}");
            // No pipe holds more than a step sends: what it holds survives the cut.
            let kernel = sound().at_most(70_000).narrow_pipes(64 << 10);
            let mut bench = Bench::new(0, Length::Exact(SIZE), &[mechanism]);
            bench.step(&kernel).expect("a first step");
            bench.file.set_len(new_size).expect("cut");
            let error = bench.run(&kernel).expect_err("bytes are owed");
            let promised = SIZE;
            assert_eq!(
                error.kind(),
                ErrorKind::SourceTooShort { promised },
                "{what}"
            );
            assert_eq!(error.moved(), bench.received.len() as u64, "{what}");
            assert!(error.moved() >= 64 << 10 && error.moved() < SIZE, "{what}");
        }
    }
}

/// What a pipe holds is not lost with the file: it goes out as it was, and counts. The end is found
/// after it.
#[test]
fn what_a_pipe_holds_survives_a_cut() {
    let kernel = sound().at_most(70_000).narrow_pipes(256 << 10);
    let mut bench = Bench::new(0, Length::Exact(SIZE), &[Mechanism::Splice]);
    bench.step(&kernel).expect("a first step");
    assert_eq!(bench.received.len(), 70_000);
    bench.file.set_len(0).expect("cut");
    let error = bench.run(&kernel).expect_err("bytes are owed");
    let promised = SIZE;
    assert_eq!(error.kind(), ErrorKind::SourceTooShort { promised });
    assert!(error.moved() > 140_000, "{} bytes", error.moved());
}

/// Cut in the middle of a page just before the kernel reads it, a mapping shows zeroes in the rest of
/// the page, and the kernel sends them where that is the last page it is asked for. They are not the
/// file's bytes, so the transfer fails, with or without a length. The guard: `after_send`.
#[test]
fn zeroes_of_a_page_cut_in_its_middle_are_never_the_files() {
    for length in [Length::Exact(SIZE), Length::UntilEof] {
        for (nth, new_size) in [(0, 30_001), (2, 90_019)] {
            let (result, received) = cut_before_a_send(length, nth, new_size);
            let error = result.expect_err("zeroes passed off as the file's");
            let expected = match length {
                Length::Exact(promised) => ErrorKind::SourceTooShort { promised },
                Length::UntilEof => ErrorKind::Source,
            };
            assert_eq!(error.kind(), expected, "cut to {new_size}: {error}");
            assert_eq!(error.moved(), received.len() as u64);
            assert!(received.len() as u64 > new_size, "no zeroes were sent");
        }
    }
}

/// Where the kernel stops at a missing page, it may not have sent what is left before that either: the
/// transfer goes on to the new end. The guard: `EFAULT` is no end by itself.
#[test]
fn a_file_cut_before_a_missing_page_is_sent_to_its_new_end() {
    for (nth, new_size) in [(0, 1), (0, 4097), (2, 61_000)] {
        let (result, received) = cut_before_a_send(Length::UntilEof, nth, new_size);
        result.expect("sent to the end");
        assert!(received == content(new_size), "{} bytes", received.len());

        let (result, received) = cut_before_a_send(Length::Exact(SIZE), nth, new_size);
        let promised = SIZE;
        let kind = result.expect_err("bytes are owed").kind();
        assert_eq!(kind, ErrorKind::SourceTooShort { promised });
        assert!(received == content(new_size), "{} bytes", received.len());
    }
}

/// Sends by `mmap_write`, some pages a call; just before the `nth` call the file is cut.
fn cut_before_a_send(length: Length, nth: usize, new_size: u64) -> (Result<(), Error>, Vec<u8>) {
    let mut bench = Bench::new(0, length, &[Mechanism::MmapWrite, Mechanism::Copy]);
    let kernel = failing(Call::SendMapped, nth, Fault::Cuts(new_size), 30_007);
    let kernel = kernel.cutting(&bench.file);
    (bench.run_unchecked(&kernel), bench.received)
}

/// Cut at the end of a page, or to nothing, the missing page is `EFAULT` or a short count: the end of
/// the file, and not a byte that is not the file's.
#[test]
fn a_missing_page_is_the_end_of_the_file() {
    let page = rustix::param::page_size();
    for length in [Length::Exact(SIZE), Length::UntilEof] {
        for pages in [0, 2, 3] {
            let mut bench = Bench::new(0, length, &[Mechanism::MmapWrite, Mechanism::Copy]);
            let cut = Fault::Cuts((pages * page) as u64);
            let kernel = failing(Call::SendMapped, 2, cut, page).cutting(&bench.file);
            let result = bench.run(&kernel);
            assert_eq!(result.is_ok(), length == Length::UntilEof, "{result:?}");
            if let (Err(error), Length::Exact(promised)) = (result, length) {
                assert_eq!(error.kind(), ErrorKind::SourceTooShort { promised });
            }
            let sent = (pages.max(2) * page) as u64;
            assert_eq!(bench.by(Mechanism::MmapWrite), sent, "{pages} pages left");
            assert!(bench.transfer.report().fallbacks().is_empty());
        }
    }
}

/// An offset past the end of the file finds its end, also where offset and count together exceed what
/// the kernel takes for a file. The guards: `END_OF_FILES` in `Transfer::step_by` and in `Job::want`.
#[test]
fn offsets_past_the_end_find_the_end() {
    let largest = i64::MAX as u64;
    let past = [SIZE, SIZE + 1, 1 << 32, 1 << 40];
    let far = [largest - 1, largest, largest + 1, u64::MAX - 1, u64::MAX];
    for (mechanism, calls) in EACH {
        for offset in past.into_iter().chain(far) {
            let what = format!("{mechanism} from {offset}");
            let kernel = sound();
            let mut bench = Bench::new(offset, Length::UntilEof, &[mechanism, Mechanism::Copy]);
            bench.run(&kernel).expect(&what);
            assert_eq!(bench.transfer.report().bytes(), 0, "{what}");

            for promised in [1, 2, SIZE, u64::MAX] {
                let length = Length::Exact(promised);
                let mut bench = Bench::new(offset, length, &[mechanism, Mechanism::Copy]);
                let error = bench.run(&kernel).expect_err(&what);
                assert_eq!(
                    error.kind(),
                    ErrorKind::SourceTooShort { promised },
                    "{what}"
                );
            }
            for &call in calls {
                let within = |made: &kernel::Made| made.offset + made.count as u64 <= largest;
                assert!(kernel.made(call).iter().all(within), "{what}");
            }
        }
    }
}
