//! Sending memory.

use std::io;

use rustix::pipe::{fcntl_getpipe_size, fcntl_setpipe_size, pipe};
use uncopied::arena::{PageBuffer, Protection, Region};
use uncopied::{
    Errno, FreeReason, Mechanism, Report, SendOptions, SendOutcome, Sender, set_zero_copy_send,
    zero_copy_send_enabled,
};

use super::{Refusal, TIME_LIMIT, TRIAL_BYTES, connection, forced, moved_by, pattern, send_over};

/// The size of the pipes with which the library uses `vmsplice`, if it can have them, in bytes.
pub(in super::super) const WIDE_PIPE_BYTES: usize = 1 << 20;

/// Sends [`TRIAL_BYTES`] of memory with this mechanism, and waits until the kernel is done with it.
pub(in super::super) fn send(mechanism: Mechanism) -> Result<SendOutcome, Refusal> {
    let bytes = pattern(3, TRIAL_BYTES);
    let buffer = PageBuffer::copy_from_slice(&bytes).map_err(no_memory)?;
    let pages = match mechanism {
        Mechanism::Vmsplice => buffer.freeze_permanently(),
        _ => buffer.freeze(),
    };
    let options = SendOptions::default().force_mechanisms(forced(mechanism).mechanisms());
    let sent = send_over(&bytes, |socket| Sender::with(socket, options).send(pages))?;
    moved_by(mechanism, sent.report())?;
    let outcome = sent.completion().wait(Some(TIME_LIMIT));
    outcome.map_err(|error| Refusal::Other(format!("no notification: {error}")))
}

/// Creates a pipe, and returns the size, in bytes, that it can have.
pub(in super::super) fn pipe_bytes() -> Result<usize, Errno> {
    let errno = |errno: rustix::io::Errno| Errno::from_raw_os_error(errno.raw_os_error());
    let (reader, _writer) = pipe().map_err(errno)?;
    // If this fails, the pipe keeps its size.
    let _ = fcntl_setpipe_size(&reader, WIDE_PIPE_BYTES);
    fcntl_getpipe_size(&reader).map_err(errno)
}

/// By which mechanisms the library sends the same permanent pages, from a page boundary on, and
/// from one byte after it on.
pub(in super::super) fn aligned_and_unaligned() -> Result<(Report, Report), Refusal> {
    // From 64 KiB on, the library prefers vmsplice.
    let bytes = pattern(4, 4 * TRIAL_BYTES);
    let send = |from: usize| {
        let buffer = PageBuffer::copy_from_slice(&bytes).map_err(no_memory)?;
        let pages = buffer.freeze_permanently().slice(from..);
        let report = send_over(&bytes[from..], |socket| {
            Ok(Sender::new(socket).send(pages)?.report().clone())
        })?;
        match report.switched_off() {
            true => Err(Refusal::SwitchedOff("UNCOPIED_SEND")),
            false => Ok(report),
        }
    };
    Ok((send(0)?, send(1)?))
}

/// What a region did when it was overwritten while it was in flight.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Overwritten {
    pub(in super::super) protection: Protection,
    pub(in super::super) is_huge: bool,
    /// How many bytes were copied because of the write.
    pub(in super::super) copied_on_write: u64,
}

/// Sends a region, and overwrites it at once. Fails unless the peer gets the bytes that the region
/// had at the time of the send. Returns the errno if the region cannot be protected.
pub(in super::super) fn overwrite_region() -> Result<Result<Overwritten, Errno>, Refusal> {
    let len = TRIAL_BYTES;
    let (region, mut writer) = Region::new(len).map_err(no_memory)?;
    let protection = match region.protection() {
        Ok(protection) => protection,
        Err(errno) => return Ok(Err(errno)),
    };
    let old = pattern(5, len);
    writer.copy_from_slice(&old);
    let options = SendOptions::default();
    let options = options.force_mechanisms(forced(Mechanism::Vmsplice).mechanisms());
    let mut copied_on_write = 0;
    let report = send_over(&old, |socket| {
        let mut sender = Sender::with(socket, options);
        let sent = sender.send(region.part(..))?;
        writer.fill(0xff);
        copied_on_write = sender.report().copied_on_write();
        Ok(sent.report().clone())
    })?;
    moved_by(Mechanism::Vmsplice, &report)?;
    Ok(Ok(Overwritten {
        protection,
        is_huge: region.is_huge(),
        copied_on_write,
    }))
}

/// Switches zero-copy sending off and on again. Returns whether sends were copied meanwhile, and
/// only then.
pub(in super::super) fn send_switch_works() -> Result<bool, Refusal> {
    let before = zero_copy_send_enabled();
    set_zero_copy_send(false);
    let copied = send_with_switch();
    set_zero_copy_send(true);
    let not_copied = send_with_switch();
    set_zero_copy_send(before);
    Ok(copied?.switched_off() && !not_copied?.switched_off())
}

fn send_with_switch() -> Result<Report, Refusal> {
    let bytes = pattern(6, TRIAL_BYTES);
    send_over(&bytes, |socket| {
        Ok(Sender::new(socket).send(bytes.clone())?.report().clone())
    })
}

/// Returns the words for the reason why memory is free.
pub(in super::super) fn reason_text(reason: FreeReason) -> &'static str {
    match reason {
        FreeReason::Notification => "a notification",
        FreeReason::Gifted => "gifted at once",
        FreeReason::Acknowledged => "the peer's acknowledgement",
        _ => "copied at once",
    }
}

/// Whether a connection can be made.
pub(in super::super) fn can_connect() -> Result<(), Refusal> {
    connection().map(|_| ())
}

fn no_memory(error: io::Error) -> Refusal {
    Refusal::Other(format!("no memory: {error}"))
}
