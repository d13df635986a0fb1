//! Every errno arm of every mechanism, at every place where it can happen, over real files and
//! sockets: [`Faulty`] makes the calls and fails the ones that a test names.

mod arms;
mod kernel;
mod memory;
mod random;
mod rules;

use std::fs::File;
use std::io::{ErrorKind as Io, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;

use kernel::{Call, Fault, FaultRule, Faulty};

use crate::error::Error;
use crate::mechanism::Side;
use crate::policy::{Length, Mechanism, Plan};
use crate::transfer::{Progress, Transfer};

/// More than one pipe, buffer and page; not a multiple of anything.
const SIZE: u64 = 300_001;

/// Steps after which a transfer of [`SIZE`] bytes is taken to hang.
const MAX_STEPS: usize = 2_000_000;

/// A transfer over a Unix socket, with what has come out at the other end.
struct Bench {
    file: File,
    content: Vec<u8>,
    transfer: Transfer,
    offset: u64,
    sink: UnixStream,
    peer: UnixStream,
    received: Vec<u8>,
    steps: usize,
    blocked: Vec<Side>,
}

impl Bench {
    fn new(offset: u64, length: Length, plan: &[Mechanism]) -> Self {
        Self::of(content(SIZE), offset, length, plan)
    }

    fn of(content: Vec<u8>, offset: u64, length: Length, plan: &[Mechanism]) -> Self {
        let file = tempfile::tempfile().expect("a temporary file");
        file.write_all_at(&content, 0).expect("written");
        let (sink, peer) = UnixStream::pair().expect("a pair of sockets");
        for end in [&sink, &peer] {
            end.set_nonblocking(true).expect("non-blocking");
        }
        Self {
            file,
            content,
            transfer: Transfer::new(offset, length, Plan::of(plan)),
            offset,
            sink,
            peer,
            received: Vec::new(),
            steps: 0,
            blocked: Vec::new(),
        }
    }

    /// One step, after which the peer takes all there is.
    fn step(&mut self, kernel: &Faulty) -> Result<Progress, Error> {
        self.steps += 1;
        assert!(self.steps < MAX_STEPS, "the transfer does not end");
        let progress = self
            .transfer
            .step_with(kernel, self.file.as_fd(), self.sink.as_fd());
        if let Ok(Progress::Blocked(side)) = progress {
            self.blocked.push(side);
        }
        self.receive();
        self.check();
        progress
    }

    /// Steps to the end.
    fn run(&mut self, kernel: &Faulty) -> Result<(), Error> {
        while self.step(kernel)? != Progress::Done {}
        Ok(())
    }

    /// Steps to the end, whatever arrives.
    fn run_unchecked(&mut self, kernel: &Faulty) -> Result<(), Error> {
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

    /// What has arrived is an exact prefix, and every count agrees with it.
    fn check(&self) {
        let arrived = self.received.len();
        let from = usize::try_from(self.offset).unwrap_or(usize::MAX);
        let expected = from
            .checked_add(arrived)
            .and_then(|end| self.content.get(from..end));
        assert!(
            arrived == 0 || expected == Some(&self.received),
            "the {arrived} bytes that arrived are not the file's"
        );
        assert_eq!(self.transfer.report().bytes(), arrived as u64);
        assert_eq!(self.transfer.offset(), self.offset + arrived as u64);
    }

    fn by(&self, mechanism: Mechanism) -> u64 {
        self.transfer.report().by(mechanism)
    }
}

/// Bytes that differ from place to place, so that none can be lost, doubled or swapped unseen.
fn content(size: u64) -> Vec<u8> {
    static ALL: LazyLock<Vec<u8>> = LazyLock::new(|| {
        (0..2 * SIZE)
            .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
            .collect()
    });
    ALL[..size as usize].to_vec()
}

/// A kernel that does as asked.
fn sound() -> Faulty {
    Faulty::new(Vec::new())
}

/// A kernel that fails the `nth` call of this kind, counted from 0, and every call of which moves at
/// most `at_most` bytes.
fn failing(call: Call, nth: usize, fault: Fault, at_most: usize) -> Faulty {
    Faulty::new(vec![FaultRule::once(call, nth, fault)]).at_most(at_most)
}
