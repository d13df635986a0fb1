//! Checks the errno tables in the documentation of the mechanisms that receive into files, pipes
//! and devices. For each row, one call fails with the errno: the first call of its kind, the
//! second, or one in the middle of the transfer.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::fs::OpenOptionsExt;
use std::thread;

use proptest::prelude::*;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::faulty_kernel::Call::{
    Discard, HasUpperProtocol, IsWritable, Peek, Pipe, ReadHere, Recv, Reopen, Reserve, ResizePipe,
    SpliceReceive, SpliceToFile, Write as WriteCall,
};
use super::faulty_kernel::{Call, CallRecord, Fault, FaultRule, FaultyKernel};
use super::{FILE_BYTES, MAX_STEPS, faultless, pattern, send_rest, tcp_pair};
use crate::error::{Error, ErrorKind};
use crate::mechanism::Side;
use crate::policy::{Length, Mechanism, Plan};
use crate::receive::reserve;
use crate::transfer::{Progress, ReceiveTransfer};

/// Where the bytes go.
enum Sink {
    File(File),
    /// A pipe, and what was read from it.
    Pipe {
        writer: OwnedFd,
        reader: File,
        read: Vec<u8>,
    },
    Null(File),
}

impl Sink {
    fn file() -> Self {
        Self::File(tempfile::tempfile().expect("a temporary file"))
    }

    fn pipe() -> Self {
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK).expect("a pipe");
        Self::Pipe {
            writer,
            reader: reader.into(),
            read: Vec::new(),
        }
    }

    fn null() -> Self {
        let null = OpenOptions::new().write(true).open("/dev/null");
        Self::Null(null.expect("opened"))
    }

    fn offset(&self) -> Option<u64> {
        match self {
            Self::File(_) => Some(OFFSET),
            Self::Pipe { .. } | Self::Null(_) => None,
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::File(file) | Self::Null(file) => file.as_fd(),
            Self::Pipe { writer, .. } => writer.as_fd(),
        }
    }

    /// Returns how many bytes have arrived, or `None` if they are not kept.
    fn len(&mut self) -> Option<u64> {
        match self {
            Self::File(file) => {
                let len = file.metadata().expect("read").len();
                Some(len.saturating_sub(OFFSET))
            }
            Self::Pipe { reader, read, .. } => {
                let result = reader.read_to_end(read);
                let error = result.expect_err("the writing end is open");
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                Some(read.len() as u64)
            }
            Self::Null(_) => None,
        }
    }

    /// Asserts that these bytes have arrived, and no others.
    fn expect(&mut self, expected: &[u8], case: &str) {
        let Some(len) = self.len() else { return };
        let arrived = match self {
            Self::File(file) => {
                let mut arrived = vec![0; len as usize];
                file.read_exact_at(&mut arrived, OFFSET).expect("read");
                arrived
            }
            Self::Pipe { read, .. } => read.clone(),
            Self::Null(_) => return,
        };
        assert!(arrived == expected, "{case}: other bytes have arrived");
    }
}

/// The offset at which the bytes are written to a file.
const OFFSET: u64 = 5;

/// A transfer over a pair of TCP sockets.
struct Harness {
    transfer: ReceiveTransfer,
    source: TcpStream,
    peer: TcpStream,
    /// What the peer has yet to send. It then shuts the connection down.
    unsent: Vec<u8>,
    sink: Sink,
    steps: usize,
    blocked: Vec<Side>,
}

impl Harness {
    fn new(sink: Sink, sent: Vec<u8>, length: Length, plan: &[Mechanism]) -> Self {
        let (source, peer) = tcp_pair();
        peer.set_nonblocking(true).expect("set");
        Self {
            transfer: ReceiveTransfer::new(sink.offset(), length, Plan::of(plan)),
            source,
            peer,
            unsent: sent,
            sink,
            steps: 0,
            blocked: Vec::new(),
        }
    }

