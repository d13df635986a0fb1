//! Checks the errno tables in the documentation of the mechanisms that move bytes between
//! descriptors of any kind. For each row, one call fails with the errno: the first call of its
//! kind, the second, or one in the middle of the transfer.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read as _, Seek, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use rustix::io::Errno;

use super::faulty_kernel::Call::{
    CopyFileRange, IsReadable, IsWritable, ReadHere, SendfileHere, Splice, Write,
};
use super::faulty_kernel::{Call, Fault, FaultRule, FaultyKernel};
use super::{FILE_BYTES, MAX_STEPS, pattern};
use crate::error::{Error, ErrorKind};
use crate::mechanism::Side;
use crate::policy::{DescriptorKind, Mechanism, Plan};
use crate::transfer::{DescriptorTransfer, Progress};

/// Where the bytes come from.
enum Source {
    File(File),
    /// The other end is closed once everything was written to it.
    Pipe(PipeReader, Option<PipeWriter>),
}

/// Where the bytes go.
enum Sink {
    File(File),
    Pipe(PipeWriter, PipeReader),
}

impl Source {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::File(file) => file.as_fd(),
            Self::Pipe(reader, _) => reader.as_fd(),
        }
    }
}

impl Sink {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::File(file) => file.as_fd(),
            Self::Pipe(writer, _) => writer.as_fd(),
        }
    }
}

/// A transfer between two descriptors.
struct Harness {
    transfer: DescriptorTransfer,
    source: Source,
    /// What is still to be written to a source that is a pipe.
    unsent: Vec<u8>,
    sink: Sink,
    /// What was read from a sink that is a pipe.
    received: Vec<u8>,
    steps: usize,
    blocked: Vec<Side>,
}

fn nonblocking_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = io::pipe().expect("a pipe");
    for end in [reader.as_fd(), writer.as_fd()] {
        rustix::io::ioctl_fionbio(end, true).expect("set");
    }
    (reader, writer)
}

impl Harness {
    fn new(from: DescriptorKind, to: DescriptorKind, plan: &[Mechanism]) -> Self {
        let bytes = pattern(FILE_BYTES);
        let file = || tempfile::tempfile().expect("a temporary file");
        let (source, unsent) = match from {
            DescriptorKind::Pipe => {
                let (reader, writer) = nonblocking_pipe();
                (Source::Pipe(reader, Some(writer)), bytes)
            }
            _ => {
                let file = file();
                file.write_all_at(&bytes, 0).expect("written");
                (Source::File(file), Vec::new())
            }
        };
        let sink = match to {
            DescriptorKind::Pipe => {
                let (reader, writer) = nonblocking_pipe();
                Sink::Pipe(writer, reader)
            }
            _ => Sink::File(file()),
        };
        Self {
            transfer: DescriptorTransfer::new(from, to, Plan::of(plan)),
            source,
            unsent,
            sink,
            received: Vec::new(),
            steps: 0,
            blocked: Vec::new(),
        }
    }

    /// Writes as much as a source that is a pipe accepts.
    fn send(&mut self) {
        let Source::Pipe(_, writer) = &mut self.source else {
            return;
        };
        while let Some(open) = writer {
            match open.write(&self.unsent) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => panic!("the sender failed: {error}"),
            }
            if self.unsent.is_empty() {
                *writer = None;
            }
        }
    }

    fn receive(&mut self) {
        if let Sink::Pipe(_, reader) = &mut self.sink {
            let error = reader.read_to_end(&mut self.received).expect_err("open");
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        }
    }

    fn run(&mut self, kernel: &FaultyKernel) -> Result<(), Error> {
        loop {
            self.steps += 1;
            assert!(self.steps < MAX_STEPS, "the transfer does not end");
            self.send();
            let (source, sink) = (self.source.fd(), self.sink.fd());
            let progress = self.transfer.step(kernel, source, sink, false);
            self.receive();
            match progress? {
                Progress::Done => return Ok(()),
                Progress::Moved(_) => {}
                Progress::Blocked(side) => self.blocked.push(side),
            }
        }
    }

    /// Asserts that the sink has as many bytes as the report says, and that they are the first
    /// ones. If ends are files, asserts that they stand behind these bytes.
    fn check_sink(&mut self, case: &str) {
        self.transfer.give_back(self.source.fd());
        let moved = self.transfer.report().bytes();
        let received = match &mut self.sink {
            Sink::File(file) => {
                assert_eq!(file.stream_position().expect("sought"), moved, "{case}");
                let mut received = Vec::new();
                file.rewind().expect("sought");
                file.read_to_end(&mut received).expect("read");
                received
            }
            Sink::Pipe(..) => std::mem::take(&mut self.received),
        };
        assert!(received == pattern(moved), "{case}: other bytes arrived");
        if let Source::File(file) = &mut self.source {
            let position = file.stream_position().expect("sought");
            assert_eq!(position, moved, "{case}");
        }
    }
}

