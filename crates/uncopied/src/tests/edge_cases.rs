//! Tests for bugs that other programs have shipped, at the edges of sizes, offsets and buffers.
//! Where such a bug would not change the bytes that arrive, the test checks the arguments of the
//! system calls instead.

use rustix::io::Errno;

use super::*;
use crate::error::ErrorKind;

/// Each mechanism, with the calls that move its bytes. The last of these calls writes to the
/// socket.
const MECHANISM_CALLS: [(Mechanism, &[Call]); 4] = [
    (Mechanism::Sendfile, &[Call::Sendfile]),
    (Mechanism::Splice, &[Call::SpliceIn, Call::SpliceOut]),
    (Mechanism::MmapWrite, &[Call::SendMapped]),
    (Mechanism::Copy, &[Call::ReadAt, Call::Send]),
];

/// No call asks for more bytes than a step may move, however long the transfer is. So no call
/// reaches 0x7ffff000 bytes, the most that the kernel moves in one call, or `usize::MAX`, which
/// `splice(2)` rejects. Fails if `FileStep::want` does not limit the count.
#[test]
fn no_call_asks_for_more_than_a_step_may_move() {
    let lengths = [
        Length::UntilEof,
        Length::Exact(u64::MAX),
        Length::Exact(u64::MAX - 3),
        Length::Exact(0x7fff_f000),
        Length::Exact(usize::MAX as u64),
    ];
    for (mechanism, calls) in MECHANISM_CALLS {
        for length in lengths {
            let kernel = faultless();
            let mut harness = TransferHarness::new(3, length, &[mechanism]);
            let result = harness.run(&kernel);
            assert_eq!(result.is_ok(), length == Length::UntilEof, "{mechanism}");
            assert_eq!(
                harness.bytes_by(mechanism),
                FILE_BYTES - 3,
                "{mechanism} {length:?}"
            );
            assert!(harness.transfer.report().fallbacks().is_empty());
            for &call in calls {
                let largest = kernel.calls(call).iter().map(|made| made.count).max();
                let largest = largest.expect("the call is made");
                assert!(
                    (1..=crate::mechanism::MAX_STEP_BYTES).contains(&largest),
                    "{call:?}: {largest}"
                );
            }
        }
    }
}

/// If each call moves only one byte, at odd and even offsets, no byte is lost or duplicated.
#[test]
fn calls_that_move_one_byte_lose_nothing() {
    for (mechanism, _) in MECHANISM_CALLS {
        let kernel = faultless().max_bytes_per_call(1);
        let mut harness =
            TransferHarness::with_file(pattern(2_049), 3, Length::Exact(2_046), &[mechanism]);
        harness.run(&kernel).expect("sent");
        assert_eq!(harness.received.len(), 2_046, "{mechanism}");
        assert_eq!(harness.bytes_by(mechanism), 2_046);
    }
}

/// If calls of one kind are interrupted fifty times in a row before they move a byte, no byte is
/// lost. Fails without `retry_on_intr`.
#[test]
fn repeated_signals_lose_nothing() {
    for (mechanism, calls) in MECHANISM_CALLS {
        for &call in calls {
            for first in [0, 2] {
                let signals = FaultRule::during(call, first..first + 50, Fault::Fails(Errno::INTR));
                let kernel = FaultyKernel::new(vec![signals]).max_bytes_per_call(40_000);
                let mut harness = TransferHarness::new(3, Length::UntilEof, &[mechanism]);
                harness.run(&kernel).expect("sent");
                assert_eq!(
                    harness.bytes_by(mechanism),
                    FILE_BYTES - 3,
                    "{mechanism} {call:?}"
                );
                assert!(kernel.calls(call).len() > 50);
            }
        }
    }
}