    fn step(&mut self, kernel: &FaultyKernel) -> Result<Progress, Error> {
        self.steps += 1;
        assert!(self.steps < MAX_STEPS, "the transfer does not end");
        send_rest(&self.peer, &mut self.unsent);
        if !self.unsent.is_empty() {
            wait_until_readable(&self.source);
        }
        let (source, sink) = (self.source.as_fd(), self.sink.fd());
        let progress = self.transfer.step_with(kernel, source, sink, false);
        if let Ok(Progress::Blocked(side)) = progress {
            self.blocked.push(side);
        }
        if let Some(len) = self.sink.len() {
            assert_eq!(self.transfer.report().bytes(), len);
        }
        let offset = self.sink.offset();
        let expected = offset.map(|offset| offset + self.transfer.report().bytes());
        assert_eq!(self.transfer.offset(), expected);
        progress
    }

    fn run(&mut self, kernel: &FaultyKernel) -> Result<(), Error> {
        while self.step(kernel)? != Progress::Done {}
        Ok(())
    }

    fn bytes_by(&self, mechanism: Mechanism) -> u64 {
        self.transfer.report().by(mechanism)
    }
}

fn wait_until_readable(socket: &TcpStream) {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut ready = [PollFd::new(socket, PollFlags::IN)];
    poll(&mut ready, None).expect("polled");
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
    /// `copy` moves some bytes, and the mechanism the rest.
    CopiesOnce,
    /// The transfer fails.
    Fails(ErrorKind),
    /// The transfer fails. If it is run again, every byte arrives.
    SinkFails,
}

use Expected::{Blocked, CopiesOnce, Fails, FallsBack, NoEffect, SinkFails};

const SOURCE_FAILS: Expected = Fails(ErrorKind::Source);
const PEER_CLOSED: Expected = Fails(ErrorKind::PeerClosed);
const NOT_CONNECTED: Expected = Fails(ErrorKind::NotConnected);
const NOT_A_SOCKET: Expected = Fails(ErrorKind::NotAStreamSocket);

/// A call, its errno, and the expected result.
type ErrnoRow = (Call, Errno, Expected);

const COPY: &[ErrnoRow] = &[
    (Recv, Errno::AGAIN, Blocked(Side::Source)),
    (Recv, Errno::INTR, NoEffect),
    (Recv, Errno::CONNRESET, PEER_CLOSED),
    (Recv, Errno::NOTCONN, NOT_CONNECTED),
    (Recv, Errno::NOTSOCK, NOT_A_SOCKET),
    (Recv, Errno::NOMEM, SOURCE_FAILS),
    (WriteCall, Errno::AGAIN, Blocked(Side::Sink)),
    (WriteCall, Errno::INTR, NoEffect),
    (WriteCall, Errno::NOSPC, SinkFails),
    (WriteCall, Errno::DQUOT, SinkFails),
    (WriteCall, Errno::FBIG, SinkFails),
    (WriteCall, Errno::IO, SinkFails),
    (WriteCall, Errno::PIPE, SinkFails),
    (WriteCall, Errno::PERM, SinkFails),
    (WriteCall, Errno::SPIPE, SinkFails),
];

/// The rows of `splice` for the call that receives, which hold for every sink.
const SPLICE_RECEIVE: &[ErrnoRow] = &[
    (SpliceReceive, Errno::AGAIN, NoEffect),
    (SpliceReceive, Errno::INTR, NoEffect),
    (SpliceReceive, Errno::INVAL, FallsBack),
    (SpliceReceive, Errno::OPNOTSUPP, FallsBack),
    (SpliceReceive, Errno::SPIPE, FallsBack),
    (SpliceReceive, Errno::NOSYS, FallsBack),
    (SpliceReceive, Errno::PERM, FallsBack),
    (SpliceReceive, Errno::OVERFLOW, FallsBack),
    (SpliceReceive, Errno::NOMEM, FallsBack),
    (SpliceReceive, Errno::PIPE, SinkFails),
    (SpliceReceive, Errno::BADF, SinkFails),
    (SpliceReceive, Errno::CONNRESET, PEER_CLOSED),
    (SpliceReceive, Errno::NOTCONN, NOT_CONNECTED),
    (SpliceReceive, Errno::IO, SOURCE_FAILS),
];

