//! Checks the errno tables in the documentation of the file mechanisms. For each row, one call
//! fails with the errno: the first call of its kind, the second, or one in the middle of the
//! transfer.

use rustix::io::Errno;

use super::faulty_kernel::Call::{
    Map, Pipe, ReadAt, ResizePipe, Send, SendMapped, Sendfile, Size, SpliceIn, SpliceOut,
};
use super::*;
use crate::error::ErrorKind;

/// The effect that a fault must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// The mechanism moves every byte, and reports nothing.
    NoEffect,
    /// The step is blocked on this side. After a retry, the mechanism moves every byte.
    Blocked(Side),
    /// The transfer falls back, and `copy` moves the rest.
    FallsBack,
    /// The transfer fails.
    Fails(ErrorKind),
    /// The transfer ends early, as at the end of the file: with an error if more bytes were
    /// promised, and successfully otherwise.
    Ends,
}

use Expected::{Blocked, Ends, Fails, FallsBack, NoEffect};

const SOURCE_FAILS: Expected = Fails(ErrorKind::Source);
const SINK_FAILS: Expected = Fails(ErrorKind::Sink);
const PEER_CLOSED: Expected = Fails(ErrorKind::PeerClosed);
const NOT_CONNECTED: Expected = Fails(ErrorKind::NotConnected);
const NOT_A_SOCKET: Expected = Fails(ErrorKind::NotAStreamSocket);

/// A call, its errno, and the expected result.
type ErrnoRow = (Call, Errno, Expected);

const SENDFILE: &[ErrnoRow] = &[
    (Sendfile, Errno::AGAIN, Blocked(Side::Sink)),
    (Sendfile, Errno::INTR, NoEffect),
    (Sendfile, Errno::INVAL, FallsBack),
    (Sendfile, Errno::OPNOTSUPP, FallsBack),
    (Sendfile, Errno::SPIPE, FallsBack),
    (Sendfile, Errno::NOSYS, FallsBack),
    (Sendfile, Errno::PERM, FallsBack),
    (Sendfile, Errno::OVERFLOW, FallsBack),
    (Sendfile, Errno::NOMEM, FallsBack),
    (Sendfile, Errno::IO, SOURCE_FAILS),
    (Sendfile, Errno::BADF, SOURCE_FAILS),
    (Sendfile, Errno::ISDIR, SOURCE_FAILS),
    (Sendfile, Errno::STALE, SOURCE_FAILS),
    (Sendfile, Errno::PIPE, PEER_CLOSED),
    (Sendfile, Errno::CONNRESET, PEER_CLOSED),
    (Sendfile, Errno::CONNABORTED, PEER_CLOSED),
    (Sendfile, Errno::NOTCONN, NOT_CONNECTED),
    (Sendfile, Errno::NOTSOCK, NOT_A_SOCKET),
    (Sendfile, Errno::NOBUFS, SINK_FAILS),
    (Sendfile, Errno::TIMEDOUT, SINK_FAILS),
];

const SPLICE: &[ErrnoRow] = &[
    (SpliceIn, Errno::AGAIN, Blocked(Side::Source)),
    (SpliceIn, Errno::INTR, NoEffect),
    (SpliceIn, Errno::INVAL, FallsBack),
    (SpliceIn, Errno::OPNOTSUPP, FallsBack),
    (SpliceIn, Errno::SPIPE, FallsBack),
    (SpliceIn, Errno::NOSYS, FallsBack),
    (SpliceIn, Errno::PERM, FallsBack),
    (SpliceIn, Errno::OVERFLOW, FallsBack),
    (SpliceIn, Errno::NOMEM, FallsBack),
    (SpliceIn, Errno::IO, SOURCE_FAILS),
    (SpliceIn, Errno::BADF, SOURCE_FAILS),
    (SpliceOut, Errno::AGAIN, Blocked(Side::Sink)),
    (SpliceOut, Errno::INTR, NoEffect),
    (SpliceOut, Errno::INVAL, FallsBack),
    (SpliceOut, Errno::OPNOTSUPP, FallsBack),
    (SpliceOut, Errno::SPIPE, FallsBack),
    (SpliceOut, Errno::NOSYS, FallsBack),
    (SpliceOut, Errno::PERM, FallsBack),
    (SpliceOut, Errno::OVERFLOW, FallsBack),
    (SpliceOut, Errno::NOMEM, FallsBack),
    (SpliceOut, Errno::PIPE, PEER_CLOSED),
    (SpliceOut, Errno::CONNRESET, PEER_CLOSED),
    (SpliceOut, Errno::CONNABORTED, PEER_CLOSED),
    (SpliceOut, Errno::NOTCONN, NOT_CONNECTED),
    (SpliceOut, Errno::NOBUFS, SINK_FAILS),
    (SpliceOut, Errno::TIMEDOUT, SINK_FAILS),
];

