//! mechanism × call × errno × place, against the tables in the mechanisms' documentation.

use rustix::io::Errno;

use super::kernel::Call::{
    Map, Pipe, ReadAt, ResizePipe, Send, SendMapped, Sendfile, Size, SpliceIn, SpliceOut,
};
use super::*;
use crate::error::ErrorKind;

/// What must come of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ExpectedEnd {
    /// Nobody notices: every byte goes by the mechanism, with no word of it.
    Unnoticed,
    /// The step says that this side is not ready; tried again, every byte goes by the mechanism.
    Blocked(Side),
    /// The rest goes by `copy`; without it in the plan the transfer is not supported.
    FallsBack,
    /// The transfer fails.
    Fails(ErrorKind),
    /// The file has ended: an error where bytes are owed, success where none are.
    Ends,
}

use ExpectedEnd::{Blocked, Ends, Fails, FallsBack, Unnoticed};

const AT_SOURCE: ExpectedEnd = Fails(ErrorKind::Source);
const AT_SINK: ExpectedEnd = Fails(ErrorKind::Sink);
const CLOSED: ExpectedEnd = Fails(ErrorKind::PeerClosed);
const NO_SOCKET: ExpectedEnd = Fails(ErrorKind::NotAStreamSocket);

/// The call, its errno, what comes of it.
type Arm = (Call, Errno, ExpectedEnd);

const SENDFILE: &[Arm] = &[
    (Sendfile, Errno::AGAIN, Blocked(Side::Sink)),
    (Sendfile, Errno::INTR, Unnoticed),
    (Sendfile, Errno::INVAL, FallsBack),
    (Sendfile, Errno::OPNOTSUPP, FallsBack),
    (Sendfile, Errno::SPIPE, FallsBack),
    (Sendfile, Errno::NOSYS, FallsBack),
    (Sendfile, Errno::PERM, FallsBack),
    (Sendfile, Errno::OVERFLOW, FallsBack),
    (Sendfile, Errno::NOMEM, FallsBack),
    (Sendfile, Errno::IO, AT_SOURCE),
    (Sendfile, Errno::BADF, AT_SOURCE),
    (Sendfile, Errno::ISDIR, AT_SOURCE),
    (Sendfile, Errno::STALE, AT_SOURCE),
    (Sendfile, Errno::PIPE, CLOSED),
    (Sendfile, Errno::CONNRESET, CLOSED),
    (Sendfile, Errno::CONNABORTED, CLOSED),
    (Sendfile, Errno::NOTCONN, CLOSED),
    (Sendfile, Errno::NOTSOCK, NO_SOCKET),
    (Sendfile, Errno::NOBUFS, AT_SINK),
    (Sendfile, Errno::TIMEDOUT, AT_SINK),
];

const SPLICE: &[Arm] = &[
    (SpliceIn, Errno::AGAIN, Blocked(Side::Source)),
    (SpliceIn, Errno::INTR, Unnoticed),
    (SpliceIn, Errno::INVAL, FallsBack),
    (SpliceIn, Errno::OPNOTSUPP, FallsBack),
    (SpliceIn, Errno::SPIPE, FallsBack),
    (SpliceIn, Errno::NOSYS, FallsBack),
    (SpliceIn, Errno::PERM, FallsBack),
    (SpliceIn, Errno::OVERFLOW, FallsBack),
    (SpliceIn, Errno::NOMEM, FallsBack),
    (SpliceIn, Errno::IO, AT_SOURCE),
    (SpliceIn, Errno::BADF, AT_SOURCE),
    (SpliceOut, Errno::AGAIN, Blocked(Side::Sink)),
    (SpliceOut, Errno::INTR, Unnoticed),
    (SpliceOut, Errno::INVAL, FallsBack),
    (SpliceOut, Errno::OPNOTSUPP, FallsBack),
    (SpliceOut, Errno::SPIPE, FallsBack),
    (SpliceOut, Errno::NOSYS, FallsBack),
    (SpliceOut, Errno::PERM, FallsBack),
    (SpliceOut, Errno::OVERFLOW, FallsBack),
    (SpliceOut, Errno::NOMEM, FallsBack),
    (SpliceOut, Errno::PIPE, CLOSED),
    (SpliceOut, Errno::CONNRESET, CLOSED),
    (SpliceOut, Errno::CONNABORTED, CLOSED),
    (SpliceOut, Errno::NOTCONN, CLOSED),
    (SpliceOut, Errno::NOBUFS, AT_SINK),
    (SpliceOut, Errno::TIMEDOUT, AT_SINK),
];

