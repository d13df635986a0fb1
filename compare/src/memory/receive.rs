//! Receives what a sender of this comparison sends, and measures a part of it.
//!
//! All senders have the same receiver. So has iperf3, whose own server would copy.
//!
//! No sender wins with wrong bytes. The first two buffers of each of our own senders are compared
//! byte by byte, and in the end the number of bytes received must be the number that the sender
//! reports.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::iperf3::server::Control;
use crate::error::Error;
use crate::interrupt;
use crate::loopback::receiver::{Incoming, Receiver, check_progress, wait_readable};
use crate::measure::{Snapshot, Usage};
use crate::process::PinnedChild;

/// How long to send.
#[derive(Clone, Copy)]
pub(super) struct MeasurementTimes {
    /// Before the measurement begins.
    pub(super) warm_up: Duration,
    /// The measurement.
    pub(super) window: Duration,
}

/// The protocol that a sender speaks.
pub(super) enum Protocol {
    /// Nothing but these bytes, over and over.
    Bytes(Vec<u8>),
    /// iperf3's: a control connection, and a connection for bytes that are not known beforehand.
    Iperf3,
}

/// What arrived from one sender.
pub(super) struct Received {
    /// During the measurement.
    pub(super) usage: Usage,
    /// From the beginning to the end.
    pub(super) total_bytes: u64,
}

/// Receives everything that a sender sends, and measures a part of it. `sender` has been started to
/// connect to `receiver`.
///
/// # Errors
///
/// [`Error::WrongResult`] if wrong bytes arrive, or if the sender stops before it is told to.
pub(super) fn measure(
    receiver: &mut Receiver,
    sender: &mut PinnedChild,
    protocol: Protocol,
    times: MeasurementTimes,
) -> Result<Received, Error> {
    let mut accept = || receiver.accept(sender);
    let (stream, expected, control) = match protocol {
        Protocol::Bytes(bytes) => (accept()?, bytes, None),
        Protocol::Iperf3 => {
            let (stream, control) = Control::open(accept)?;
            (stream, Vec::new(), Some(control))
        }
    };
    let mut incoming = receiver.incoming(stream);
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

/// Discards what arrives until the sender ends the connection, and meanwhile serves its control
/// connection.
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
        if has_data && incoming.discard()? == Some(0) {
            return Ok(());
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