const MMAP_WRITE: &[ErrnoRow] = &[
    (SendMapped, Errno::AGAIN, Blocked(Side::Sink)),
    (SendMapped, Errno::INTR, NoEffect),
    (SendMapped, Errno::FAULT, FallsBack),
    (SendMapped, Errno::PIPE, PEER_CLOSED),
    (SendMapped, Errno::CONNRESET, PEER_CLOSED),
    (SendMapped, Errno::CONNABORTED, PEER_CLOSED),
    (SendMapped, Errno::NOTCONN, NOT_CONNECTED),
    (SendMapped, Errno::NOTSOCK, NOT_A_SOCKET),
    (SendMapped, Errno::NOBUFS, SINK_FAILS),
    (SendMapped, Errno::NOMEM, SINK_FAILS),
];

const COPY: &[ErrnoRow] = &[
    (ReadAt, Errno::AGAIN, Blocked(Side::Source)),
    (ReadAt, Errno::INTR, NoEffect),
    (ReadAt, Errno::IO, SOURCE_FAILS),
    (ReadAt, Errno::ISDIR, SOURCE_FAILS),
    (ReadAt, Errno::SPIPE, Fails(ErrorKind::SourceNotSeekable)),
    (Send, Errno::AGAIN, Blocked(Side::Sink)),
    (Send, Errno::INTR, NoEffect),
    (Send, Errno::PIPE, PEER_CLOSED),
    (Send, Errno::CONNRESET, PEER_CLOSED),
    (Send, Errno::CONNABORTED, PEER_CLOSED),
    (Send, Errno::NOTCONN, NOT_CONNECTED),
    (Send, Errno::NOTSOCK, NOT_A_SOCKET),
    (Send, Errno::NOBUFS, SINK_FAILS),
    (Send, Errno::NOMEM, SINK_FAILS),
];

const START_OFFSET: u64 = 3;
const EXPECTED_BYTES: u64 = FILE_BYTES - START_OFFSET;

/// The most bytes that one call moves: small enough that a transfer reaches every call in
/// [`CALL_INDEXES`].
const MAX_BYTES_PER_CALL: usize = 9_001;

/// The indexes of the calls that fail: the first call, the second, and one in the middle.
const CALL_INDEXES: [usize; 3] = [0, 1, 17];