/// A pipe with one slot is full after one page. If the next call that fills the pipe fails with
/// `EAGAIN`, that does not mean that the file or the socket is not ready. The pipe must be drained
/// first, and the transfer must not report that it is blocked on the source. Fails without the
/// match arm in `splice::fill` for errors while the pipe holds bytes.
#[test]
fn a_pipe_without_free_slots_is_drained_first() {
    let page = rustix::param::page_size();
    for length in [Length::Exact(FILE_BYTES - 3), Length::UntilEof] {
        let kernel = faultless().pipe_capacity(page);
        let mut harness = TransferHarness::new(3, length, &[Mechanism::Splice]);
        harness.run(&kernel).expect("sent");
        assert_eq!(harness.bytes_by(Mechanism::Splice), FILE_BYTES - 3);
        assert!(
            !harness.blocked.contains(&Side::Source),
            "{:?}",
            harness.blocked
        );
        let out = kernel.calls(Call::SpliceOut);
        assert!(
            out.len() as u64 >= FILE_BYTES / page as u64,
            "the pipe had more than one slot"
        );
        assert!(out.iter().all(|made| made.count <= page));
    }
}

/// `SPLICE_F_MORE` delays the last bytes by up to 200 ms. So it must be set only if more bytes are
/// certain to follow, and never with the last bytes. Fails if `Splice::step` always sets `more`.
#[test]
fn splice_f_more_is_set_only_if_bytes_follow() {
    let kernel = faultless().pipe_capacity(64 << 10);
    let mut harness = TransferHarness::new(0, Length::Exact(FILE_BYTES), &[Mechanism::Splice]);
    harness.run(&kernel).expect("sent");
    let mut remaining = FILE_BYTES;
    for made in kernel.calls(Call::SpliceOut) {
        assert_eq!(
            made.more,
            remaining > made.count as u64,
            "with {remaining} remaining"
        );
        remaining -= made.count as u64;
    }
    assert_eq!(remaining, 0);

    let kernel = faultless().pipe_capacity(64 << 10);
    let mut harness = TransferHarness::new(0, Length::UntilEof, &[Mechanism::Splice]);
    harness.run(&kernel).expect("sent");
    let out = kernel.calls(Call::SpliceOut);
    assert!(
        out.iter().all(|made| !made.more),
        "no length was promised, so any bytes may be the last"
    );
}

/// `sendfile` must not be asked for more bytes than the file has, because kernels before 6.5 would
/// then delay the last bytes, as with `SPLICE_F_MORE`. Fails without `count` in `sendfile.rs`.
#[test]
fn sendfile_is_not_asked_for_more_than_the_file_has() {
    let kernel = faultless().max_bytes_per_call(70_001);
    let mut harness = TransferHarness::new(3, Length::UntilEof, &[Mechanism::Sendfile]);
    harness.run(&kernel).expect("sent");
    let calls = kernel.calls(Call::Sendfile);
    let (last, sending) = calls.split_last().expect("calls");
    assert_eq!(last.offset, FILE_BYTES, "the last call finds the end");
    for made in sending {
        assert_eq!(made.offset + made.count as u64, FILE_BYTES);
    }
}

/// A step that finds the socket full must return after one call instead of retrying, because
/// waiting is the driver's task.
#[test]
fn a_blocked_step_makes_one_call() {
    for (mechanism, calls) in MECHANISM_CALLS {
        let sending = calls[calls.len() - 1];
        let full = FaultRule::during(sending, 0..usize::MAX, Fault::Fails(Errno::AGAIN));
        let kernel = FaultyKernel::new(vec![full]);
        let mut harness = TransferHarness::new(3, Length::UntilEof, &[mechanism]);
        for tries in 1..=5 {
            let progress = harness.step(&kernel).expect("blocked");
            assert_eq!(progress, Progress::Blocked(Side::Sink), "{mechanism}");
            assert_eq!(kernel.calls(sending).len(), tries, "{mechanism}");
        }
    }
}

/// If a file grows while it is sent, a transfer of an exact length must not send more than that,
/// and a transfer up to the end of the file must send everything up to the new end. Fails if
/// `FileStep::want` ignores `remaining`.
#[test]
fn growth_of_the_file_never_exceeds_an_exact_length() {
    for (mechanism, _) in MECHANISM_CALLS {
        for (length, expected) in [
            (Length::Exact(FILE_BYTES), FILE_BYTES),
            (Length::UntilEof, FILE_BYTES + 50_000),
        ] {
            let kernel = faultless().max_bytes_per_call(70_000);
            let mut harness = TransferHarness::new(0, length, &[mechanism]);
            harness.file_bytes = pattern(FILE_BYTES + 50_000);
            harness.step(&kernel).expect("a first step");
            let grown = &harness.file_bytes[FILE_BYTES as usize..];
            harness.file.write_all_at(grown, FILE_BYTES).expect("grown");
            harness.run(&kernel).expect("sent");
            assert_eq!(harness.received.len() as u64, expected, "{mechanism}");
        }
    }
}

