//! Sends the same bytes with `copy` and with another mechanism, and compares the CPU time.

use std::fs::File;
use std::io::{self, Write as _};
use std::net::TcpStream;
use std::os::fd::OwnedFd;

use rustix::fs::MemfdFlags;
use rustix::time::{ClockId, clock_gettime};

use super::connection::Received;
use super::{Comparison, MAX_BYTES, MeasureError};
use crate::arena::{PageBuffer, Pages};
use crate::error::{Error, ErrorKind};
use crate::policy::Mechanism;
use crate::send::{SendFile, SendOptions, Sender};

/// Where the bytes of a trial come from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Payload {
    /// Permanently frozen pages.
    Pages,
    /// A file in the page cache.
    File,
}

/// How many bytes a trial sends, if that takes no more than [`MAX_SENDS`] sends.
const TRIAL_BYTES: usize = 256 << 10;

/// The most sends of a trial.
const MAX_SENDS: usize = 32;

/// What trials send from, and to.
pub(super) struct Trials<'a> {
    socket: &'a TcpStream,
    received: &'a Received,
    /// How many bytes the socket has accepted.
    sent: u64,
    pages: Pages,
    /// The senders of pages, one for each mechanism. They are kept, because a sender that is
    /// dropped while bytes are in the socket's queue leaves a descriptor open until they are not.
    senders: Vec<(Mechanism, Sender<&'a TcpStream>)>,
    /// `None` if the kernel refuses files in memory. Files are then not compared.
    file: Option<File>,
}

impl<'a> Trials<'a> {
    pub(super) fn new(socket: &'a TcpStream, received: &'a Received) -> Result<Self, MeasureError> {
        // Huge pages are what the documentation recommends for bytes that are sent many times.
        let buffer = PageBuffer::huge(MAX_BYTES).map(|mut buffer| {
            buffer.set_len(MAX_BYTES);
            buffer.fill(1);
            buffer
        });
        let pages = buffer
            .map_err(MeasureError::at("allocate memory"))?
            .freeze_permanently();
        let file = file_in_memory(&pages).ok();
        Ok(Self {
            socket,
            received,
            sent: 0,
            pages,
            senders: Vec::new(),
            file,
        })
    }

    /// Returns the CPU time of the mechanism, divided by that of `copy`. `None` if the mechanism is
    /// refused, or if the clock does not show the difference.
    pub(super) fn compare(
        &mut self,
        comparison: &Comparison,
        bytes: usize,
        is_copied_first: bool,
    ) -> Result<Option<f64>, MeasureError> {
        let mut run = |mechanism| self.run(comparison.payload, mechanism, bytes);
        let (copied, moved) = match is_copied_first {
            true => {
                let copied = run(Mechanism::Copy)?;
                (copied, run(comparison.mechanism)?)
            }
            false => {
                let moved = run(comparison.mechanism)?;
                (run(Mechanism::Copy)?, moved)
            }
        };
        let ratio = copied.zip(moved).map(|(copied, moved)| moved / copied);
        Ok(ratio.filter(|ratio| ratio.is_finite()))
    }

    /// Sends `bytes` bytes several times. Returns the CPU time of this thread, in seconds, or
    /// `None` if another mechanism has sent some of the bytes.
    fn run(
        &mut self,
        payload: Payload,
        mechanism: Mechanism,
        bytes: usize,
    ) -> Result<Option<f64>, MeasureError> {
        self.received.wait_for(self.sent)?;
        let sends = (TRIAL_BYTES / bytes).clamp(1, MAX_SENDS);
        let expected = (sends * bytes) as u64;
        let (seconds, outcome) = match payload {
            Payload::Pages => self.send_pages(mechanism, bytes, sends),
            Payload::File => match &self.file {
                Some(file) => self.send_file(file, mechanism, bytes, sends),
                None => return Ok(None),
            },
        };
        match outcome {
            Ok(moved) => {
                self.sent += expected;
                Ok((moved == expected).then_some(seconds))
            }
            Err((accepted, error)) => {
                self.sent += accepted;
                match error.kind() {
                    ErrorKind::Unsupported => Ok(None),
                    _ => Err(MeasureError::at("send")(error)),
                }
            }
        }
    }

    fn send_pages(&mut self, mechanism: Mechanism, bytes: usize, sends: usize) -> (f64, Outcome) {
        let pages = self.pages.slice(..bytes);
        let known = self.senders.iter().position(|(its, _)| *its == mechanism);
        let index = known.unwrap_or_else(|| {
            let options = SendOptions::default().force_mechanisms(&[mechanism]);
            self.senders
                .push((mechanism, Sender::with(self.socket, options)));
            self.senders.len() - 1
        });
        let (_, sender) = &mut self.senders[index];
        time(bytes, sends, || {
            sender.send(&pages).map(|sent| sent.report().by(mechanism))
        })
    }

    fn send_file(
        &self,
        file: &File,
        mechanism: Mechanism,
        bytes: usize,
        sends: usize,
    ) -> (f64, Outcome) {
        let send = SendFile::new(file)
            .range(..bytes as u64)
            .force_mechanisms(&[mechanism]);
        time(bytes, sends, || {
            send.to(&self.socket).map(|report| report.by(mechanism))
        })
    }
}

/// How many bytes the mechanism has moved. If a send has failed, how many bytes the socket has
/// accepted, and the error.
type Outcome = Result<u64, (u64, Error)>;

/// Makes sends of `bytes` bytes, and returns the CPU time of this thread, in seconds. `send`
/// returns how many bytes of a send the mechanism has moved.
fn time(
    bytes: usize,
    sends: usize,
    mut send: impl FnMut() -> Result<u64, Error>,
) -> (f64, Outcome) {
    let before = cpu_seconds();
    let mut moved = 0;
    for made in 0..sends {
        match send() {
            Ok(bytes) => moved += bytes,
            Err(error) => {
                let accepted = (made * bytes) as u64 + error.report().bytes();
                return (0.0, Err((accepted, error)));
            }
        }
    }
    (cpu_seconds() - before, Ok(moved))
}

/// Returns the CPU time of this thread, in seconds.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Returns a file that has these bytes and belongs to no file system that the program can see.
fn file_in_memory(bytes: &[u8]) -> io::Result<File> {
    let descriptor: OwnedFd = rustix::fs::memfd_create("uncopied", MemfdFlags::CLOEXEC)?;
    let mut file = File::from(descriptor);
    file.write_all(bytes)?;
    Ok(file)
}