/// Injects this fault into the `nth` call of a kind, sends with `mechanism` and with `copy` as its
/// fallback, and checks that the effect is the expected one.
fn check_fault(mechanism: Mechanism, call: Call, nth: usize, fault: Fault, expected: Expected) {
    for length in [Length::Exact(EXPECTED_BYTES), Length::UntilEof] {
        let case = format!("{mechanism}: {call:?} no. {nth} {fault:?} of {length:?}");
        let kernel = failing_once(call, nth, fault, MAX_BYTES_PER_CALL);
        let mut harness = TransferHarness::new(START_OFFSET, length, &[mechanism, Mechanism::Copy]);
        let result = harness.run(&kernel);
        assert!(
            kernel.calls(call).len() > nth,
            "{case}: the call that should fail was not made"
        );

        let received = harness.received.len() as u64;
        match (expected, result) {
            (NoEffect, Ok(())) => {
                assert_eq!(harness.bytes_by(mechanism), EXPECTED_BYTES, "{case}");
                assert!(harness.blocked.is_empty(), "{case}");
            }
            (Blocked(side), Ok(())) => {
                assert_eq!(harness.bytes_by(mechanism), EXPECTED_BYTES, "{case}");
                assert_eq!(harness.blocked, [side], "{case}");
            }
            (FallsBack, Ok(())) => {
                let [fallback] = harness.transfer.report().fallbacks() else {
                    panic!("{case}: {}", harness.transfer.report());
                };
                assert_eq!(
                    (fallback.from, fallback.to),
                    (mechanism, Mechanism::Copy),
                    "{case}"
                );
                let Fault::Fails(errno) = fault else {
                    panic!("{case}: the fault has no errno");
                };
                assert_eq!(fallback.errno, crate::Errno::of(errno), "{case}");
                assert_eq!(fallback.at, harness.bytes_by(mechanism), "{case}");
                assert_eq!(
                    fallback.at + harness.bytes_by(Mechanism::Copy),
                    EXPECTED_BYTES,
                    "{case}"
                );
                assert!(nth > 0 || fallback.at == 0, "{case}: not at the start");
                assert!(
                    nth < CALL_INDEXES[2] || fallback.at > 0,
                    "{case}: not in the middle"
                );
                let refusal = harness.transfer.support().refusal(mechanism);
                assert_eq!(refusal, Some(fallback.errno), "{case}");
            }
            (Ends, Ok(())) => {
                assert_eq!(length, Length::UntilEof, "{case}");
                assert!(received < EXPECTED_BYTES, "{case}");
            }
            (Ends, Err(error)) => {
                let promised = EXPECTED_BYTES;
                assert_eq!(error.kind(), ErrorKind::SourceTooShort { promised });
                assert_eq!(length, Length::Exact(EXPECTED_BYTES), "{case}");
                assert_eq!(error.moved(), received, "{case}");
            }
            (Fails(kind), Err(error)) => {
                assert_eq!(error.kind(), kind, "{case}");
                assert_eq!(error.moved(), received, "{case}");
                assert_eq!(error.report(), harness.transfer.report(), "{case}");
                check_origin(&error, mechanism, call, fault);
            }
            (expected, result) => panic!("{case}: {result:?} instead of {expected:?}"),
        }
        if !matches!(expected, Fails(_) | Ends) {
            assert_eq!(received, EXPECTED_BYTES, "{case}");
            let fallbacks = harness.transfer.report().fallbacks();
            assert_eq!(
                fallbacks.len(),
                usize::from(expected == FallsBack),
                "{case}"
            );
        }
    }
}

/// Checks that the error names the mechanism and the system call and has the errno, and that the
/// errno is described in the text of the error's source but not in its own text.
fn check_origin(error: &Error, mechanism: Mechanism, call: Call, fault: Fault) {
    let errno = match fault {
        Fault::Fails(errno) => errno,
        // This fault has no errno. If a socket accepts 0 bytes, the mechanisms report `EIO`.
        _ => Errno::IO,
    };
    let case = format!("{mechanism}: {call:?} {errno:?}: {error}");
    assert_eq!(error.mechanism(), Some(mechanism), "{case}");
    assert_eq!(error.call(), Some(call.system_call()), "{case}");
    assert_eq!(error.raw_os_error(), Some(errno.raw_os_error()), "{case}");
    let source = std::error::Error::source(error).expect("the error of the call");
    assert_eq!(source.to_string(), std::io::Error::from(errno).to_string());
    assert!(!error.to_string().contains("os error"), "{case}");
}

fn check_table(mechanism: Mechanism, rows: &[ErrnoRow]) {
    for &(call, errno, expected) in rows {
        for nth in CALL_INDEXES {
            check_fault(mechanism, call, nth, Fault::Fails(errno), expected);
        }
    }
}