/// The effect that a fault must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// The mechanism moves every byte, and reports nothing.
    NoEffect,
    /// The step is blocked on this side. After a retry, the mechanism moves every byte.
    Blocked(Side),
    /// The transfer falls back, and `copy` moves the rest.
    FallsBack,
    /// `copy` moves some bytes, and the mechanism the rest. A fallback is reported.
    CopiesOnce,
    /// `copy` looks for the end of the source. It is no fallback.
    LooksWithRead,
    /// The transfer fails.
    Fails(ErrorKind, Side),
}

use Expected::{Blocked, CopiesOnce, Fails, FallsBack, LooksWithRead, NoEffect};

const SOURCE_FAILS: Expected = Fails(ErrorKind::Source, Side::Source);
const SINK_FAILS: Expected = Fails(ErrorKind::Sink, Side::Sink);

/// A call, its errno, and the expected result.
type ErrnoRow = (Call, Errno, Expected);

const COPY_FILE_RANGE: &[ErrnoRow] = &[
    (CopyFileRange, Errno::INTR, NoEffect),
    (CopyFileRange, Errno::XDEV, FallsBack),
    (CopyFileRange, Errno::INVAL, FallsBack),
    (CopyFileRange, Errno::BADF, FallsBack),
    (CopyFileRange, Errno::OPNOTSUPP, FallsBack),
    (CopyFileRange, Errno::NOSYS, FallsBack),
    (CopyFileRange, Errno::TXTBSY, FallsBack),
    (CopyFileRange, Errno::PERM, CopiesOnce),
    (CopyFileRange, Errno::NOSPC, CopiesOnce),
    (CopyFileRange, Errno::DQUOT, CopiesOnce),
    (CopyFileRange, Errno::FBIG, CopiesOnce),
    (CopyFileRange, Errno::IO, CopiesOnce),
];

const SENDFILE: &[ErrnoRow] = &[
    (SendfileHere, Errno::INTR, NoEffect),
    (SendfileHere, Errno::INVAL, FallsBack),
    (SendfileHere, Errno::OPNOTSUPP, FallsBack),
    (SendfileHere, Errno::SPIPE, FallsBack),
    (SendfileHere, Errno::NOSYS, FallsBack),
    (SendfileHere, Errno::OVERFLOW, FallsBack),
    (SendfileHere, Errno::NOMEM, FallsBack),
    (SendfileHere, Errno::PERM, CopiesOnce),
    (SendfileHere, Errno::NOSPC, CopiesOnce),
    (SendfileHere, Errno::IO, CopiesOnce),
];

/// The rows that are the same whichever end is a pipe.
const SPLICE: &[ErrnoRow] = &[
    (Splice, Errno::INTR, NoEffect),
    (Splice, Errno::INVAL, FallsBack),
    (Splice, Errno::OPNOTSUPP, FallsBack),
    (Splice, Errno::SPIPE, FallsBack),
    (Splice, Errno::NOSYS, FallsBack),
    (Splice, Errno::OVERFLOW, FallsBack),
    (Splice, Errno::NOMEM, FallsBack),
    (Splice, Errno::PERM, CopiesOnce),
    (Splice, Errno::BADF, CopiesOnce),
    (Splice, Errno::PIPE, SINK_FAILS),
];

const SPLICE_FROM_PIPE: &[ErrnoRow] = &[
    (Splice, Errno::NOSPC, SINK_FAILS),
    (Splice, Errno::DQUOT, SINK_FAILS),
    (Splice, Errno::FBIG, SINK_FAILS),
    (Splice, Errno::IO, SINK_FAILS),
];

const SPLICE_FROM_FILE: &[ErrnoRow] = &[(Splice, Errno::IO, SOURCE_FAILS)];

const COPY: &[ErrnoRow] = &[
    (ReadHere, Errno::AGAIN, Blocked(Side::Source)),
    (ReadHere, Errno::INTR, NoEffect),
    (ReadHere, Errno::IO, SOURCE_FAILS),
    (ReadHere, Errno::ISDIR, SOURCE_FAILS),
    (ReadHere, Errno::BADF, SOURCE_FAILS),
    (Write, Errno::AGAIN, Blocked(Side::Sink)),
    (Write, Errno::INTR, NoEffect),
    (Write, Errno::NOSPC, SINK_FAILS),
    (Write, Errno::DQUOT, SINK_FAILS),
    (Write, Errno::FBIG, SINK_FAILS),
    (Write, Errno::IO, SINK_FAILS),
    (Write, Errno::PIPE, SINK_FAILS),
    (Write, Errno::CONNRESET, SINK_FAILS),
];