const MMAP_WRITE: &[Arm] = &[
    (SendMapped, Errno::AGAIN, Blocked(Side::Sink)),
    (SendMapped, Errno::INTR, Unnoticed),
    (SendMapped, Errno::FAULT, FallsBack),
    (SendMapped, Errno::PIPE, CLOSED),
    (SendMapped, Errno::CONNRESET, CLOSED),
    (SendMapped, Errno::CONNABORTED, CLOSED),
    (SendMapped, Errno::NOTCONN, CLOSED),
    (SendMapped, Errno::NOTSOCK, NO_SOCKET),
    (SendMapped, Errno::NOBUFS, AT_SINK),
    (SendMapped, Errno::NOMEM, AT_SINK),
];

const COPY: &[Arm] = &[
    (ReadAt, Errno::AGAIN, Blocked(Side::Source)),
    (ReadAt, Errno::INTR, Unnoticed),
    (ReadAt, Errno::IO, AT_SOURCE),
    (ReadAt, Errno::ISDIR, AT_SOURCE),
    (ReadAt, Errno::SPIPE, Fails(ErrorKind::SourceNotSeekable)),
    (Send, Errno::AGAIN, Blocked(Side::Sink)),
    (Send, Errno::INTR, Unnoticed),
    (Send, Errno::PIPE, CLOSED),
    (Send, Errno::CONNRESET, CLOSED),
    (Send, Errno::CONNABORTED, CLOSED),
    (Send, Errno::NOTCONN, CLOSED),
    (Send, Errno::NOTSOCK, NO_SOCKET),
    (Send, Errno::NOBUFS, AT_SINK),
    (Send, Errno::NOMEM, AT_SINK),
];

const OFFSET: u64 = 3;
const OWED: u64 = SIZE - OFFSET;

/// So many bytes a call make each place of [`PLACES`] a different one.
const AT_MOST: usize = 9_001;

/// The first call, the second, and one in the middle.
const PLACES: [usize; 3] = [0, 1, 17];

fn check(mechanism: Mechanism, call: Call, nth: usize, fault: Fault, then: ExpectedEnd) {
    for length in [Length::Exact(OWED), Length::UntilEof] {
        let what = format!("{mechanism}: {call:?} no. {nth} {fault:?} of {length:?}");
        let kernel = failing(call, nth, fault, AT_MOST);
        let mut bench = Bench::new(OFFSET, length, &[mechanism, Mechanism::Copy]);
        let result = bench.run(&kernel);
        assert!(
            kernel.made(call).len() > nth,
            "{what}: the fault was not met"
        );

        let arrived = bench.received.len() as u64;
        match (then, result) {
            (Unnoticed, Ok(())) => {
                assert_eq!(bench.by(mechanism), OWED, "{what}");
                assert!(bench.blocked.is_empty(), "{what}");
            }
            (Blocked(side), Ok(())) => {
                assert_eq!(bench.by(mechanism), OWED, "{what}");
                assert_eq!(bench.blocked, [side], "{what}");
            }
            (FallsBack, Ok(())) => {
                let [step] = bench.transfer.report().fallbacks() else {
                    panic!("{what}: {}", bench.transfer.report());
                };
                assert_eq!((step.from, step.to), (mechanism, Mechanism::Copy), "{what}");
                assert_eq!(Fault::Fails(step.errno), fault, "{what}");
                assert_eq!(step.at, bench.by(mechanism), "{what}");
                assert_eq!(step.at + bench.by(Mechanism::Copy), OWED, "{what}");
                assert!(nth > 0 || step.at == 0, "{what}: not at the first call");
                assert!(nth < PLACES[2] || step.at > 0, "{what}: not in the middle");
                let refusal = bench.transfer.support().refusal(mechanism);
                assert_eq!(refusal, Some(step.errno), "{what}");
            }
            (Ends, Ok(())) => {
                assert_eq!(length, Length::UntilEof, "{what}");
                assert!(arrived < OWED, "{what}");
            }
            (Ends, Err(error)) => {
                let promised = OWED;
                assert_eq!(error.kind(), ErrorKind::SourceTooShort { promised });
                assert_eq!(length, Length::Exact(OWED), "{what}");
                assert_eq!(error.moved(), arrived, "{what}");
            }
            (Fails(kind), Err(error)) => {
                assert_eq!(error.kind(), kind, "{what}");
                assert_eq!(error.moved(), arrived, "{what}");
                assert_eq!(error.report(), bench.transfer.report(), "{what}");
                assert_eq!(error.call(), mechanism.name(), "{what}");
                assert!(error.to_string().contains("(os error"), "{what}: {error}");
            }
            (then, result) => panic!("{what}: {result:?} and not {then:?}"),
        }
        if !matches!(then, Fails(_) | Ends) {
            assert_eq!(arrived, OWED, "{what}");
            let fallbacks = bench.transfer.report().fallbacks();
            assert_eq!(fallbacks.len(), usize::from(then == FallsBack), "{what}");
        }
    }
}

