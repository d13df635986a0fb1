//! Checks the errno tables in the documentation of the mechanisms that move bytes between sockets.
//! For each row, one call fails with the errno: the first call of its kind, the second, or one in
//! the middle of the transfer.

use std::io::{self, Read};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::thread;

use proptest::prelude::*;
use rustix::io::Errno;

use super::faulty_kernel::Call::{
    Pipe, ReadHere, Recv, ResizePipe, Send, SpliceOut, SpliceReceive,
};
use super::faulty_kernel::{Call, Fault, FaultRule, FaultyKernel};
use super::{FILE_BYTES, MAX_STEPS, pattern, send_rest, tcp_pair};
use crate::error::{Error, ErrorKind};
use crate::mechanism::Side;
use crate::policy::{Length, Mechanism, Plan};
use crate::transfer::{Progress, RelayTransfer};

/// A transfer between two TCP sockets.
struct Harness {
    transfer: RelayTransfer,
    source: TcpStream,
    sender: TcpStream,
    /// What the sender has yet to send. It then shuts the connection down.
    unsent: Vec<u8>,
    sink: TcpStream,
    receiver: TcpStream,
    received: Vec<u8>,
    steps: usize,
    blocked: Vec<Side>,
}

impl Harness {
    fn new(sent: Vec<u8>, length: Length, plan: &[Mechanism]) -> Self {
        let (source, sender) = tcp_pair();
        let (sink, receiver) = tcp_pair();
        for socket in [&sender, &receiver] {
            socket.set_nonblocking(true).expect("set");
        }
        let mut transfer = RelayTransfer::new(length, Plan::of(plan));
        transfer.set_always_bulk();
        Self {
            transfer,
            source,
            sender,
            unsent: sent,
            sink,
            receiver,
            received: Vec::new(),
            steps: 0,
            blocked: Vec::new(),
        }
    }

