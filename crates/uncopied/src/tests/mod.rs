//! Tests every error arm of the mechanisms that make their system calls through
//! [`Kernel`](crate::sys::Kernel), for each kind of call that can fail with the error. The tests
//! use real files and sockets. A [`FaultyKernel`] makes the real calls, except for those that the
//! test wants to fail.

/// The documented errno tables of the file mechanisms, row by row.
mod errno_tables;

/// The real kernel with scripted faults, and a record of the calls.
mod faulty_kernel;

/// The errno tables, limits and completions of the memory mechanisms.
mod memory_to_socket;

/// The errno tables of the mechanisms that receive into memory.
mod socket_to_memory;

/// The errno tables of the mechanisms that receive into files, and random faults.
mod socket_to_file;

/// The errno tables of the mechanisms that move bytes between sockets, and random faults.
mod socket_to_socket;

/// The errno tables of the mechanisms that move bytes between other descriptors, and random faults.
mod descriptor_to_descriptor;

/// Claims of the numbers that say which sends on a socket are complete.
mod socket_numbers;

/// Random faults in random plans.
mod random_faults;

/// Tests for bugs that other programs have shipped, which concern sizes, offsets, signals, full
/// pipes, and files that change.
mod edge_cases;

use std::fs::File;
use std::io::{ErrorKind as Io, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;

use faulty_kernel::{Call, Fault, FaultRule, FaultyKernel};

use crate::error::Error;
use crate::mechanism::Side;
use crate::policy::{Length, Mechanism, Plan};
use crate::transfer::{Progress, Transfer};

/// The size of the files that are sent: larger than a page, a pipe and `copy`'s buffer, and not a
/// multiple of any of these sizes.
const FILE_BYTES: u64 = 300_001;

/// A transfer of [`FILE_BYTES`] that takes this many steps is considered to hang.
const MAX_STEPS: usize = 2_000_000;

/// Returns two connected sockets, the first of which is non-blocking.
fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = listener.local_addr().expect("an address");
    let socket = TcpStream::connect(address).expect("connected");
    socket.set_nonblocking(true).expect("set");
    (socket, listener.accept().expect("accepted").0)
}

/// Sends as much of `unsent` as the socket accepts, and removes it. Once nothing is left, shuts the
/// connection down.
fn send_rest(mut socket: &TcpStream, unsent: &mut Vec<u8>) {
    while !unsent.is_empty() {
        match socket.write(unsent) {
            Ok(sent) => drop(unsent.drain(..sent)),
            Err(error) if error.kind() == Io::WouldBlock => return,
            Err(error) => panic!("the peer could not send: {error}"),
        }
    }
    // This may be done several times.
    let _ = socket.shutdown(Shutdown::Write);
}

/// A transfer of a file over a pair of Unix sockets, and the bytes that the peer has received.
struct TransferHarness {
    file: File,
    /// The contents of the file, including bytes that a test appends while the file is sent.
    file_bytes: Vec<u8>,
    transfer: Transfer,
    offset: u64,
    sink: UnixStream,
    peer: UnixStream,
    received: Vec<u8>,
    steps: usize,
    /// For each step that was blocked, the side that it was blocked on.
    blocked: Vec<Side>,
}

impl TransferHarness {
    /// Creates a transfer of a file of [`FILE_BYTES`].
    fn new(offset: u64, length: Length, plan: &[Mechanism]) -> Self {
        Self::with_file(pattern(FILE_BYTES), offset, length, plan)
    }

    fn with_file(file_bytes: Vec<u8>, offset: u64, length: Length, plan: &[Mechanism]) -> Self {
        let file = tempfile::tempfile().expect("a temporary file");
        file.write_all_at(&file_bytes, 0).expect("written");
        let (sink, peer) = UnixStream::pair().expect("a pair of sockets");
        for end in [&sink, &peer] {
            end.set_nonblocking(true).expect("non-blocking");
        }
        Self {
            file,
            file_bytes,
            transfer: Transfer::new(offset, length, Plan::of(plan)),
            offset,
            sink,
            peer,
            received: Vec::new(),
            steps: 0,
            blocked: Vec::new(),
        }
    }

    /// Makes one step, reads everything that has arrived at the peer, and checks it against the
    /// file.
    fn step(&mut self, kernel: &FaultyKernel) -> Result<Progress, Error> {
        self.steps += 1;
        assert!(self.steps < MAX_STEPS, "the transfer does not end");
        let progress = self
            .transfer
            .step_with(kernel, self.file.as_fd(), self.sink.as_fd());
        if let Ok(Progress::Blocked(side)) = progress {
            self.blocked.push(side);
        }
        self.receive();
        self.check_received();
        progress
    }

    /// Steps until the transfer is done or fails.
    fn run(&mut self, kernel: &FaultyKernel) -> Result<(), Error> {
        while self.step(kernel)? != Progress::Done {}
        Ok(())
    }

    /// Like [`run`](Self::run), but does not check the bytes that arrive.
    fn run_unchecked(&mut self, kernel: &FaultyKernel) -> Result<(), Error> {
        loop {
            let progress = self
                .transfer
                .step_with(kernel, self.file.as_fd(), self.sink.as_fd());
            self.receive();
            if progress? == Progress::Done {
                return Ok(());
            }
        }
    }

    fn receive(&mut self) {
        let mut buffer = [0; 64 << 10];
        loop {
            match (&self.peer).read(&mut buffer) {
                Ok(0) => return,
                Ok(read) => self.received.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == Io::WouldBlock => return,
                Err(error) => panic!("the peer could not read: {error}"),
            }
        }
    }

    /// Asserts that the received bytes are a prefix of the bytes to send, and that the report and
    /// the offset agree with their number.
    fn check_received(&self) {
        let received = self.received.len();
        let start = usize::try_from(self.offset).unwrap_or(usize::MAX);
        let expected = start
            .checked_add(received)
            .and_then(|end| self.file_bytes.get(start..end));
        assert!(
            received == 0 || expected == Some(&self.received),
            "the {received} bytes that arrived are not those of the file"
        );
        assert_eq!(self.transfer.report().bytes(), received as u64);
        assert_eq!(self.transfer.offset(), self.offset + received as u64);
    }

    /// Returns how many bytes `mechanism` has moved, according to the report.
    fn bytes_by(&self, mechanism: Mechanism) -> u64 {
        self.transfer.report().by(mechanism)
    }
}

/// Returns `len` bytes that depend on their position, so that a test detects a byte that is lost,
/// duplicated or moved. A shorter pattern is a prefix of a longer one.
fn pattern(len: u64) -> Vec<u8> {
    static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
        (0..2 * FILE_BYTES)
            .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
            .collect()
    });
    BYTES[..len as usize].to_vec()
}

/// Returns a kernel without faults.
fn faultless() -> FaultyKernel {
    FaultyKernel::new(Vec::new())
}

/// Returns a kernel in which the `nth` call of a kind, counted from 0, has this fault. Every call
/// moves at most `max_bytes_per_call` bytes.
fn failing_once(call: Call, nth: usize, fault: Fault, max_bytes_per_call: usize) -> FaultyKernel {
    FaultyKernel::new(vec![FaultRule::once(call, nth, fault)])
        .max_bytes_per_call(max_bytes_per_call)
}
