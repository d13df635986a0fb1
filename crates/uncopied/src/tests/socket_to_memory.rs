//! Checks the errno tables in the documentation of the mechanisms that receive into memory. For
//! each row, one call fails with the errno: the first call of its kind, the second, or a later one.

use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::thread;

use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::faulty_kernel::Call::{HasUpperProtocol, MapReceive, MapWindow, Recv};
use super::faulty_kernel::{Call, Fault, FaultRule, FaultyKernel};
use super::pattern;
use crate::arena::ChunkPart;
use crate::error::{Error, ErrorKind};
use crate::mechanism::socket_to_memory::{MemorySource, Waiting};
use crate::policy::{Mechanism, Plan};
use crate::receive::PagePayload;
use crate::report::Report;
use crate::send::{SendOptions, Sender};
use crate::transfer::{ChunkProgress, ChunkTransfer};

/// The effect that a fault must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// The mechanism goes on, and reports nothing.
    NoEffect,
    /// Some bytes are copied, and then the mechanism goes on.
    CopiesOnce,
    /// `copy` receives the rest.
    FallsBack,
    /// The transfer fails.
    Fails(ErrorKind),
}

use Expected::{CopiesOnce, Fails, FallsBack, NoEffect};

const SOURCE_FAILS: Expected = Fails(ErrorKind::Source);
const PEER_CLOSED: Expected = Fails(ErrorKind::PeerClosed);
const NOT_CONNECTED: Expected = Fails(ErrorKind::NotConnected);
const NOT_A_SOCKET: Expected = Fails(ErrorKind::NotAStreamSocket);

/// A call, its errno, and the expected result.
type ErrnoRow = (Call, Errno, Expected);

const MAP_RECEIVE: &[ErrnoRow] = &[
    (MapReceive, Errno::IO, NoEffect),
    (MapReceive, Errno::INTR, NoEffect),
    (MapReceive, Errno::INVAL, FallsBack),
    (MapReceive, Errno::OPNOTSUPP, FallsBack),
    (MapReceive, Errno::NOPROTOOPT, FallsBack),
    (MapReceive, Errno::NODEV, FallsBack),
    (MapReceive, Errno::ACCESS, FallsBack),
    (MapReceive, Errno::NOMEM, CopiesOnce),
    (MapReceive, Errno::NOBUFS, CopiesOnce),
    (MapReceive, Errno::BUSY, CopiesOnce),
    (MapReceive, Errno::FAULT, CopiesOnce),
    (MapReceive, Errno::CONNRESET, PEER_CLOSED),
    (MapReceive, Errno::NOTCONN, NOT_CONNECTED),
    (MapReceive, Errno::NOTSOCK, NOT_A_SOCKET),
    (MapReceive, Errno::TIMEDOUT, SOURCE_FAILS),
    (MapWindow, Errno::INVAL, FallsBack),
    (MapWindow, Errno::NODEV, FallsBack),
    (MapWindow, Errno::ACCESS, FallsBack),
    (MapWindow, Errno::NOMEM, CopiesOnce),
    (HasUpperProtocol, Errno::OPNOTSUPP, FallsBack),
    (HasUpperProtocol, Errno::NOMEM, CopiesOnce),
];

const COPY: &[ErrnoRow] = &[
    (Recv, Errno::INTR, NoEffect),
    (Recv, Errno::AGAIN, NoEffect),
    (Recv, Errno::CONNRESET, PEER_CLOSED),
    (Recv, Errno::CONNABORTED, PEER_CLOSED),
    (Recv, Errno::NOTCONN, NOT_CONNECTED),
    (Recv, Errno::NOTSOCK, NOT_A_SOCKET),
    (Recv, Errno::NOMEM, SOURCE_FAILS),
    (Recv, Errno::TIMEDOUT, SOURCE_FAILS),
];

/// The number of bytes that the peer sends: more than a few chunks, and not whole pages.
const STREAM_BYTES: usize = 300_001;
const CHUNK_BYTES: usize = 32 << 10;

/// Returns two connected sockets over which payloads are whole pages.
fn page_pair() -> (TcpStream, TcpStream) {
    let listener = PagePayload::new(1).expect("valid").bind("127.0.0.1:0");
    let listener: TcpListener = listener.expect("bound");
    let address = listener.local_addr().expect("an address");
    let peer = TcpStream::connect(address).expect("connected");
    let (socket, _) = listener.accept().expect("accepted");
    (socket, peer)
}

