//! Receives the bytes of one measurement on a thread of its own.

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use uncopied::policy::{Length, Plan};
use uncopied::{ErrorKind, ReceiveFile, ReceiveOptions, Receiver};
use uncopied_measure::discard::Discarder;
use uncopied_measure::error::chain;
use uncopied_measure::pattern::{self, Verifier};
use uncopied_measure::tcp;

use super::relay;
use super::temporary_file;
use crate::commands::bench::calls::{Shared, Times};
use crate::commands::bench::error::{BenchError, CellError};
use crate::commands::bench::protocol::{Moved, Received, Setup};
use crate::flags::BenchDirection;

/// How many bytes of each stream are compared with the pattern, if the stream does not begin again
/// before.
const VERIFIED_BYTES: u64 = 1 << 20;

/// The size of the file that is written round and round, unless one transfer is longer.
const FILE_BYTES: u64 = 64 << 20;

/// A receive that gets nothing for this long has failed.
const STALL_LIMIT: Duration = Duration::from_secs(20);

/// How long the receiver may take for what is in flight when the sender has ended.
const END_LIMIT: Duration = Duration::from_secs(10);

/// What a receiver has done.
#[derive(Default)]
pub(super) struct Outcome {
    /// Bytes that were only compared, before the mechanism was used.
    pub(super) compared_bytes: u64,
    pub(super) moved: Moved,
    pub(super) call_us: Option<[f64; 3]>,
}

/// What a receiving thread works with.
pub(super) struct Job {
    pub(super) stream: TcpStream,
    pub(super) setup: Setup,
    pub(super) plan: Option<Plan>,
    pub(super) verifier: Verifier,
    pub(super) shared: Arc<Shared>,
    /// CPU time of threads that do not belong to what is measured, in nanoseconds.
    pub(super) sink_cpu: Arc<AtomicU64>,
}

/// A measurement whose bytes are arriving.
pub(super) struct Receiving {
    /// A second descriptor of the socket.
    socket: TcpStream,
    shared: Arc<Shared>,
    sink_cpu: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<Outcome, CellError>>>,
}

impl Receiving {
    /// Begins to receive.
    pub(super) fn begin(
        stream: TcpStream,
        setup: Setup,
        directory: &Path,
    ) -> Result<Self, BenchError> {
        let failed = BenchError::setup("receive");
        let socket = stream
            .set_read_timeout(Some(STALL_LIMIT))
            .and_then(|()| stream.try_clone())
            .map_err(failed)?;
        let shared = Arc::new(Shared::default());
        let sink_cpu = Arc::new(AtomicU64::new(0));
        let job = Job {
            plan: setup.mechanism.plan(),
            verifier: verifier(&setup),
            stream,
            setup,
            shared: Arc::clone(&shared),
            sink_cpu: Arc::clone(&sink_cpu),
        };
        let directory = directory.to_owned();
        let work = move || {
            job.shared.enter();
            let socket = job.stream.try_clone();
            let outcome = receive(job, &directory);
            // Without this, a sender would wait for a receiver that has failed.
            if let (Err(_), Ok(socket)) = (&outcome, socket) {
                let _ = socket.shutdown(Shutdown::Both);
            }
            outcome
        };
        let thread = thread::Builder::new().name("receiver".into()).spawn(work);
        Ok(Self {
            socket,
            shared,
            sink_cpu,
            thread: Some(thread.map_err(BenchError::setup("start a thread"))?),
        })
    }

    /// Returns how many bytes were taken out of the socket so far.
    pub(super) fn taken_bytes(&self) -> Result<u64, BenchError> {
        tcp::taken_bytes(&self.socket).map_err(BenchError::setup("read TCP_INFO"))
    }

    /// Returns the CPU time of the sink of a relay, which is not part of what is measured.
    pub(super) fn sink_cpu_seconds(&self) -> f64 {
        self.sink_cpu.load(Ordering::Relaxed) as f64 / 1e9
    }