const SPLICE_TO_FILE: &[ErrnoRow] = &[
    (SpliceToFile, Errno::AGAIN, Blocked(Side::Sink)),
    (SpliceToFile, Errno::INTR, NoEffect),
    (SpliceToFile, Errno::PERM, SinkFails),
    (SpliceToFile, Errno::INVAL, FallsBack),
    (SpliceToFile, Errno::OPNOTSUPP, FallsBack),
    (SpliceToFile, Errno::SPIPE, FallsBack),
    (SpliceToFile, Errno::NOSYS, FallsBack),
    (SpliceToFile, Errno::OVERFLOW, FallsBack),
    (SpliceToFile, Errno::NOMEM, FallsBack),
    (SpliceToFile, Errno::NOSPC, SinkFails),
    (SpliceToFile, Errno::DQUOT, SinkFails),
    (SpliceToFile, Errno::FBIG, SinkFails),
    (SpliceToFile, Errno::IO, SinkFails),
    (SpliceToFile, Errno::PIPE, SinkFails),
];

/// The calls that are made once, at the start.
const SPLICE_PREPARES: &[ErrnoRow] = &[
    (Pipe, Errno::MFILE, FallsBack),
    (Pipe, Errno::NFILE, FallsBack),
    (Pipe, Errno::NOMEM, FallsBack),
    (ResizePipe, Errno::PERM, NoEffect),
    (ResizePipe, Errno::BUSY, NoEffect),
    (ResizePipe, Errno::NOMEM, NoEffect),
    (ResizePipe, Errno::INTR, NoEffect),
];

const DISCARD: &[ErrnoRow] = &[
    (Discard, Errno::AGAIN, Blocked(Side::Source)),
    (Discard, Errno::INTR, NoEffect),
    (Discard, Errno::FAULT, FallsBack),
    (Discard, Errno::INVAL, FallsBack),
    (Discard, Errno::OPNOTSUPP, FallsBack),
    (Discard, Errno::NOSYS, FallsBack),
    (Discard, Errno::PERM, FallsBack),
    (Discard, Errno::CONNRESET, PEER_CLOSED),
    (Discard, Errno::NOTCONN, NOT_CONNECTED),
    (Discard, Errno::IO, SOURCE_FAILS),
];

const DISCARD_PREPARES: &[ErrnoRow] = &[
    (HasUpperProtocol, Errno::OPNOTSUPP, FallsBack),
    (HasUpperProtocol, Errno::NOPROTOOPT, FallsBack),
    (HasUpperProtocol, Errno::PERM, FallsBack),
];

/// The most bytes that one call moves: small enough that a transfer reaches every call in
/// [`CALL_INDEXES`].
const MAX_BYTES_PER_CALL: usize = 9_001;

const CALL_INDEXES: [usize; 3] = [0, 1, 17];

/// Injects these faults, receives with `mechanism` and with `copy` as its fallback, and checks that
/// the effect is the expected one.
fn check(
    mechanism: Mechanism,
    sink: fn() -> Sink,
    rules: &[FaultRule],
    call: Call,
    errno: Errno,
    expected: Expected,
) {
    for length in [Length::Exact(FILE_BYTES), Length::UntilEof] {
        // In a new thread, because pipes are cached for the thread.
        thread::scope(|scope| {
            let check = || check_length(mechanism, sink(), rules, call, errno, expected, length);
            scope.spawn(check).join().expect("no panic");
        });
    }
}