fn zero_copy_sender(socket: TcpStream) -> Sender<TcpStream> {
    let options = SendOptions::default().force_mechanisms(&[Mechanism::MsgZerocopy]);
    Sender::with(socket, options)
}

/// Returns a socket whose queue holds the stream, which has ended.
fn socket_with_stream() -> TcpStream {
    let (socket, peer) = page_pair();
    // The receiver may stop early.
    thread::spawn(move || send_stream(peer).ok());
    socket
}

/// Sends pages that can be mapped, and before and after them bytes that cannot.
fn send_stream(peer: TcpStream) -> Result<(), Box<dyn std::error::Error>> {
    let mut sender = zero_copy_sender(peer);
    let pages = STREAM_BYTES / 4096 * 4096;
    let stream = pattern(STREAM_BYTES as u64);
    sender.get_ref().write_all(&stream[..100])?;
    sender.send(stream[100..pages + 100].to_vec())?;
    let mut socket = sender.get_ref();
    socket.write_all(&stream[pages + 100..])?;
    Ok(socket.shutdown(Shutdown::Write)?)
}

/// A stream that is received chunk by chunk.
struct Stream {
    source: MemorySource,
    transfer: ChunkTransfer,
    socket: TcpStream,
    received: Vec<u8>,
}

impl Stream {
    fn new(socket: TcpStream) -> Self {
        Self {
            source: MemorySource::new(true, CHUNK_BYTES, 4, 0),
            transfer: ChunkTransfer::new(),
            socket,
            received: Vec::new(),
        }
    }

    /// Receives a chunk. Returns false at the end of the stream.
    fn receive(&mut self, kernel: &FaultyKernel, plan: Plan) -> Result<bool, Error> {
        self.transfer.begin(plan);
        let progress = loop {
            let (source, socket) = (&mut self.source, self.socket.as_fd());
            match self
                .transfer
                .step_with(kernel, source, socket, Waiting::Done)?
            {
                ChunkProgress::Moved | ChunkProgress::FellBack => {}
                ChunkProgress::Blocked => thread::yield_now(),
                progress => break progress,
            }
        };
        for part in self.source.take_chunk() {
            let at = self.received.len();
            self.received.resize(at + part.len(), 0);
            part.copy_to_slice(&mut self.received[at..]);
            assert!(!matches!(&part, ChunkPart::Mapped(pages) if pages.len() % 4096 != 0));
        }
        let received = self.received.len();
        assert!(self.received == pattern(STREAM_BYTES as u64)[..received]);
        assert_eq!(self.report().bytes(), received as u64);
        Ok(progress == ChunkProgress::Done)
    }

    /// Receives to the end of the stream.
    fn run(&mut self, kernel: &FaultyKernel, plan: Plan) -> Result<(), Error> {
        while self.receive(kernel, plan)? {}
        Ok(())
    }

    fn report(&self) -> &Report {
        self.transfer.report()
    }
}

/// Injects the errno into the `nth` call, and checks that the effect is the expected one.
fn check_row(mechanism: Mechanism, row: ErrnoRow, nth: usize) {
    let (call, errno, expected) = row;
    let case = format!("{mechanism}: {call:?} no. {nth} {errno:?}");
    let kernel = FaultyKernel::new(vec![FaultRule::once(call, nth, Fault::Fails(errno))]);
    let mut stream = Stream::new(socket_with_stream());
    let result = stream.run(&kernel, Plan::of(&[mechanism, Mechanism::Copy]));
    assert!(kernel.calls(call).len() > nth, "{case}: not reached");
    let report = stream.report();
    let fallbacks: Vec<_> = report.fallbacks().iter().map(|it| it.errno).collect();
    let of_errno = [crate::sys::Errno::of(errno)];
    match expected {
        Fails(kind) => {
            let error = result.expect_err(&case);
            assert_eq!(error.kind(), kind, "{case}: {error}");
            assert_eq!(error.moved(), stream.received.len() as u64, "{case}");
            assert_eq!(error.raw_os_error(), Some(errno.raw_os_error()), "{case}");
            return;
        }
        NoEffect => assert!(fallbacks.is_empty(), "{case}: {report}"),
        CopiesOnce => {
            assert_eq!(fallbacks, of_errno, "{case}");
            let support = &stream.source.support;
            assert_eq!(support.refusal(mechanism), None, "{case}");
        }
        FallsBack => {
            assert_eq!(fallbacks, of_errno, "{case}");
            let support = &stream.source.support;
            assert_eq!(support.refusal(mechanism), Some(of_errno[0]), "{case}");
        }
    }
    result.expect(&case);
    assert_eq!(stream.received.len(), STREAM_BYTES, "{case}");
    let mapped = report.by(Mechanism::MapReceive);
    if mechanism == Mechanism::MapReceive && expected != FallsBack {
        assert!(mapped > STREAM_BYTES as u64 / 3, "{case}: {report}");
    }
}