/// If a file shrinks while it is sent, the error must say how many bytes were sent. Fails without
/// `Transfer::ended`, or without `after_send` in `mmap_write.rs`, which checks the size after each
/// send.
#[test]
fn a_file_that_shrinks_is_an_error_that_counts_the_bytes() {
    let page = rustix::param::page_size() as u64;
    for (mechanism, _) in MECHANISM_CALLS {
        for new_size in [0, 100_000 / page * page, 100_000, 60_000, 1] {
            let case = format!("{mechanism}, truncated to {new_size}");
            // Make the pipe hold fewer bytes than one call moves, so that it is empty after the
            // first step. Any bytes left in it would be sent despite the truncation.
            let kernel = faultless()
                .max_bytes_per_call(70_000)
                .pipe_capacity(64 << 10);
            let mut harness = TransferHarness::new(0, Length::Exact(FILE_BYTES), &[mechanism]);
            harness.step(&kernel).expect("a first step");
            harness.file.set_len(new_size).expect("truncated");
            let error = harness.run(&kernel).expect_err("more bytes were promised");
            let promised = FILE_BYTES;
            assert_eq!(
                error.kind(),
                ErrorKind::SourceTooShort { promised },
                "{case}"
            );
            assert_eq!(error.moved(), harness.received.len() as u64, "{case}");
            assert!(
                error.moved() >= 64 << 10 && error.moved() < FILE_BYTES,
                "{case}"
            );
        }
    }
}

/// Truncating the file does not change the bytes that are already in the pipe: they are sent and
/// counted before the transfer finds the end of the file.
#[test]
fn bytes_in_the_pipe_survive_a_truncation() {
    let kernel = faultless()
        .max_bytes_per_call(70_000)
        .pipe_capacity(256 << 10);
    let mut harness = TransferHarness::new(0, Length::Exact(FILE_BYTES), &[Mechanism::Splice]);
    harness.step(&kernel).expect("a first step");
    assert_eq!(harness.received.len(), 70_000);
    harness.file.set_len(0).expect("truncated");
    let error = harness.run(&kernel).expect_err("more bytes were promised");
    let promised = FILE_BYTES;
    assert_eq!(error.kind(), ErrorKind::SourceTooShort { promised });
    assert!(error.moved() > 140_000, "{} bytes", error.moved());
}

/// If the file is truncated in the middle of a page just before the kernel reads that page, the
/// rest of the page is zero in the mapping. If that page is the last one that `send(2)` was asked
/// to send, the kernel sends the zeros. They are not bytes of the file, so the transfer must fail,
/// with or without an exact length. Fails without `after_send` in `mmap_write.rs`.
#[test]
fn zeros_past_the_end_of_a_truncated_file_are_an_error() {
    for length in [Length::Exact(FILE_BYTES), Length::UntilEof] {
        for (nth, new_size) in [(0, 30_001), (2, 90_019)] {
            let (result, received) = truncate_before_send(length, nth, new_size);
            let error = result.expect_err("zeros were counted as bytes of the file");
            let expected = match length {
                Length::Exact(promised) => ErrorKind::SourceTooShort { promised },
                Length::UntilEof => ErrorKind::Source,
            };
            assert_eq!(error.kind(), expected, "truncated to {new_size}: {error}");
            assert_eq!(error.moved(), received.len() as u64);
            assert!(received.len() as u64 > new_size, "no zeros were sent");
        }
    }
}