#[test]
fn every_errno_of_sendfile() {
    check_table(Mechanism::Sendfile, SENDFILE);
}

/// A step fills the pipe with several calls. If a call fails after the first one, the pipe already
/// holds bytes, and these are sent first, whatever the errno. If the cause persists, the first call
/// of the next step fails.
#[test]
fn every_errno_of_splice() {
    for &(call, errno, expected) in SPLICE {
        for nth in CALL_INDEXES {
            let pipe_holds_bytes = call == SpliceIn && nth > 0;
            let expected = if pipe_holds_bytes { NoEffect } else { expected };
            check_fault(Mechanism::Splice, call, nth, Fault::Fails(errno), expected);
        }
    }
}

/// If calls start to fail while the pipe holds bytes, and continue to fail, these bytes still
/// arrive. After that, the outcome is the one in the table.
#[test]
fn every_persistent_errno_of_splice_into_a_pipe_that_holds_bytes() {
    for &(call, errno, expected) in SPLICE {
        if call != SpliceIn || errno == Errno::INTR {
            continue;
        }
        let case = format!("{errno:?} in every call after 3");
        let rule = FaultRule::during(SpliceIn, 3..usize::MAX, Fault::Fails(errno));
        let kernel = FaultyKernel::new(vec![rule]).max_bytes_per_call(MAX_BYTES_PER_CALL);
        let plan = [Mechanism::Splice, Mechanism::Copy];
        let mut harness = TransferHarness::new(START_OFFSET, Length::Exact(EXPECTED_BYTES), &plan);
        let result = loop {
            match harness.step(&kernel) {
                Ok(Progress::Blocked(Side::Source)) => break None,
                Ok(Progress::Done) => break Some(Ok(())),
                Ok(_) => {}
                Err(error) => break Some(Err(error)),
            }
        };
        assert_eq!(
            harness.bytes_by(Mechanism::Splice),
            3 * MAX_BYTES_PER_CALL as u64,
            "{case}"
        );
        match (expected, result) {
            (Blocked(Side::Source), None) => {}
            (FallsBack, Some(Ok(()))) => {
                assert_eq!(harness.received.len() as u64, EXPECTED_BYTES, "{case}")
            }
            (Fails(kind), Some(Err(error))) => assert_eq!(error.kind(), kind, "{case}"),
            (expected, result) => panic!("{case}: {result:?} instead of {expected:?}"),
        }
    }
}

/// If the pipe cannot be created, the transfer falls back to `copy`. If the pipe cannot be resized,
/// the transfer continues with the capacity that the pipe has.
#[test]
fn every_errno_of_creating_and_resizing_the_pipe() {
    for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM] {
        check_fault(Mechanism::Splice, Pipe, 0, Fault::Fails(errno), FallsBack);
    }
    for errno in [Errno::PERM, Errno::BUSY, Errno::NOMEM] {
        check_fault(
            Mechanism::Splice,
            ResizePipe,
            0,
            Fault::Fails(errno),
            NoEffect,
        );
    }
}

#[test]
fn every_errno_of_mmap_write() {
    check_table(Mechanism::MmapWrite, MMAP_WRITE);
    for errno in [Errno::NODEV, Errno::NOMEM, Errno::ACCESS, Errno::MFILE] {
        check_fault(Mechanism::MmapWrite, Map, 0, Fault::Fails(errno), FallsBack);
    }
}

/// `mmap_write` checks the size of the file before and after each send. If the first check fails,
/// the transfer falls back to `copy`, because reading may still work. If the second one fails, the
/// transfer fails, because it is unknown whether the bytes that were sent belong to the file.
#[test]
fn every_errno_of_the_size_check() {
    for errno in [Errno::IO, Errno::STALE] {
        for nth in [0, 2, 34] {
            check_fault(
                Mechanism::MmapWrite,
                Size,
                nth,
                Fault::Fails(errno),
                FallsBack,
            );
            check_fault(
                Mechanism::MmapWrite,
                Size,
                nth + 1,
                Fault::Fails(errno),
                SOURCE_FAILS,
            );
        }
    }
}