    fn receive(&mut self) {
        let result = self.receiver.read_to_end(&mut self.received);
        let error = result.expect_err("the sink is not shut down");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    fn step(&mut self, kernel: &FaultyKernel) -> Result<Progress, Error> {
        self.steps += 1;
        assert!(self.steps < MAX_STEPS, "the transfer does not end");
        send_rest(&self.sender, &mut self.unsent);
        let (source, sink) = (self.source.as_fd(), self.sink.as_fd());
        let progress = self.transfer.step_with(kernel, source, sink);
        if let Ok(Progress::Blocked(side)) = progress {
            self.blocked.push(side);
        }
        self.receive();
        progress
    }

    fn run(&mut self, kernel: &FaultyKernel) -> Result<(), Error> {
        while self.step(kernel)? != Progress::Done {}
        assert!(self.transfer.is_done());
        Ok(())
    }

    /// Waits until the receiver has as many bytes as the sink has accepted, and asserts that they
    /// are the first bytes of `sent`.
    fn expect_arrived(&mut self, sent: &[u8], case: &str) {
        let accepted = self.transfer.report().bytes() as usize;
        while self.received.len() < accepted {
            thread::yield_now();
            self.receive();
        }
        let expected = &sent[..accepted];
        assert!(self.received == expected, "{case}: other bytes arrived");
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
    /// `copy` moves some bytes, and the mechanism the rest. It is no fallback.
    LooksWithRecv,
    /// The transfer fails.
    Fails(ErrorKind, Side),
}

use Expected::{Blocked, CopiesOnce, Fails, FallsBack, LooksWithRecv, NoEffect};

const fn source_fails(kind: ErrorKind) -> Expected {
    Fails(kind, Side::Source)
}

const fn sink_fails(kind: ErrorKind) -> Expected {
    Fails(kind, Side::Sink)
}

/// A call, its errno, and the expected result.
type ErrnoRow = (Call, Errno, Expected);

const COPY: &[ErrnoRow] = &[
    (Recv, Errno::AGAIN, Blocked(Side::Source)),
    (Recv, Errno::INTR, NoEffect),
    (Recv, Errno::CONNRESET, source_fails(ErrorKind::PeerClosed)),
    (Recv, Errno::NOTCONN, source_fails(ErrorKind::NotConnected)),
    (
        Recv,
        Errno::NOTSOCK,
        source_fails(ErrorKind::NotAStreamSocket),
    ),
    (Recv, Errno::NOMEM, source_fails(ErrorKind::Source)),
    (Send, Errno::AGAIN, Blocked(Side::Sink)),
    (Send, Errno::INTR, NoEffect),
    (Send, Errno::PIPE, sink_fails(ErrorKind::PeerClosed)),
    (Send, Errno::CONNRESET, sink_fails(ErrorKind::PeerClosed)),
    (Send, Errno::NOBUFS, sink_fails(ErrorKind::Sink)),
];

const SPLICE: &[ErrnoRow] = &[
    (SpliceReceive, Errno::AGAIN, LooksWithRecv),
    (SpliceReceive, Errno::INTR, NoEffect),
    (SpliceReceive, Errno::INVAL, FallsBack),
    (SpliceReceive, Errno::OPNOTSUPP, FallsBack),
    (SpliceReceive, Errno::SPIPE, FallsBack),
    (SpliceReceive, Errno::NOSYS, FallsBack),
    (SpliceReceive, Errno::PERM, FallsBack),
    (SpliceReceive, Errno::OVERFLOW, FallsBack),
    (SpliceReceive, Errno::NOMEM, FallsBack),
    (
        SpliceReceive,
        Errno::CONNRESET,
        source_fails(ErrorKind::PeerClosed),
    ),
    (SpliceReceive, Errno::IO, source_fails(ErrorKind::Source)),
    (SpliceOut, Errno::AGAIN, Blocked(Side::Sink)),
    (SpliceOut, Errno::INTR, NoEffect),
    (SpliceOut, Errno::INVAL, FallsBack),
    (SpliceOut, Errno::OPNOTSUPP, FallsBack),
    (SpliceOut, Errno::SPIPE, FallsBack),
    (SpliceOut, Errno::NOSYS, FallsBack),
    (SpliceOut, Errno::PERM, FallsBack),
    (SpliceOut, Errno::OVERFLOW, FallsBack),
    (SpliceOut, Errno::NOMEM, FallsBack),
    (SpliceOut, Errno::PIPE, sink_fails(ErrorKind::PeerClosed)),
    (
        SpliceOut,
        Errno::CONNRESET,
        sink_fails(ErrorKind::PeerClosed),
    ),
    (SpliceOut, Errno::IO, sink_fails(ErrorKind::Sink)),
];

/// The calls that are made once, at the start.
const SPLICE_PREPARES: &[ErrnoRow] = &[
    (Pipe, Errno::MFILE, CopiesOnce),
    (Pipe, Errno::NFILE, CopiesOnce),
    (Pipe, Errno::NOMEM, CopiesOnce),
    (ResizePipe, Errno::PERM, CopiesOnce),
    (ResizePipe, Errno::NOMEM, CopiesOnce),
    (ResizePipe, Errno::INTR, NoEffect),
];

/// The most bytes that one call moves: small enough that a transfer reaches every call in
/// [`CALL_INDEXES`].
const MAX_BYTES_PER_CALL: usize = 9_001;

const CALL_INDEXES: [usize; 3] = [0, 1, 17];

fn check_rows(mechanism: Mechanism, rows: &[ErrnoRow], indexes: &[usize]) {
    for &(call, errno, expected) in rows {
        for &nth in indexes {
            let rule = FaultRule::once(call, nth, Fault::Fails(errno));
            check(mechanism, &[rule], call, Some(errno), expected);
        }
    }
}

/// Injects these faults, moves bytes with `mechanism` and with `copy` as its fallback, and checks
/// that the effect is the expected one.
fn check(
    mechanism: Mechanism,
    rules: &[FaultRule],
    call: Call,
    errno: Option<Errno>,
    expected: Expected,
) {
    for length in [Length::Exact(FILE_BYTES), Length::UntilEof] {
        // In a new thread, because pipes are kept by the thread.
        thread::scope(|scope| {
            let check = || check_length(mechanism, rules, call, errno, expected, length);
            scope.spawn(check).join().expect("no panic");
        });
    }
}

fn check_length(
    mechanism: Mechanism,
    rules: &[FaultRule],
    call: Call,
    errno: Option<Errno>,
    expected: Expected,
    length: Length,
) {
    let case = format!("{mechanism}: {rules:?} of {length:?}, {expected:?}");
    let kernel = FaultyKernel::new(rules.to_vec()).max_bytes_per_call(MAX_BYTES_PER_CALL);
    let sent = pattern(FILE_BYTES);
    let mut harness = Harness::new(sent.clone(), length, &[mechanism, Mechanism::Copy]);
    let result = harness.run(&kernel);
    let report = harness.transfer.report().clone();
    let fallbacks = report.fallbacks();
    assert!(!kernel.calls(call).is_empty(), "{case}: no such call");
    match (expected, result) {
        (NoEffect | LooksWithRecv, Ok(())) => {
            assert!(fallbacks.is_empty(), "{case}: {report}");
        }
        (Blocked(side), Ok(())) => {
            assert!(harness.blocked.contains(&side), "{case}");
            assert!(fallbacks.is_empty(), "{case}: {report}");
        }
        (FallsBack | CopiesOnce, Ok(())) => {
            let [fallback] = fallbacks else {
                panic!("{case}: {report}");
            };
            let (from, to) = (fallback.from, fallback.to);
            assert_eq!((from, to), (mechanism, Mechanism::Copy), "{case}");
            assert_eq!(Some(fallback.errno), errno.map(crate::Errno::of), "{case}");
            let refusal = harness.transfer.support().refusal(mechanism);
            assert_eq!(refusal.is_some(), expected == FallsBack, "{case}");
        }
        (Fails(kind, side), Err(error)) => {
            assert_eq!(error.kind(), kind, "{case}");
            assert_eq!(error.side(), Some(side), "{case}");
            assert_eq!(error.moved(), report.bytes(), "{case}");
            assert_eq!(error.call(), Some(call.system_call()), "{case}");
            assert_eq!(
                error.raw_os_error(),
                errno.map(Errno::raw_os_error),
                "{case}"
            );
            return harness.expect_arrived(&sent, &case);
        }
        (expected, result) => panic!("{case}: {result:?} instead of {expected:?}"),
    }
    assert_eq!(report.bytes(), FILE_BYTES, "{case}");
    assert_eq!(harness.transfer.held_bytes(), 0, "{case}");
    if expected != FallsBack {
        assert!(report.by(mechanism) > 0, "{case}: {report}");
    }
    harness.expect_arrived(&sent, &case);
}

#[test]
fn copy_between_sockets_follows_its_table() {
    check_rows(Mechanism::Copy, COPY, &CALL_INDEXES);
}

#[test]
fn splice_between_sockets_follows_its_tables() {
    check_rows(Mechanism::Splice, SPLICE, &CALL_INDEXES);
    check_rows(Mechanism::Splice, SPLICE_PREPARES, &[0]);
    for nth in CALL_INDEXES {
        let zero = FaultRule::once(SpliceReceive, nth, Fault::ReturnsZero);
        check(
            Mechanism::Splice,
            &[zero],
            SpliceReceive,
            None,
            LooksWithRecv,
        );
    }
}

/// Bytes that are in the pipe when `copy` takes over are read from it. If that fails, they are
/// lost, and the transfer fails.
#[test]
fn bytes_in_the_pipe_are_copied_after_a_fallback() {
    let refused = || FaultRule::once(SpliceOut, 1, Fault::Fails(Errno::INVAL));
    let errno = Some(Errno::INVAL);
    check(Mechanism::Splice, &[refused()], ReadHere, errno, FallsBack);
    for nth in [0, 1] {
        let interrupted = FaultRule::once(ReadHere, nth, Fault::Fails(Errno::INTR));
        check(
            Mechanism::Splice,
            &[refused(), interrupted],
            ReadHere,
            errno,
            FallsBack,
        );
    }
    let rules = [
        refused(),
        FaultRule::once(ReadHere, 0, Fault::Fails(Errno::IO)),
    ];
    let expected = source_fails(ErrorKind::Source);
    check(
        Mechanism::Splice,
        &rules,
        ReadHere,
        Some(Errno::IO),
        expected,
    );
}

/// A plan with a mechanism that does not move bytes between sockets falls back.
#[test]
fn other_mechanisms_are_unsupported() {
    let kernel = FaultyKernel::new(Vec::new());
    let sent = pattern(FILE_BYTES);
    let plan = [Mechanism::Sendfile, Mechanism::Copy];
    let mut harness = Harness::new(sent.clone(), Length::UntilEof, &plan);
    harness.run(&kernel).expect("copied");
    assert_eq!(harness.transfer.report().by(Mechanism::Copy), FILE_BYTES);
    harness.expect_arrived(&sent, "sendfile");
}

/// Bytes of the stream after an exact length stay in the source.
#[test]
fn bytes_after_the_length_stay_in_the_source() {
    for mechanism in Mechanism::SOCKET_TO_SOCKET {
        let kernel = FaultyKernel::new(Vec::new());
        let sent = pattern(FILE_BYTES);
        let length = Length::Exact(FILE_BYTES - 1_000);
        let mut harness = Harness::new(sent.clone(), length, &[mechanism]);
        harness.run(&kernel).expect("moved");
        harness.expect_arrived(&sent, mechanism.name());
        assert_eq!(harness.received.len() as u64, FILE_BYTES - 1_000);
        let mut rest = Vec::new();
        harness.source.set_nonblocking(false).expect("set");
        harness.source.read_to_end(&mut rest).expect("read");
        assert!(rest == sent[sent.len() - 1_000..], "{mechanism}");
    }
}

#[test]
fn a_stream_that_ends_early_is_an_error() {
    let kernel = FaultyKernel::new(Vec::new());
    let mut harness = Harness::new(pattern(5), Length::Exact(6), &[Mechanism::Splice]);
    let error = harness.run(&kernel).expect_err("too short");
    assert_eq!(error.kind(), ErrorKind::SourceTooShort { promised: 6 });
    assert_eq!((error.moved(), error.side()), (5, Some(Side::Source)));
}

/// Returns a rule by which some call fails for a reason that a transfer survives.
fn survivable() -> impl Strategy<Value = FaultRule> {
    let call = prop::sample::select(vec![Recv, Send, SpliceReceive, SpliceOut, ReadHere, Pipe]);
    let errno = prop::sample::select(vec![Errno::AGAIN, Errno::INTR, Errno::INVAL, Errno::MFILE]);
    (call, 0..30_usize, errno).prop_map(|(call, nth, errno)| {
        let errno = match (call, errno) {
            (Pipe, _) => Errno::MFILE,
            (ReadHere, _) => Errno::INTR,
            (Recv | Send, Errno::INVAL | Errno::MFILE) => Errno::AGAIN,
            (_, Errno::MFILE) => Errno::OPNOTSUPP,
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
        max_bytes in 500..70_000_usize,
        prefix in 0..40_000_usize,
    ) {
        let kernel = FaultyKernel::new(rules).max_bytes_per_call(max_bytes);
        let sent = pattern(FILE_BYTES);
        let plan = [Mechanism::Splice, Mechanism::Copy];
        let mut harness = Harness::new(sent[prefix..].to_vec(), Length::UntilEof, &plan);
        harness.transfer = RelayTransfer::new(Length::UntilEof, Plan::of(&plan))
            .after(sent[..prefix].to_vec());
        harness.run(&kernel).expect("moved");
        prop_assert_eq!(harness.transfer.report().bytes(), FILE_BYTES);
        harness.expect_arrived(&sent, "faults");
    }
}