fn check_length(
    mechanism: Mechanism,
    sink: Sink,
    rules: &[FaultRule],
    call: Call,
    errno: Errno,
    expected: Expected,
    length: Length,
) {
    let case = format!("{mechanism}: {rules:?} of {length:?}, {expected:?}");
    let kernel = FaultyKernel::new(rules.to_vec()).max_bytes_per_call(MAX_BYTES_PER_CALL);
    let sent = pattern(FILE_BYTES);
    let mut harness = Harness::new(sink, sent.clone(), length, &[mechanism, Mechanism::Copy]);
    let result = harness.run(&kernel);
    let report = harness.transfer.report().clone();
    let fallbacks = report.fallbacks();
    match (expected, result) {
        (NoEffect, Ok(())) => {
            assert_eq!(report.by(mechanism), FILE_BYTES, "{case}");
            assert!(fallbacks.is_empty(), "{case}: {report}");
            let waits = |side| side != Side::Source || mechanism == Mechanism::Copy;
            assert!(!harness.blocked.iter().any(|&side| !waits(side)), "{case}");
        }
        (Blocked(side), Ok(())) => {
            assert_eq!(report.by(mechanism), FILE_BYTES, "{case}");
            assert!(harness.blocked.contains(&side), "{case}");
            assert!(fallbacks.is_empty(), "{case}: {report}");
        }
        (FallsBack | CopiesOnce, Ok(())) => {
            let [fallback] = fallbacks else {
                panic!("{case}: {report}");
            };
            let (from, to) = (fallback.from, fallback.to);
            assert_eq!((from, to), (mechanism, Mechanism::Copy), "{case}");
            assert_eq!(fallback.errno, crate::Errno::of(errno), "{case}");
            let copied = report.by(Mechanism::Copy);
            assert_eq!(report.by(mechanism) + copied, FILE_BYTES, "{case}");
            match expected {
                FallsBack => assert_eq!(fallback.at, report.by(mechanism), "{case}"),
                _ => assert!(copied > 0 && copied <= MAX_BYTES_PER_CALL as u64, "{case}"),
            }
            let refusal = harness.transfer.support().refusal(mechanism);
            assert_eq!(refusal.is_some(), expected == FallsBack, "{case}");
        }
        (Fails(kind), Err(error)) => {
            assert_eq!(error.kind(), kind, "{case}");
            assert_eq!(error.moved(), report.bytes(), "{case}");
            assert_eq!(error.call(), Some(call.system_call()), "{case}");
            assert_eq!(error.raw_os_error(), Some(errno.raw_os_error()), "{case}");
            let arrived = report.bytes() as usize;
            return harness.sink.expect(&sent[..arrived], &case);
        }
        (SinkFails, Err(error)) => {
            assert_eq!(error.kind(), ErrorKind::Sink, "{case}");
            assert_eq!(error.moved(), report.bytes(), "{case}");
            assert_eq!(error.raw_os_error(), Some(errno.raw_os_error()), "{case}");
            let arrived = report.bytes() as usize;
            harness.sink.expect(&sent[..arrived], &case);
            harness.run(&kernel).expect("the cause is gone");
            assert_eq!(harness.bytes_by(mechanism), FILE_BYTES, "{case}");
        }
        (expected, result) => panic!("{case}: {result:?} instead of {expected:?}"),
    }
    assert_eq!(harness.transfer.held_bytes(), 0, "{case}");
    let made = kernel.calls(call).len();
    assert!(made > 0, "{case}: the call that should fail was not made");
    harness.sink.expect(&sent, &case);
}

fn check_rows(mechanism: Mechanism, sink: fn() -> Sink, rows: &[ErrnoRow], indexes: &[usize]) {
    for &(call, errno, expected) in rows {
        for &nth in indexes {
            let rule = FaultRule::once(call, nth, Fault::Fails(errno));
            check(mechanism, sink, &[rule], call, errno, expected);
        }
    }
}

#[test]
fn copy_to_a_file_follows_its_table() {
    check_rows(Mechanism::Copy, Sink::file, COPY, &CALL_INDEXES);
}

#[test]
fn splice_to_a_file_follows_its_tables() {
    let splice = Mechanism::Splice;
    let rows = [SPLICE_RECEIVE, SPLICE_TO_FILE].concat();
    check_rows(splice, Sink::file, &rows, &CALL_INDEXES);
    check_rows(splice, Sink::file, SPLICE_PREPARES, &[0]);
}