/// A size of 0 does not mean that the file is empty, because files of procfs have that size. The
/// transfer falls back to `copy`, which reads until the end.
#[test]
fn a_size_of_0_is_not_taken_for_the_end() {
    let plan = [Mechanism::MmapWrite, Mechanism::Copy];
    let size_is_0 = FaultRule::during(Size, 0..usize::MAX, Fault::ReturnsZero);
    let mut harness = TransferHarness::new(START_OFFSET, Length::UntilEof, &plan);
    harness
        .run(&FaultyKernel::new(vec![size_is_0.clone()]))
        .expect("copy takes over");
    assert_eq!(harness.bytes_by(Mechanism::Copy), EXPECTED_BYTES);
    assert_eq!(
        harness.transfer.report().fallbacks()[0].errno,
        crate::Errno::NODEV
    );

    for (errno, kind) in [
        (Errno::IO, ErrorKind::Source),
        (Errno::SPIPE, ErrorKind::SourceNotSeekable),
    ] {
        let unreadable = FaultRule::once(ReadAt, 0, Fault::Fails(errno));
        let mut harness = TransferHarness::new(START_OFFSET, Length::UntilEof, &plan);
        let kernel = FaultyKernel::new(vec![size_is_0.clone(), unreadable]);
        assert_eq!(harness.run(&kernel).expect_err("unreadable").kind(), kind);
    }
    let not_ready = FaultRule::once(ReadAt, 0, Fault::Fails(Errno::AGAIN));
    let mut harness = TransferHarness::new(START_OFFSET, Length::UntilEof, &plan);
    let kernel = FaultyKernel::new(vec![size_is_0, not_ready]);
    harness.run(&kernel).expect("copy takes over");
    assert_eq!(harness.blocked, [Side::Source]);
    assert_eq!(harness.bytes_by(Mechanism::Copy), EXPECTED_BYTES);
}

#[test]
fn every_errno_of_copy() {
    check_table(Mechanism::Copy, COPY);
}

/// If a call that reads the file returns 0, the file has ended. If more bytes were promised, that
/// must be an error. Fails without `Transfer::ended`.
#[test]
fn zero_bytes_from_the_source_are_its_end() {
    for nth in CALL_INDEXES {
        check_fault(Mechanism::Sendfile, Sendfile, nth, Fault::ReturnsZero, Ends);
        check_fault(Mechanism::Copy, ReadAt, nth, Fault::ReturnsZero, Ends);
    }
    check_fault(Mechanism::Splice, SpliceIn, 0, Fault::ReturnsZero, Ends);
    check_fault(Mechanism::Splice, SpliceIn, 3, Fault::ReturnsZero, NoEffect);
    let during = FaultRule::during(SpliceIn, 3..usize::MAX, Fault::ReturnsZero);
    let kernel = FaultyKernel::new(vec![during]).max_bytes_per_call(MAX_BYTES_PER_CALL);
    let mut harness = TransferHarness::new(
        START_OFFSET,
        Length::Exact(EXPECTED_BYTES),
        &[Mechanism::Splice],
    );
    let error = harness.run(&kernel).expect_err("more bytes were promised");
    assert_eq!(error.moved(), 3 * MAX_BYTES_PER_CALL as u64);
}

/// A stream socket never accepts 0 bytes of a non-empty send. If a socket does so nevertheless, the
/// transfer must fall back or fail instead of looping forever.
#[test]
fn zero_bytes_into_the_sink_end_the_mechanism() {
    let check_fallback = |mechanism, call| {
        for nth in CALL_INDEXES {
            let kernel = failing_once(call, nth, Fault::ReturnsZero, MAX_BYTES_PER_CALL);
            let mut harness = TransferHarness::new(
                START_OFFSET,
                Length::Exact(EXPECTED_BYTES),
                &[mechanism, Mechanism::Copy],
            );
            harness.run(&kernel).expect("copy takes over");
            assert_eq!(harness.received.len() as u64, EXPECTED_BYTES);
            assert_eq!(
                harness.transfer.report().fallbacks()[0].errno,
                crate::Errno::IO
            );
        }
    };
    check_fallback(Mechanism::Splice, SpliceOut);
    check_fallback(Mechanism::MmapWrite, SendMapped);
    for nth in CALL_INDEXES {
        check_fault(Mechanism::Copy, Send, nth, Fault::ReturnsZero, SINK_FAILS);
    }
}