/// When the kernel stops at a missing page, it may not have sent all bytes before that page. The
/// transfer must continue to the new end of the file. Fails if `mmap_write` takes `EFAULT` for the
/// end of the file.
#[test]
fn a_file_truncated_before_a_missing_page_is_sent_to_its_new_end() {
    for (nth, new_size) in [(0, 1), (0, 4097), (2, 61_000)] {
        let (result, received) = truncate_before_send(Length::UntilEof, nth, new_size);
        result.expect("sent to the end");
        assert!(received == pattern(new_size), "{} bytes", received.len());

        let (result, received) = truncate_before_send(Length::Exact(FILE_BYTES), nth, new_size);
        let promised = FILE_BYTES;
        let kind = result.expect_err("more bytes were promised").kind();
        assert_eq!(kind, ErrorKind::SourceTooShort { promised });
        assert!(received == pattern(new_size), "{} bytes", received.len());
    }
}

/// Sends with `mmap_write`, a few pages per call, and truncates the file just before the `nth`
/// call. Returns the result of the transfer, and the bytes that were received.
fn truncate_before_send(length: Length, nth: usize, new_size: u64) -> (Result<(), Error>, Vec<u8>) {
    let mut harness = TransferHarness::new(0, length, &[Mechanism::MmapWrite, Mechanism::Copy]);
    let kernel = failing_once(
        Call::SendMapped,
        nth,
        Fault::TruncatesFile(new_size),
        30_007,
    );
    let kernel = kernel.truncating(&harness.file);
    (harness.run_unchecked(&kernel), harness.received)
}

/// If the file is truncated at a page boundary, or to nothing, the kernel reports the missing page
/// with `EFAULT` or a short count. The transfer must then determine the new end of the file, and
/// must send only bytes of the file.
#[test]
fn a_missing_page_is_the_end_of_the_file() {
    let page = rustix::param::page_size();
    for length in [Length::Exact(FILE_BYTES), Length::UntilEof] {
        for pages in [0, 2, 3] {
            let mut harness =
                TransferHarness::new(0, length, &[Mechanism::MmapWrite, Mechanism::Copy]);
            let truncation = Fault::TruncatesFile((pages * page) as u64);
            let kernel = failing_once(Call::SendMapped, 2, truncation, page);
            let kernel = kernel.truncating(&harness.file);
            let result = harness.run(&kernel);
            assert_eq!(result.is_ok(), length == Length::UntilEof, "{result:?}");
            if let (Err(error), Length::Exact(promised)) = (result, length) {
                assert_eq!(error.kind(), ErrorKind::SourceTooShort { promised });
            }
            let sent = (pages.max(2) * page) as u64;
            assert_eq!(
                harness.bytes_by(Mechanism::MmapWrite),
                sent,
                "{pages} pages left"
            );
            assert!(harness.transfer.report().fallbacks().is_empty());
        }
    }
}

/// A transfer from an offset past the end of the file must move nothing, even if the sum of offset
/// and count exceeds the largest offset that the kernel accepts. Fails if `Transfer::step_with` or
/// `FileStep::want` ignores `MAX_FILE_OFFSET`.
#[test]
fn a_transfer_from_past_the_end_moves_nothing() {
    let largest = i64::MAX as u64;
    let past = [FILE_BYTES, FILE_BYTES + 1, 1 << 32, 1 << 40];
    let far = [largest - 1, largest, largest + 1, u64::MAX - 1, u64::MAX];
    for (mechanism, calls) in MECHANISM_CALLS {
        for offset in past.into_iter().chain(far) {
            let case = format!("{mechanism} from {offset}");
            let kernel = faultless();
            let mut harness =
                TransferHarness::new(offset, Length::UntilEof, &[mechanism, Mechanism::Copy]);
            harness.run(&kernel).expect(&case);
            assert_eq!(harness.transfer.report().bytes(), 0, "{case}");

            for promised in [1, 2, FILE_BYTES, u64::MAX] {
                let length = Length::Exact(promised);
                let mut harness =
                    TransferHarness::new(offset, length, &[mechanism, Mechanism::Copy]);
                let error = harness.run(&kernel).expect_err(&case);
                assert_eq!(
                    error.kind(),
                    ErrorKind::SourceTooShort { promised },
                    "{case}"
                );
            }
            for &call in calls {
                let within =
                    |made: &faulty_kernel::CallRecord| made.offset + made.count as u64 <= largest;
                assert!(kernel.calls(call).iter().all(within), "{case}");
            }
        }
    }
}