#[test]
fn map_receive_and_its_errnos() {
    for &row in MAP_RECEIVE {
        let calls: &[usize] = match row.0 {
            MapReceive => &[0, 1, 5],
            _ => &[0],
        };
        for &nth in calls {
            check_row(Mechanism::MapReceive, row, nth);
        }
    }
}

#[test]
fn copy_and_its_errnos() {
    for &row in COPY {
        for nth in [0, 1, 5] {
            check_row(Mechanism::Copy, row, nth);
        }
    }
}

/// `TCP_ZEROCOPY_RECEIVE` would take the encrypted bytes of a socket with kernel TLS.
#[test]
fn a_socket_with_an_upper_protocol_is_not_mapped() {
    let fault = Fault::ReturnsZero;
    let rule = FaultRule::during(HasUpperProtocol, 0..usize::MAX, fault);
    let kernel = FaultyKernel::new(vec![rule]);
    let mut stream = Stream::new(socket_with_stream());
    let plan = Plan::of(&[Mechanism::MapReceive, Mechanism::Copy]);
    stream.run(&kernel, plan).expect("received");
    assert!(kernel.calls(MapReceive).is_empty());
    let report = stream.report();
    assert_eq!(report.by(Mechanism::Copy), STREAM_BYTES as u64);
}

/// Sends pages that can be mapped and a few bytes that cannot, twice.
fn socket_with_pages_and_bytes() -> TcpStream {
    let (socket, peer) = page_pair();
    let mut sender = zero_copy_sender(peer);
    let stream = pattern(2 * 8197);
    for piece in stream.chunks(8197) {
        sender.send(piece[..8192].to_vec()).expect("sent");
        sender.get_ref().write_all(&piece[8192..]).expect("written");
    }
    let mut queued = vec![0; 2 * 8197];
    let all = RecvFlags::PEEK | RecvFlags::WAITALL;
    rustix::net::recv(&socket, &mut queued, all).expect("arrived");
    socket
}

/// An error of the connection is reported once, after all bytes that arrived before it.
#[test]
fn an_error_comes_after_the_last_byte() {
    for (call, nth) in [(Recv, 0), (Recv, 1), (MapReceive, 1), (MapReceive, 2)] {
        let fault = Fault::Fails(Errno::CONNRESET);
        let kernel = FaultyKernel::new(vec![FaultRule::once(call, nth, fault)]);
        let mut stream = Stream::new(socket_with_pages_and_bytes());
        let plan = Plan::of(&[Mechanism::MapReceive, Mechanism::Copy]);
        let error = loop {
            match stream.receive(&kernel, plan) {
                Ok(has_more) => assert!(has_more, "{call:?} {nth}"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::PeerClosed, "{error}");
        assert_eq!(error.moved(), stream.received.len() as u64);
        // The first `recv` fails after pages were mapped. These and the rest come first.
        if (call, nth) == (Recv, 0) {
            assert_eq!(stream.received.len(), 2 * 8197);
        }
        let left = 2 * 8197 - stream.received.len();
        if left > 0 {
            assert!(stream.receive(&kernel, plan).expect("the rest"));
        }
    }
}

/// A short chunk does not use up the buffer.
#[test]
fn a_short_chunk_leaves_the_buffer_to_the_next_one() {
    let (mut peer, socket) = super::tcp_pair();
    let mut stream = Stream::new(socket);
    let kernel = FaultyKernel::new(Vec::new());
    let mut parts = Vec::new();
    for at in 0..3 {
        peer.write_all(&pattern(3)[at..=at]).expect("written");
        stream.transfer.begin(Plan::copying());
        loop {
            let (source, socket) = (&mut stream.source, stream.socket.as_fd());
            let progress = stream
                .transfer
                .step_with(&kernel, source, socket, Waiting::Done);
            if progress.expect("received") == ChunkProgress::Done {
                break;
            }
        }
        parts.extend(stream.source.take_chunk());
    }
    for part in parts {
        let ChunkPart::Copied(pages) = part else {
            panic!("mapped");
        };
        let buffer = pages.try_into_buffer().expect("the only handle");
        assert_eq!(buffer.capacity(), rustix::param::page_size());
    }
}