/// If the last mechanism of a forced plan is unsupported, the error must say so, and must count the
/// bytes that were sent.
#[test]
fn an_unsupported_last_mechanism_is_an_error() {
    for (mechanism, call, errno) in [
        (Mechanism::Sendfile, Sendfile, Errno::OPNOTSUPP),
        (Mechanism::Splice, SpliceOut, Errno::OPNOTSUPP),
        (Mechanism::MmapWrite, SendMapped, Errno::FAULT),
    ] {
        let fault = Fault::Fails(errno);
        let kernel = failing_once(call, 2, fault, MAX_BYTES_PER_CALL);
        let mut harness =
            TransferHarness::new(START_OFFSET, Length::Exact(EXPECTED_BYTES), &[mechanism]);
        let error = harness.run(&kernel).expect_err("nothing is left to try");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(error.moved(), 2 * MAX_BYTES_PER_CALL as u64);
        check_origin(&error, mechanism, call, fault);
    }
}

/// A mechanism makes other calls before the one that moves bytes. If such a call is refused, the
/// error must name it.
#[test]
fn an_error_names_the_call_that_prepares_a_mechanism() {
    for (mechanism, call) in [
        (Mechanism::Splice, Pipe),
        (Mechanism::MmapWrite, Size),
        (Mechanism::MmapWrite, Map),
    ] {
        let fault = Fault::Fails(Errno::NOMEM);
        let kernel = failing_once(call, 0, fault, MAX_BYTES_PER_CALL);
        let mut harness = TransferHarness::new(START_OFFSET, Length::UntilEof, &[mechanism]);
        let error = harness.run(&kernel).expect_err("nothing is left to try");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        check_origin(&error, mechanism, call, fault);
    }
}

/// The error of a file that is too short names the call that found its end, and has no errno.
#[test]
fn an_error_names_the_call_that_found_the_end_of_the_file() {
    for (mechanism, call) in [
        (Mechanism::Sendfile, Sendfile),
        (Mechanism::Splice, SpliceIn),
        (Mechanism::MmapWrite, ReadAt),
        (Mechanism::Copy, ReadAt),
    ] {
        let promised = FILE_BYTES + 1;
        let mut harness = TransferHarness::new(0, Length::Exact(promised), &[mechanism]);
        let error = harness.run(&faultless()).expect_err("a byte is missing");
        assert_eq!(error.kind(), ErrorKind::SourceTooShort { promised });
        assert_eq!(error.mechanism(), Some(mechanism));
        assert_eq!(error.call(), Some(call.system_call()), "{mechanism}");
        assert_eq!(error.raw_os_error(), None);
    }
}

/// If the kernel or a seccomp filter refuses a mechanism to the whole process,
/// [`Support::of_process`](crate::Support::of_process) must report that, so that later plans leave
/// the mechanism out.
#[test]
fn a_refusal_that_concerns_the_process_is_remembered() {
    let kernel = failing_once(Sendfile, 0, Fault::Fails(Errno::NOSYS), MAX_BYTES_PER_CALL);
    let mut harness =
        TransferHarness::new(0, Length::UntilEof, &[Mechanism::Sendfile, Mechanism::Copy]);
    harness.run(&kernel).expect("copy takes over");
    let known = crate::Support::of_process();
    // Accept `EPERM` as well, because another test of this binary may have recorded it.
    assert!(matches!(
        known.refusal(Mechanism::Sendfile),
        Some(crate::Errno::NOSYS | crate::Errno::PERM)
    ));
}