#[test]
fn splice_to_a_pipe_follows_its_tables() {
    check_rows(Mechanism::Splice, Sink::pipe, SPLICE_RECEIVE, &CALL_INDEXES);
}

#[test]
fn discard_follows_its_table() {
    let discard = Mechanism::Discard;
    check_rows(discard, Sink::null, DISCARD, &CALL_INDEXES);
    check_rows(discard, Sink::null, DISCARD_PREPARES, &[0]);
    // The kernel reports kernel TLS.
    let rule = FaultRule::once(HasUpperProtocol, 0, Fault::ReturnsZero);
    let errno = Errno::OPNOTSUPP;
    check(
        discard,
        Sink::null,
        &[rule],
        HasUpperProtocol,
        errno,
        FallsBack,
    );
}

/// `EAGAIN` of `splice` has several meanings, which two other calls tell apart.
#[test]
fn splice_that_moves_nothing_finds_out_why() {
    let again = |call, nth, times| FaultRule::during(call, nth..nth + times, fails(Errno::AGAIN));
    for sink in [Sink::file, Sink::pipe] {
        for nth in CALL_INDEXES {
            let check = |rules: &[FaultRule], call, errno, expected| {
                check(Mechanism::Splice, sink, rules, call, errno, expected);
            };
            // The socket has bytes, but they cannot be spliced.
            let rules = [again(SpliceReceive, nth, 2)];
            check(&rules, SpliceReceive, Errno::AGAIN, CopiesOnce);
            // The same, if the call says so by returning 0.
            let zeroes = FaultRule::during(SpliceReceive, nth..nth + 2, Fault::ReturnsZero);
            check(&[zeroes], SpliceReceive, Errno::AGAIN, CopiesOnce);
            // The socket is empty.
            let rules = [again(SpliceReceive, nth, 1), again(Peek, 0, 1)];
            check(&rules, Peek, Errno::AGAIN, Blocked(Side::Source));
            // Peeking is interrupted, or fails.
            let interrupted = FaultRule::once(Peek, 0, fails(Errno::INTR));
            let rules = [again(SpliceReceive, nth, 1), interrupted];
            check(&rules, Peek, Errno::INTR, NoEffect);
            let reset = FaultRule::once(Peek, 0, fails(Errno::CONNRESET));
            let rules = [again(SpliceReceive, nth, 1), reset];
            check(&rules, Peek, Errno::CONNRESET, PEER_CLOSED);
            // The second attempt fails.
            let invalid = FaultRule::once(SpliceReceive, nth + 1, fails(Errno::INVAL));
            let rules = [again(SpliceReceive, nth, 1), invalid];
            check(&rules, SpliceReceive, Errno::INVAL, FallsBack);
        }
    }
}

/// If the sink is a full pipe, the transfer must wait for its reader, not for the socket.
#[test]
fn a_full_pipe_blocks_the_sink() {
    let full = FaultRule::once(IsWritable, 0, Fault::ReturnsZero);
    let again = FaultRule::once(SpliceReceive, 3, fails(Errno::AGAIN));
    let (call, errno) = (IsWritable, Errno::AGAIN);
    let expected = Blocked(Side::Sink);
    check(
        Mechanism::Splice,
        Sink::pipe,
        &[full, again],
        call,
        errno,
        expected,
    );
}

/// A call that moves nothing and reports no error must not be taken for success.
#[test]
fn calls_that_return_zero_are_not_repeated_for_ever() {
    let zero = FaultRule::once(SpliceToFile, 2, Fault::ReturnsZero);
    let splice = Mechanism::Splice;
    check(
        splice,
        Sink::file,
        &[zero],
        SpliceToFile,
        Errno::IO,
        FallsBack,
    );

    let zero = FaultRule::once(WriteCall, 2, Fault::ReturnsZero);
    let copy = Mechanism::Copy;
    check(copy, Sink::file, &[zero], WriteCall, Errno::IO, SinkFails);
}