use DescriptorKind as Kind;

const FROM_PIPE: [(Kind, Kind); 2] = [(Kind::Pipe, Kind::File), (Kind::Pipe, Kind::Pipe)];
const FROM_FILE: [(Kind, Kind); 1] = [(Kind::File, Kind::Pipe)];
const BETWEEN_FILES: [(Kind, Kind); 1] = [(Kind::File, Kind::File)];

/// The most bytes that one call moves: small enough that a transfer reaches every call in
/// [`CALL_INDEXES`].
const MAX_BYTES_PER_CALL: usize = 9_001;

const CALL_INDEXES: [usize; 3] = [0, 1, 17];

fn check_rows(mechanism: Mechanism, pairs: &[(Kind, Kind)], rows: &[ErrnoRow]) {
    for &(call, errno, expected) in rows {
        for &pair in pairs {
            for nth in CALL_INDEXES {
                let rule = FaultRule::once(call, nth, Fault::Fails(errno));
                check(mechanism, pair, &[rule], Some(errno), expected);
            }
        }
    }
}

/// Injects these faults, moves bytes with `mechanism` and with `copy` as its fallback, and checks
/// that the effect is the expected one.
fn check(
    mechanism: Mechanism,
    (from, to): (Kind, Kind),
    rules: &[FaultRule],
    errno: Option<Errno>,
    expected: Expected,
) {
    let case = format!("{mechanism}, {from:?} to {to:?}: {rules:?}, {expected:?}");
    let kernel = FaultyKernel::new(rules.to_vec()).max_bytes_per_call(MAX_BYTES_PER_CALL);
    let mut harness = Harness::new(from, to, &[mechanism, Mechanism::Copy]);
    let result = harness.run(&kernel);
    let report = harness.transfer.report().clone();
    harness.check_sink(&case);
    match (expected, result) {
        (NoEffect | LooksWithRead, Ok(())) => {
            assert!(report.fallbacks().is_empty(), "{case}: {report}");
        }
        (Blocked(side), Ok(())) => {
            assert!(harness.blocked.contains(&side), "{case}");
            assert!(report.fallbacks().is_empty(), "{case}: {report}");
        }
        (FallsBack | CopiesOnce, Ok(())) => {
            let [fallback] = report.fallbacks() else {
                panic!("{case}: {report}");
            };
            let (from, to) = (fallback.from, fallback.to);
            assert_eq!((from, to), (mechanism, Mechanism::Copy), "{case}");
            assert_eq!(Some(fallback.errno), errno.map(crate::Errno::of), "{case}");
            let falls_back = harness.transfer.mechanism() == Mechanism::Copy;
            assert_eq!(falls_back, expected == FallsBack, "{case}");
        }
        (Fails(kind, side), Err(error)) => {
            assert_eq!(error.kind(), kind, "{case}");
            assert_eq!(error.side(), Some(side), "{case}");
            assert_eq!(error.moved(), report.bytes(), "{case}");
            let expected = errno.map(Errno::raw_os_error);
            assert_eq!(error.raw_os_error(), expected, "{case}");
            return;
        }
        (expected, result) => panic!("{case}: {result:?} instead of {expected:?}"),
    }
    assert_eq!(report.bytes(), FILE_BYTES, "{case}");
    if expected != FallsBack {
        assert!(report.by(mechanism) > 0, "{case}: {report}");
    }
    let by_reference = match (mechanism, to) {
        (Mechanism::Splice, Kind::Pipe) => report.by(mechanism),
        _ => 0,
    };
    assert_eq!(report.zero_copy_bytes(), by_reference, "{case}: {report}");
}

/// A call that returns 0 may have found the end, or does not know where it is.
fn check_zero(mechanism: Mechanism, pairs: &[(Kind, Kind)], call: Call) {
    for &pair in pairs {
        for nth in CALL_INDEXES {
            let rule = FaultRule::once(call, nth, Fault::ReturnsZero);
            check(mechanism, pair, &[rule], None, LooksWithRead);
        }
    }
}

#[test]
fn copy_file_range_follows_its_table() {
    let mechanism = Mechanism::CopyFileRange;
    check_rows(mechanism, &BETWEEN_FILES, COPY_FILE_RANGE);
    check_zero(mechanism, &BETWEEN_FILES, CopyFileRange);
}

#[test]
fn sendfile_between_files_follows_its_table() {
    check_rows(Mechanism::Sendfile, &BETWEEN_FILES, SENDFILE);
    check_zero(Mechanism::Sendfile, &BETWEEN_FILES, SendfileHere);
}