    pub(super) fn set_measuring(&self, is_measuring: bool) {
        self.shared
            .is_measuring
            .store(is_measuring, Ordering::Relaxed);
    }

    /// Counts the system calls of the receiving thread.
    pub(super) fn count_calls(&self, time: Duration) -> Option<u64> {
        self.shared.count_calls(time)
    }

    /// Waits until everything has been received that the sender says it has sent.
    pub(super) fn end(&mut self, sent: u64) -> Received {
        let deadline = Instant::now() + END_LIMIT;
        let Some(thread) = self.thread.take() else {
            return Received::default();
        };
        while !thread.is_finished() {
            if Instant::now() > deadline {
                let _ = self.socket.shutdown(Shutdown::Both);
            }
            thread::sleep(Duration::from_micros(200));
        }
        let mut received = Received::default();
        match thread.join() {
            Ok(Ok(outcome)) => {
                received.bytes = outcome.compared_bytes + outcome.moved.bytes;
                received.moved = outcome.moved;
                received.call_us = outcome.call_us;
                if received.bytes != sent {
                    received.failed = Some(format!(
                        "{sent} bytes were sent, but {} were received",
                        received.bytes
                    ));
                }
            }
            Ok(Err(CellError::Refused(why))) => received.refused = Some(why),
            Ok(Err(CellError::Failed(why))) => received.failed = Some(why),
            Err(_) => received.failed = Some("the receiver has panicked, which is a bug".into()),
        }
        received
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// Returns what compares the beginning of the stream.
fn verifier(setup: &Setup) -> Verifier {
    let first = setup.period.min(VERIFIED_BYTES);
    let expected = pattern::first_bytes(setup.pattern, 0, first as usize);
    // Two periods show that the first one begins again after its last byte.
    let limit = match setup.period <= VERIFIED_BYTES / 2 {
        true => 2 * setup.period,
        false => first,
    };
    Verifier::new(expected, limit)
}

fn receive(job: Job, directory: &Path) -> Result<Outcome, CellError> {
    match job.setup.direction {
        BenchDirection::FileToTcp | BenchDirection::MemoryToTcp => discard(job),
        BenchDirection::TcpToMemory => to_memory(job),
        BenchDirection::TcpToFile => to_file(job, directory),
        BenchDirection::TcpToNull => to_null(job),
        BenchDirection::TcpToTcp => relay::relay(job),
    }
}

/// Takes the bytes out of the socket, and looks only at the first ones.
fn discard(mut job: Job) -> Result<Outcome, CellError> {
    let mut outcome = Outcome::default();
    let mut discarder = Discarder::new();
    outcome.moved.bytes = read_verified(&mut job.stream, &mut job.verifier, &mut discarder)?;
    loop {
        match discarder.discard(&job.stream) {
            Ok(0) => return Ok(outcome),
            Ok(bytes) => outcome.moved.bytes += bytes as u64,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(CellError::Failed(format!("cannot receive: {error}"))),
        }
    }
}

/// Reads the bytes that are to be compared. Returns their number.
fn read_verified(
    stream: &mut TcpStream,
    verifier: &mut Verifier,
    discarder: &mut Discarder,
) -> Result<u64, CellError> {
    let mut received = 0;
    while verifier.remaining() > 0 {
        let buffer = discarder.buffer();
        let wanted = usize::try_from(verifier.remaining()).unwrap_or(usize::MAX);
        let wanted = wanted.min(buffer.len());
        match stream.read(&mut buffer[..wanted]) {
            Ok(0) => break,
            Ok(count) => {
                verify(verifier, &buffer[..count])?;
                received += count as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(CellError::Failed(format!("cannot receive: {error}"))),
        }
    }
    Ok(received)
}

fn verify(verifier: &mut Verifier, part: &[u8]) -> Result<(), CellError> {
    let verified = verifier.check(part);
    verified.map_err(|mismatch| CellError::Failed(mismatch.to_string()))
}

fn to_memory(mut job: Job) -> Result<Outcome, CellError> {
    let mut options = ReceiveOptions::default().chunk_bytes(job.setup.size as usize);
    if let Some(plan) = job.plan {
        options = options.force_mechanisms(plan.mechanisms());
    }
    let mut receiver = Receiver::with(job.stream, options);
    let mut times = Times::new(&job.shared);
    let mut received = 0;
    let mut first_bytes = Vec::new();
    loop {
        let chunk = times.record(|| receiver.receive());
        let Some(chunk) = chunk.map_err(|error| CellError::of_transfer(&error, received))? else {
            break;
        };
        received += chunk.len() as u64;
        if job.verifier.remaining() > 0 {
            first_bytes.resize(chunk.len(), 0);
            chunk.copy_to_slice(&mut first_bytes);
            verify(&mut job.verifier, &first_bytes)?;
        }
    }
    let mut outcome = Outcome {
        call_us: times.microseconds(),
        ..Outcome::default()
    };
    outcome.moved.add(receiver.report());
    Ok(outcome)
}

fn to_file(job: Job, directory: &Path) -> Result<Outcome, CellError> {
    let file = temporary_file(directory)?;
    let wrap = (FILE_BYTES / job.setup.size).max(1) * job.setup.size;
    into(job, &file, Some(wrap))
}

fn to_null(mut job: Job) -> Result<Outcome, CellError> {
    // What is in /dev/null cannot be compared, so the first bytes do not go there.
    let mut discarder = Discarder::new();
    let before = read_verified(&mut job.stream, &mut job.verifier, &mut discarder)?;
    let null = OpenOptions::new().write(true).open("/dev/null");
    let null = null.map_err(|error| CellError::Failed(format!("/dev/null: {error}")))?;
    let mut outcome = into(job, &null, None)?;
    outcome.compared_bytes = before;
    Ok(outcome)
}

/// Receives into a file, of which the same `wrap` bytes are written over and over, or into a
/// device.
fn into(mut job: Job, sink: &File, wrap: Option<u64>) -> Result<Outcome, CellError> {
    let mut outcome = Outcome::default();
    let mut times = Times::new(&job.shared);
    let mut offset = 0;
    loop {
        let mut transfer = ReceiveFile::new(sink).length(Length::Exact(job.setup.size));
        if wrap.is_some() {
            transfer = transfer.at(offset);
        }
        if let Some(plan) = &job.plan {
            transfer = transfer.force_mechanisms(plan.mechanisms());
        }
        let received = match times.record(|| transfer.from(&job.stream)) {
            Ok(report) => {
                outcome.moved.add(&report);
                report.bytes()
            }
            Err(error) if matches!(error.kind(), ErrorKind::SourceTooShort { .. }) => {
                outcome.moved.add(error.report());
                outcome.call_us = times.microseconds();
                return Ok(outcome);
            }
            Err(error) => return Err(CellError::of_transfer(&error, outcome.moved.bytes)),
        };
        if let Some(wrap) = wrap {
            if job.verifier.remaining() > 0 {
                verify_file(&mut job.verifier, sink, offset, received)?;
            }
            offset = (offset + received) % wrap;
        }
    }
}

/// Compares what was written to a file.
fn verify_file(
    verifier: &mut Verifier,
    file: &File,
    offset: u64,
    bytes: u64,
) -> Result<(), CellError> {
    let mut written = vec![0; bytes.min(verifier.remaining()) as usize];
    file.read_exact_at(&mut written, offset)
        .map_err(|error| CellError::Failed(format!("cannot read the file back: {error}")))?;
    verify(verifier, &written)
}

/// Returns the text of a relay's error.
pub(super) fn relay_error(error: &uncopied::relay::RelayError, moved: u64) -> CellError {
    match CellError::of_transfer(error.error(), moved) {
        CellError::Failed(_) => CellError::Failed(chain(error)),
        refused => refused,
    }
}