/// The bytes that `splice` leaves in its pipe must be read out of it before any are received.
#[test]
fn a_pipe_that_cannot_be_read_is_an_error() {
    for fault in [fails(Errno::IO), Fault::ReturnsZero] {
        let rules = vec![
            FaultRule::once(SpliceToFile, 1, fails(Errno::INVAL)),
            FaultRule::once(ReadHere, 0, fault),
        ];
        let kernel = FaultyKernel::new(rules).max_bytes_per_call(MAX_BYTES_PER_CALL);
        let plan = [Mechanism::Splice, Mechanism::Copy];
        let mut harness = Harness::new(Sink::file(), pattern(50_000), Length::UntilEof, &plan);
        let error = harness.run(&kernel).expect_err("the pipe cannot be read");
        assert_eq!(error.kind(), ErrorKind::Source);
        assert_eq!(
            (error.call(), error.moved()),
            (Some("read"), MAX_BYTES_PER_CALL as u64)
        );
        assert_eq!(harness.transfer.held_bytes(), MAX_BYTES_PER_CALL as u64);
        harness.run(&kernel).expect("the cause is gone");
        harness.sink.expect(&pattern(50_000), "read again");
    }
}

/// Every mechanism after `splice` must first pass on the bytes that are in its pipe.
#[test]
fn another_mechanism_begins_with_the_bytes_in_the_pipe() {
    for length in [Length::Exact(50_000), Length::UntilEof] {
        let plan = [Mechanism::Splice, Mechanism::Discard];
        let rules = vec![FaultRule::once(SpliceToFile, 1, fails(Errno::INVAL))];
        let kernel = FaultyKernel::new(rules).max_bytes_per_call(MAX_BYTES_PER_CALL);
        let mut harness = Harness::new(Sink::null(), pattern(50_000), length, &plan);
        harness.run(&kernel).expect("received");
        let taken = MAX_BYTES_PER_CALL as u64;
        assert_eq!(harness.bytes_by(Mechanism::Splice), taken);
        assert_eq!(harness.bytes_by(Mechanism::Copy), taken, "from the pipe");
        assert_eq!(harness.bytes_by(Mechanism::Discard), 50_000 - 2 * taken);
        assert_eq!(harness.transfer.held_bytes(), 0);
    }
}

/// The next transfer of the thread uses the same pipe, unless it was too narrow.
#[test]
fn only_wide_pipes_are_used_again() {
    let receive = |kernel: FaultyKernel| {
        let plan = [Mechanism::Splice];
        let mut harness = Harness::new(Sink::file(), pattern(9_000), Length::UntilEof, &plan);
        harness.run(&kernel).expect("received");
        kernel.calls(Pipe).len()
    };
    let narrow = FaultRule::during(ResizePipe, 0..usize::MAX, fails(Errno::PERM));
    assert_eq!(receive(FaultyKernel::new(vec![narrow])), 2);
    assert_eq!(receive(faultless()), 1);
    assert_eq!(receive(faultless()), 0);
}

/// The kernel copies what is spliced into a file, and nothing that is spliced into a pipe.
#[test]
fn the_report_counts_what_the_kernel_copies() {
    for (sink, copied) in [
        (Sink::file(), FILE_BYTES),
        (Sink::pipe(), 0),
        (Sink::null(), 0),
    ] {
        let plan = [Mechanism::Splice];
        let mut harness = Harness::new(sink, pattern(FILE_BYTES), Length::UntilEof, &plan);
        harness.run(&faultless()).expect("received");
        let report = harness.transfer.report();
        assert_eq!(report.by(Mechanism::Splice), FILE_BYTES);
        assert_eq!(report.kernel_copied(), copied);
        assert_eq!(report.zero_copy_bytes(), FILE_BYTES - copied);
    }
}