fn check_all(mechanism: Mechanism, arms: &[Arm]) {
    for &(call, errno, then) in arms {
        for nth in PLACES {
            check(mechanism, call, nth, Fault::Fails(errno), then);
        }
    }
}

#[test]
fn every_errno_of_sendfile() {
    check_all(Mechanism::Sendfile, SENDFILE);
}

/// Into the pipe, the second call of a step finds bytes in it: they go out first, whatever it was, and
/// the next step's first call meets the cause, should it persist.
#[test]
fn every_errno_of_splice() {
    for &(call, errno, then) in SPLICE {
        for nth in PLACES {
            let held = call == SpliceIn && nth > 0;
            let then = if held { Unnoticed } else { then };
            check(Mechanism::Splice, call, nth, Fault::Fails(errno), then);
        }
    }
}

/// With bytes in the pipe, and for good: the bytes arrive, then comes what the table says.
#[test]
fn every_errno_into_a_pipe_that_holds_bytes() {
    for &(call, errno, then) in SPLICE {
        if call != SpliceIn || errno == Errno::INTR {
            continue;
        }
        let what = format!("{errno:?} for good after 3 calls");
        let rule = FaultRule::during(SpliceIn, 3..usize::MAX, Fault::Fails(errno));
        let kernel = Faulty::new(vec![rule]).at_most(AT_MOST);
        let plan = [Mechanism::Splice, Mechanism::Copy];
        let mut bench = Bench::new(OFFSET, Length::Exact(OWED), &plan);
        let result = loop {
            match bench.step(&kernel) {
                Ok(Progress::Blocked(Side::Source)) => break None,
                Ok(Progress::Done) => break Some(Ok(())),
                Ok(_) => {}
                Err(error) => break Some(Err(error)),
            }
        };
        assert_eq!(bench.by(Mechanism::Splice), 3 * AT_MOST as u64, "{what}");
        match (then, result) {
            (Blocked(Side::Source), None) => {}
            (FallsBack, Some(Ok(()))) => assert_eq!(bench.received.len() as u64, OWED, "{what}"),
            (Fails(kind), Some(Err(error))) => assert_eq!(error.kind(), kind, "{what}"),
            (then, result) => panic!("{what}: {result:?} and not {then:?}"),
        }
    }
}

/// Where the pipe cannot be made, `copy` takes over; where it cannot be widened, nothing is lost.
#[test]
fn every_errno_of_the_pipe() {
    for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM] {
        check(Mechanism::Splice, Pipe, 0, Fault::Fails(errno), FallsBack);
    }
    for errno in [Errno::PERM, Errno::BUSY, Errno::NOMEM] {
        check(
            Mechanism::Splice,
            ResizePipe,
            0,
            Fault::Fails(errno),
            Unnoticed,
        );
    }
}

#[test]
fn every_errno_of_mmap_write() {
    check_all(Mechanism::MmapWrite, MMAP_WRITE);
    for errno in [Errno::NODEV, Errno::NOMEM, Errno::ACCESS, Errno::MFILE] {
        check(Mechanism::MmapWrite, Map, 0, Fault::Fails(errno), FallsBack);
    }
}

/// The size is asked before each send and after it. Before, reading may still work; after, bytes have
/// gone of which nobody can say any more whether they are the file's.
#[test]
fn every_errno_of_the_size() {
    for errno in [Errno::IO, Errno::STALE] {
        for nth in [0, 2, 34] {
            check(
                Mechanism::MmapWrite,
                Size,
                nth,
                Fault::Fails(errno),
                FallsBack,
            );
            check(
                Mechanism::MmapWrite,
                Size,
                nth + 1,
                Fault::Fails(errno),
                AT_SOURCE,
            );
        }
    }
}