#[test]
fn splice_from_and_to_pipes_follows_its_table() {
    let mechanism = Mechanism::Splice;
    for pairs in [&FROM_PIPE[..], &FROM_FILE] {
        check_rows(mechanism, pairs, SPLICE);
        check_zero(mechanism, pairs, Splice);
    }
    check_rows(mechanism, &FROM_PIPE, SPLICE_FROM_PIPE);
    check_rows(mechanism, &FROM_FILE, SPLICE_FROM_FILE);
}

/// `EAGAIN` does not tell which of the two is not ready. `poll` does.
#[test]
fn splice_asks_which_end_is_not_ready() {
    let again = Fault::Fails(Errno::AGAIN);
    let is_not = Fault::ReturnsZero;
    let is_ready = |call| FaultRule::during(call, 0..usize::MAX, Fault::Fails(Errno::IO));
    for pair in FROM_PIPE.into_iter().chain(FROM_FILE) {
        let once = || FaultRule::once(Splice, 0, again);
        let empty = [once(), FaultRule::once(IsReadable, 0, is_not)];
        check(Mechanism::Splice, pair, &empty, None, Blocked(Side::Source));
        let full = [
            once(),
            is_ready(IsReadable),
            FaultRule::once(IsWritable, 0, is_not),
        ];
        check(Mechanism::Splice, pair, &full, None, Blocked(Side::Sink));
        let both = [once(), is_ready(IsReadable), is_ready(IsWritable)];
        check(Mechanism::Splice, pair, &both, None, NoEffect);
    }
}

#[test]
fn copy_between_descriptors_follows_its_table() {
    for pairs in [&FROM_PIPE[..], &FROM_FILE, &BETWEEN_FILES] {
        check_rows(Mechanism::Copy, pairs, COPY);
    }
}

/// A plan with a mechanism that does not move bytes between descriptors falls back.
#[test]
fn other_mechanisms_are_unsupported() {
    let rules = [];
    let errno = Some(Errno::INVAL);
    let pair = (Kind::Pipe, Kind::File);
    check(Mechanism::MmapWrite, pair, &rules, errno, FallsBack);
}

/// The limit ends the transfer, whichever mechanism reaches it.
#[test]
fn no_more_is_moved_than_the_limit() {
    for mechanism in Mechanism::DESCRIPTOR_TO_DESCRIPTOR {
        let to = match mechanism {
            Mechanism::Splice => Kind::Pipe,
            _ => Kind::File,
        };
        for limit in [0, 1, 100_000, FILE_BYTES, FILE_BYTES + 1] {
            let kernel = FaultyKernel::new(Vec::new()).max_bytes_per_call(70_000);
            let mut harness = Harness::new(Kind::File, to, &[mechanism]);
            harness.transfer =
                DescriptorTransfer::new(Kind::File, to, Plan::of(&[mechanism])).at_most(limit);
            harness.run(&kernel).expect("moved");
            let moved = harness.transfer.report().bytes();
            assert_eq!(moved, limit.min(FILE_BYTES), "{mechanism}");
            harness.check_sink(mechanism.name());
        }
    }
}

/// Returns a rule by which some call fails for a reason that a transfer survives.
fn survivable() -> impl Strategy<Value = FaultRule> {
    let call = prop::sample::select(vec![CopyFileRange, SendfileHere, Splice, ReadHere, Write]);
    let errno = prop::sample::select(vec![Errno::AGAIN, Errno::INTR, Errno::INVAL, Errno::PERM]);
    (call, 0..30_usize, errno).prop_map(|(call, nth, errno)| {
        let errno = match (call, errno) {
            (ReadHere | Write, Errno::INVAL | Errno::PERM) => Errno::AGAIN,
            (_, errno) => errno,
        };
        FaultRule::once(call, nth, Fault::Fails(errno))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever fails, and in which order, every byte arrives once and in its place.
    #[test]
    fn faults_lose_no_byte(
        rules in prop::collection::vec(survivable(), 0..12),
        max_bytes in 500..300_000_usize,
        pair in prop::sample::select([&FROM_PIPE[..], &FROM_FILE, &BETWEEN_FILES].concat()),
    ) {
        let kernel = FaultyKernel::new(rules).max_bytes_per_call(max_bytes);
        let plan = match pair {
            (Kind::File, Kind::File) => {
                &[Mechanism::CopyFileRange, Mechanism::Sendfile, Mechanism::Copy][..]
            }
            _ => &[Mechanism::Splice, Mechanism::Copy],
        };
        let mut harness = Harness::new(pair.0, pair.1, plan);
        harness.run(&kernel).expect("moved");
        prop_assert_eq!(harness.transfer.report().bytes(), FILE_BYTES);
        harness.check_sink("faults");
    }
}