/// The bytes after the length stay in the socket.
#[test]
fn no_byte_after_the_length_is_taken() {
    let sinks = [
        (Mechanism::Copy, Sink::file as fn() -> Sink),
        (Mechanism::Splice, Sink::file),
        (Mechanism::Splice, Sink::pipe),
        (Mechanism::Discard, Sink::null),
    ];
    for (mechanism, sink) in sinks {
        let kernel = faultless().max_bytes_per_call(MAX_BYTES_PER_CALL);
        let length = Length::Exact(FILE_BYTES - 1000);
        let mut harness = Harness::new(sink(), pattern(FILE_BYTES), length, &[mechanism]);
        harness.run(&kernel).expect("received");
        send_rest(&harness.peer, &mut harness.unsent);
        let mut rest = Vec::new();
        harness.source.set_nonblocking(false).expect("set");
        harness.source.read_to_end(&mut rest).expect("read");
        let all = pattern(FILE_BYTES);
        assert!(
            rest == all[all.len() - 1000..],
            "{mechanism}: {}",
            rest.len()
        );
    }
}

/// At the largest offset of a file, the transfer fails before it takes a byte.
#[test]
fn a_transfer_to_past_the_largest_file_takes_no_byte() {
    for offset in [i64::MAX as u64, u64::MAX] {
        let (source, mut peer) = tcp_pair();
        peer.write_all(b"hello").expect("sent");
        let file = tempfile::tempfile().expect("a file");
        let plan = Plan::of(&[Mechanism::Copy]);
        let mut transfer = ReceiveTransfer::new(Some(offset), Length::Exact(5), plan);
        let error = transfer.step(&source, &file).expect_err("no such offset");
        assert_eq!((error.kind(), error.moved()), (ErrorKind::Sink, 0));
        assert_eq!(error.raw_os_error(), Some(libc::EFBIG));
        assert_eq!(transfer.held_bytes(), 0);
    }
}

/// Whole blocks are written with `O_DIRECT`, and the rest with a second descriptor.
#[test]
fn faults_of_a_direct_file_lose_no_byte() {
    let reopen = |errno| (FaultRule::once(Reopen, 0, fails(errno)), Some(("open", 0)));
    let cases = [
        (FaultRule::once(Reopen, 0, fails(Errno::INTR)), None),
        reopen(Errno::NOENT),
        reopen(Errno::ACCESS),
        // Larger blocks than those that the library writes.
        (
            FaultRule::during(WriteCall, 1..2, fails(Errno::INVAL)),
            None,
        ),
        (
            FaultRule::once(WriteCall, 1, fails(Errno::NOSPC)),
            Some(("pwrite", 4095)),
        ),
    ];
    for (rule, expected) in cases {
        let file = tempfile::NamedTempFile::new_in(".").expect("a file");
        let direct = std::fs::OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(file.path())
            .expect("a file system with O_DIRECT");
        let case = format!("{rule:?}");
        let kernel = FaultyKernel::new(vec![rule]);
        let (source, mut peer) = tcp_pair();
        peer.write_all(&pattern(50_000)).expect("sent");
        drop(peer);
        let mut transfer = ReceiveTransfer::new(Some(1), Length::UntilEof, Plan::copying());
        let mut run = || loop {
            wait_until_readable(&source);
            match transfer.step_with(&kernel, source.as_fd(), direct.as_fd(), false) {
                Ok(Progress::Done) => return None,
                Ok(_) => {}
                Err(error) => return Some((error.call().unwrap_or(""), error.moved())),
            }
        };
        let failure = run();
        assert_eq!(failure, expected, "{case}");
        if failure.is_some() {
            assert_eq!(run(), None, "{case}: the cause is gone");
        }
        let written = std::fs::read(file.path()).expect("read");
        assert!(written[1..] == pattern(50_000), "{case}");
        let is_whole = |call: &CallRecord| call.count.is_multiple_of(4096);
        assert!(kernel.calls(WriteCall).iter().any(is_whole), "{case}");
    }
}