/// A size of 0 is no end: files of procfs have one. The bytes are asked for.
#[test]
fn a_size_is_not_believed_to_be_the_end() {
    let plan = [Mechanism::MmapWrite, Mechanism::Copy];
    let of_size_0 = FaultRule::during(Size, 0..usize::MAX, Fault::Zero);
    let mut bench = Bench::new(OFFSET, Length::UntilEof, &plan);
    bench
        .run(&Faulty::new(vec![of_size_0.clone()]))
        .expect("copy takes over");
    assert_eq!(bench.by(Mechanism::Copy), OWED);
    assert_eq!(bench.transfer.report().fallbacks()[0].errno, Errno::NODEV);

    for (errno, kind) in [
        (Errno::IO, ErrorKind::Source),
        (Errno::SPIPE, ErrorKind::SourceNotSeekable),
    ] {
        let unread = FaultRule::once(ReadAt, 0, Fault::Fails(errno));
        let mut bench = Bench::new(OFFSET, Length::UntilEof, &plan);
        let kernel = Faulty::new(vec![of_size_0.clone(), unread]);
        assert_eq!(bench.run(&kernel).expect_err("unread").kind(), kind);
    }
    let not_ready = FaultRule::once(ReadAt, 0, Fault::Fails(Errno::AGAIN));
    let mut bench = Bench::new(OFFSET, Length::UntilEof, &plan);
    let kernel = Faulty::new(vec![of_size_0, not_ready]);
    bench.run(&kernel).expect("copy takes over");
    assert_eq!(bench.blocked, [Side::Source]);
    assert_eq!(bench.by(Mechanism::Copy), OWED);
}

#[test]
fn every_errno_of_copy() {
    check_all(Mechanism::Copy, COPY);
}

/// A 0 where the file's bytes come from is its end, and with bytes owed never success. Without the
/// guard in `Transfer::ended` the exact transfers succeed.
#[test]
fn zero_from_the_source_is_its_end() {
    for nth in PLACES {
        check(Mechanism::Sendfile, Sendfile, nth, Fault::Zero, Ends);
        check(Mechanism::Copy, ReadAt, nth, Fault::Zero, Ends);
    }
    check(Mechanism::Splice, SpliceIn, 0, Fault::Zero, Ends);
    check(Mechanism::Splice, SpliceIn, 3, Fault::Zero, Unnoticed);
    let during = FaultRule::during(SpliceIn, 3..usize::MAX, Fault::Zero);
    let kernel = Faulty::new(vec![during]).at_most(AT_MOST);
    let mut bench = Bench::new(OFFSET, Length::Exact(OWED), &[Mechanism::Splice]);
    let error = bench.run(&kernel).expect_err("bytes are owed");
    assert_eq!(error.moved(), 3 * AT_MOST as u64);
}

/// No stream socket takes 0 of some bytes. If one did, the transfer must not go round for ever.
#[test]
fn zero_from_the_sink_ends_the_mechanism() {
    let fallbacks = |mechanism, call| {
        for nth in PLACES {
            let kernel = failing(call, nth, Fault::Zero, AT_MOST);
            let mut bench = Bench::new(OFFSET, Length::Exact(OWED), &[mechanism, Mechanism::Copy]);
            bench.run(&kernel).expect("copy takes over");
            assert_eq!(bench.received.len() as u64, OWED);
            assert_eq!(bench.transfer.report().fallbacks()[0].errno, Errno::IO);
        }
    };
    fallbacks(Mechanism::Splice, SpliceOut);
    fallbacks(Mechanism::MmapWrite, SendMapped);
    for nth in PLACES {
        check(Mechanism::Copy, Send, nth, Fault::Zero, AT_SINK);
    }
}

/// A forced plan that comes to its end says so, with the count.
#[test]
fn the_last_mechanism_of_a_plan_is_unsupported() {
    for (mechanism, call) in [
        (Mechanism::Sendfile, Sendfile),
        (Mechanism::Splice, SpliceOut),
        (Mechanism::MmapWrite, SendMapped),
    ] {
        let errno = if call == SendMapped {
            Errno::FAULT
        } else {
            Errno::OPNOTSUPP
        };
        let kernel = failing(call, 2, Fault::Fails(errno), AT_MOST);
        let mut bench = Bench::new(OFFSET, Length::Exact(OWED), &[mechanism]);
        let error = bench.run(&kernel).expect_err("nothing is left to try");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(error.moved(), 2 * AT_MOST as u64);
    }
}

/// What the kernel or a seccomp filter has said of the process, later plans know.
#[test]
fn a_refusal_of_the_process_is_remembered() {
    let kernel = failing(Sendfile, 0, Fault::Fails(Errno::NOSYS), AT_MOST);
    let mut bench = Bench::new(0, Length::UntilEof, &[Mechanism::Sendfile, Mechanism::Copy]);
    bench.run(&kernel).expect("copy takes over");
    let known = crate::Support::of_process();
    // Another test of this binary may have taught EPERM meanwhile.
    assert!(matches!(
        known.refusal(Mechanism::Sendfile),
        Some(Errno::NOSYS | Errno::PERM)
    ));
}
