//! Receives everything that one sender of `compare memory` sends, over all of its connections, and
//! takes the measurement during a part of that time.
//!
//! All senders send to this receiver. iperf3's client does too, because iperf3's own server would
//! copy the bytes to user space, and so would need more CPU time than this receiver.
//!
//! A sender that sends wrong bytes is treated as failed. For each sender that is built into this
//! program, the first two buffers of each connection are compared byte by byte. At the end, the
//! number of bytes received from any sender must equal the number that the sender reports.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::iperf3::server::Control;
use crate::error::Error;
use crate::interrupt;
use crate::loopback::receiver::{Incoming, Receiver};
use crate::loopback::wait::{check_progress, wait_readable};
use crate::measure::{Snapshot, Usage};
use crate::process::PinnedChild;

/// The durations of the phases of a measurement.
#[derive(Clone, Copy)]
pub(super) struct MeasurementTimes {
    /// The time that the sender sends before the measurement begins.
    pub(super) warm_up: Duration,
    /// The duration of the measurement itself.
    pub(super) window: Duration,
}

/// The protocol that a sender uses.
pub(super) enum Protocol {
    /// The sender sends only these bytes, over and over.
    Bytes(Vec<u8>),
    /// iperf3's protocol: a control connection, and a second connection for the data, whose bytes
    /// are not known beforehand.
    Iperf3,
}

/// The result of receiving from one sender.
pub(super) struct Received {
    /// The time, CPU time and bytes of the measurement, without the warm-up before it and without
    /// what the sender sends after it.
    pub(super) usage: Usage,
    /// The number of bytes that arrived from the beginning to the end of the connections.
    pub(super) total_bytes: u64,
}

/// Receives everything that `sender` sends, from its first byte to its last. Measures only during
/// the window that follows the warm-up. `sender` must be a process that opens `connections`
/// connections to `receiver`, besides iperf3's control connection.
///
/// # Errors
///
/// [`Error::WrongResult`] if wrong bytes arrive, or if the sender stops before the measurement
/// ends.
pub(super) fn measure(
    receiver: &mut Receiver,
    sender: &mut PinnedChild,
    protocol: Protocol,
    connections: u16,
    times: MeasurementTimes,
) -> Result<Received, Error> {
    let mut accept = || receiver.accept(sender);
    let (streams, expected, control) = match protocol {
        Protocol::Bytes(bytes) => {
            let streams = (0..connections).map(|_| accept());
            (streams.collect::<Result<_, _>>()?, bytes, None)
        }
        Protocol::Iperf3 => {
            let (stream, control) = Control::open(accept)?;
            (vec![stream], Vec::new(), Some(control))
        }
    };
    let mut incoming = receiver.incoming(streams)?;
    incoming.compare(&expected)?;
    incoming.compare(&expected)?;
    incoming.discard_until(Instant::now() + times.warm_up)?;
    let before = Snapshot::take(sender.id(), incoming.received_bytes())?;
    incoming.discard_until(before.at + times.window)?;
    let after = Snapshot::take(sender.id(), incoming.received_bytes())?;
    sender.close_input();
    match control {
        Some(control) => discard_to_end_with_control(&mut incoming, control)?,
        None => incoming.discard_to_end()?,
    }
    Ok(Received {
        usage: after.since(&before),
        total_bytes: incoming.received_bytes(),
    })
}

/// Keeps receiving until the sender ends the connection, and discards the bytes. Also responds to
/// the states that iperf3's client sends on the control connection during that time.
fn discard_to_end_with_control(incoming: &mut Incoming<'_>, control: Control) -> Result<(), Error> {
    let mut control = Some(control);
    let mut last_progress = Instant::now();
    loop {
        interrupt::check()?;
        let (has_data, has_message) = {
            let mut descriptors = vec![PollFd::new(incoming.stream(), PollFlags::IN)];
            if let Some(control) = &control {
                descriptors.push(PollFd::new(control.stream(), PollFlags::IN));
            }
            wait_readable(&mut descriptors)?;
            let is_ready = |index: usize| {
                let descriptor = descriptors.get(index);
                descriptor.is_some_and(|descriptor| !descriptor.revents().is_empty())
            };
            (is_ready(0), is_ready(1))
        };
        if has_data {
            incoming.discard()?;
            if incoming.has_ended() {
                return Ok(());
            }
        }
        if has_message
            && let Some(open) = &mut control
            && !open.respond(incoming.received_bytes())?
        {
            control = None;
        }
        if has_data || has_message {
            last_progress = Instant::now();
        } else {
            check_progress(last_progress)?;
        }
    }
}