/// Space that cannot be reserved is an error only if the disk lacks it.
#[test]
fn reserving_follows_its_table() {
    let file = tempfile::tempfile().expect("a file");
    let reserve_failing = |errno| {
        let kernel = FaultyKernel::new(vec![FaultRule::once(Reserve, 0, fails(errno))]);
        let result = reserve(&kernel, file.as_fd(), Some(7), Length::Exact(100));
        (result, kernel.calls(Reserve).len())
    };
    for errno in [Errno::OPNOTSUPP, Errno::NOSYS, Errno::PERM, Errno::NODEV] {
        assert!(matches!(reserve_failing(errno), (Ok(()), 1)), "{errno}");
    }
    assert!(matches!(reserve_failing(Errno::INTR), (Ok(()), 2)));
    for errno in [Errno::NOSPC, Errno::DQUOT, Errno::FBIG, Errno::IO] {
        let (result, _) = reserve_failing(errno);
        let error = result.expect_err("not reserved");
        assert_eq!((error.kind(), error.moved()), (ErrorKind::Sink, 0));
        assert_eq!(error.call(), Some("fallocate"));
        assert_eq!(error.raw_os_error(), Some(errno.raw_os_error()));
    }
    let kernel = faultless();
    let none = [
        (None, Length::Exact(5)),
        (Some(0), Length::Exact(0)),
        (Some(0), Length::UntilEof),
    ];
    for (offset, length) in none {
        reserve(&kernel, file.as_fd(), offset, length).expect("nothing to reserve");
    }
    assert!(kernel.calls(Reserve).is_empty());
}

fn fails(errno: Errno) -> Fault {
    Fault::Fails(errno)
}

const CALLS: [Call; 11] = [
    Pipe,
    ResizePipe,
    SpliceReceive,
    SpliceToFile,
    ReadHere,
    Recv,
    WriteCall,
    Peek,
    IsWritable,
    Discard,
    HasUpperProtocol,
];

/// Errors after which a transfer continues, with a retry, a fallback, or another run.
const SURVIVABLE: [Errno; 6] = [
    Errno::INTR,
    Errno::AGAIN,
    Errno::INVAL,
    Errno::OPNOTSUPP,
    Errno::NOMEM,
    Errno::NOSPC,
];

fn any_fault() -> impl Strategy<Value = FaultRule> {
    let call = prop::sample::select(&CALLS[..]);
    let errno = prop::sample::select(&SURVIVABLE[..]);
    (call, 0_usize..40, 1_usize..4, errno).prop_map(|(call, nth, times, errno)| {
        FaultRule::during(call, nth..nth + times, fails(errno))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// `Harness::step` checks the number of bytes after each step.
    #[test]
    fn the_bytes_are_exact_after_any_faults(
        rules in prop::collection::vec(any_fault(), 0..8),
        plan in Just(Mechanism::SOCKET_TO_FILE.to_vec()).prop_shuffle(),
        plan_len in 1..=Mechanism::SOCKET_TO_FILE.len(),
        max_bytes_per_call in 1_000_usize..60_000,
        small_pipes in any::<bool>(),
        into_a_pipe in any::<bool>(),
        size in 0_u64..150_000,
        length in prop::option::of(0_u64..160_000),
    ) {
        let kernel = FaultyKernel::new(rules).max_bytes_per_call(max_bytes_per_call);
        let kernel = if small_pipes { kernel.pipe_capacity(16 << 10) } else { kernel };
        let (length, expected) = match length {
            Some(length) => (Length::Exact(length), length),
            None => (Length::UntilEof, size),
        };
        let sink = if into_a_pipe { Sink::pipe() } else { Sink::file() };
        let mut harness = Harness::new(sink, pattern(size), length, &plan[..plan_len]);
        let result = harness.run(&kernel);
        let arrived = harness.transfer.report().bytes();
        prop_assert!(arrived <= expected.min(size));
        match result {
            Ok(()) => prop_assert_eq!(arrived, expected),
            Err(error) => {
                prop_assert_eq!(error.moved(), arrived);
                if let ErrorKind::SourceTooShort { promised } = error.kind() {
                    prop_assert_eq!((promised, arrived), (expected, size));
                }
            }
        }
        harness.sink.expect(&pattern(size)[..arrived as usize], "after faults");
    }
}
