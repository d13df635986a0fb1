//! Relays the bytes of one measurement to a sink of the listener's own.
//!
//! The sink runs on a thread of this process, whose CPU time is not counted: it publishes that time
//! each time that it has received. It confirms each message with a byte, which goes directly to the
//! sender, so that the sender sends the next message only then.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use uncopied::relay::{RelayOptions, copy_bidirectional_with};
use uncopied_measure::discard::Discarder;
use uncopied_measure::pattern::Verifier;
use uncopied_measure::{cpu, machine};

use super::receiver::{Job, Outcome, relay_error};
use crate::commands::bench::error::CellError;

pub(super) fn relay(job: Job) -> Result<Outcome, CellError> {
    let mut options = RelayOptions::new();
    if let Some(plan) = &job.plan {
        options = options.force_mechanisms(plan.mechanisms());
    }
    let setup = |error: io::Error| CellError::Failed(format!("cannot set up a relay: {error}"));
    let (out, into_sink) = pair().map_err(setup)?;
    let sink = Sink {
        stream: into_sink,
        confirmations: job.stream.try_clone().map_err(setup)?,
        message_bytes: job.setup.size,
        verifier: job.verifier,
        cpu: job.sink_cpu,
        pin_to: job.setup.sink_cpu,
    };
    let thread = thread::Builder::new().name("sink".into());
    let sink = thread.spawn(move || sink.run()).map_err(setup)?;
    let relayed = copy_bidirectional_with(&job.stream, &out, &options);
    // Ends the sink, also after an error.
    drop(out);
    let delivered = sink
        .join()
        .unwrap_or_else(|_| Err(CellError::Failed("the sink has panicked".into())));
    let relayed = relayed.map_err(|error| relay_error(&error, error.relayed().a_to_b.bytes()))?;
    let delivered = delivered?;
    let mut outcome = Outcome::default();
    outcome.moved.add(&relayed.a_to_b);
    if delivered != outcome.moved.bytes {
        let moved = outcome.moved.bytes;
        let why = format!("{moved} bytes were relayed, but {delivered} arrived");
        return Err(CellError::Failed(why));
    }
    Ok(outcome)
}

/// Returns the two ends of a connection over loopback.
fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let out = TcpStream::connect(listener.local_addr()?)?;
    let own = out.local_addr()?;
    loop {
        // Another process may have connected before.
        let (accepted, peer) = listener.accept()?;
        if peer == own {
            out.set_nodelay(true)?;
            return Ok((out, accepted));
        }
    }
}

/// The receiver of what is relayed.
struct Sink {
    stream: TcpStream,
    confirmations: TcpStream,
    message_bytes: u64,
    verifier: Verifier,
    cpu: Arc<AtomicU64>,
    pin_to: Option<usize>,
}

impl Sink {
    /// Receives to the end of the stream, and returns the number of bytes.
    fn run(mut self) -> Result<u64, CellError> {
        let failed = |error: io::Error| CellError::Failed(format!("the sink failed: {error}"));
        if let Some(cpu) = self.pin_to {
            machine::pin_to(cpu).map_err(failed)?;
        }
        let mut discarder = Discarder::new();
        let mut received = 0;
        loop {
            // One message at a time, so that no confirmation is late.
            let message = self.message_bytes;
            let count = match self.verifier.remaining() {
                0 => match discarder.discard(&self.stream) {
                    Ok(count) => count as u64,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(failed(error)),
                },
                _ => self.read_some(&mut discarder)?,
            };
            if count == 0 {
                return Ok(received);
            }
            let done_before = received / message;
            received += count;
            for _ in done_before..received / message {
                self.confirmations.write_all(&[1]).map_err(failed)?;
            }
            let nanoseconds = (cpu::thread_seconds() * 1e9) as u64;
            self.cpu.store(nanoseconds, Ordering::Relaxed);
        }
    }

    /// Reads and compares what is there, up to a message.
    fn read_some(&mut self, discarder: &mut Discarder) -> Result<u64, CellError> {
        let buffer = discarder.buffer();
        let wanted = self.verifier.remaining().min(buffer.len() as u64) as usize;
        let count = self.stream.read(&mut buffer[..wanted]);
        let count =
            count.map_err(|error| CellError::Failed(format!("the sink failed: {error}")))?;
        let verified = self.verifier.check(&buffer[..count]);
        verified.map_err(|mismatch| CellError::Failed(mismatch.to_string()))?;
        Ok(count as u64)
    }
}
