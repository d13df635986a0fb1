//! Moves a socket's bytes to a file, a pipe or a device with `recv(2)` and `pwrite(2)` or
//! `write(2)`: the baseline, and the last fallback of every plan.
//!
//! # Moves
//!
//! The kernel copies the bytes into a buffer of this process, and from there into the file's pages,
//! the pipe or the device: two copies.
//!
//! # Needs
//!
//! Any stream socket, and any sink that can be written to.
//!
//! # Errno
//!
//! | step | errno | outcome |
//! |---|---|---|
//! | receiving | `EAGAIN` | blocked on the source |
//! | receiving | `EINTR` | the call is repeated, or blocked if it may have waited |
//! | receiving | any other (`ECONNRESET`, `ENOTCONN`, …) | failed on the source |
//! | reading bytes that `splice` left in its pipe | any | failed on the source |
//! | writing | `EAGAIN` | blocked on the sink, a full pipe |
//! | writing | `EINTR` | the call is repeated |
//! | writing whole blocks with `O_DIRECT` | `EINVAL` | written without that flag |
//! | opening a descriptor without `O_DIRECT` | any (`ENOENT`, `EACCES`, …) | failed on the sink |
//! | writing | any other (`ENOSPC`, `EDQUOT`, `EFBIG`, `EIO`, `EPIPE`, …) | failed on the sink |
//!
//! # Caveats
//!
//! - No more is received than the length of the transfer allows, so the bytes after it stay in the
//!   socket.
//! - After a short write, the next step writes the rest. Bytes that could not be written stay in
//!   the buffer.
//! - A write beyond `RLIMIT_FSIZE` fails with `EFBIG`. [`Kernel::write`] has to suppress the signal
//!   SIGXFSZ.
//! - If the file was opened with `O_DIRECT`, a step writes either whole blocks, from memory that
//!   lies at the same distance from a block boundary as the offset, or, with a second descriptor
//!   without that flag, the bytes up to the next block boundary. So no block is written in both
//!   ways.
//! - A file that another process truncates meanwhile is extended again by the next write, which
//!   leaves a hole in place of the bytes that were cut off.
//! - If the sink is blocking, and is a pipe or a terminal, a write waits until the sink has
//!   accepted the bytes.
//!
//! # References
//!
//! `recv(2)`, `write(2)`, `pwrite(2)`, `getrlimit(2)`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::ReceiveStep;
use crate::mechanism::buffer::{ALIGNMENT, Buffer};
use crate::mechanism::pipe::Pipe;
use crate::mechanism::{Outcome, Side, Status, retry_on_intr};
use crate::policy::SinkKind;
use crate::sys::Kernel;

pub(super) fn step(
    kernel: &impl Kernel,
    buffer: &mut Buffer,
    pipe: Option<&mut Pipe>,
    buffered: &mut Option<OwnedFd>,
    step: &ReceiveStep<'_>,
) -> Outcome {
    if buffer.len() == 0 {
        let filled = match pipe {
            Some(pipe) if pipe.held() > 0 => read_pipe(kernel, buffer, pipe, step),
            _ => receive(kernel, buffer, step),
        };
        if let Err(outcome) = filled {
            return outcome;
        }
    }
    let call = match step.offset {
        Some(_) => "pwrite",
        None => "write",
    };
    let written = match (step.sink_kind, step.offset) {
        (SinkKind::Direct, Some(offset)) => {
            match write_direct(kernel, step.sink, buffered, buffer.bytes(), offset) {
                Ok(written) => written,
                Err(errno) => return Status::Failed(Side::Sink, errno).in_call("open"),
            }
        }
        (_, offset) => retry_on_intr(|| kernel.write(step.sink, buffer.bytes(), offset)),
    };
    match written {
        Ok(0) => Status::Failed(Side::Sink, Errno::IO).in_call(call),
        Ok(moved) => {
            let moved = moved.min(buffer.len());
            buffer.remove_first(moved);
            Outcome::moved(moved)
        }
        Err(Errno::AGAIN) => Status::Blocked(Side::Sink).in_call(call),
        Err(errno) => Status::Failed(Side::Sink, errno).in_call(call),
    }
}

/// Writes whole blocks with `O_DIRECT`, or the bytes up to the next block boundary without it. The
/// outer error is that of opening a descriptor without the flag.
fn write_direct(
    kernel: &impl Kernel,
    direct: BorrowedFd<'_>,
    buffered: &mut Option<OwnedFd>,
    bytes: &[u8],
    offset: u64,
) -> rustix::io::Result<rustix::io::Result<usize>> {
    let skew = skew_of(offset);
    let whole = bytes.len() / ALIGNMENT * ALIGNMENT;
    if skew == 0 && whole > 0 {
        match retry_on_intr(|| kernel.write(direct, &bytes[..whole], Some(offset))) {
            // The device has larger blocks.
            Err(Errno::INVAL) => {}
            other => return Ok(other),
        }
    }
    let buffered = match buffered {
        Some(buffered) => buffered,
        none => none.insert(retry_on_intr(|| kernel.reopen_buffered(direct))?),
    };
    let piece = &bytes[..bytes.len().min(ALIGNMENT - skew)];
    Ok(retry_on_intr(|| {
        kernel.write(buffered.as_fd(), piece, Some(offset))
    }))
}

/// Returns how far an offset lies after a block boundary.
fn skew_of(offset: u64) -> usize {
    (offset % ALIGNMENT as u64) as usize
}

/// Returns how far after an aligned address the bytes of a step must begin.
fn skew(step: &ReceiveStep<'_>) -> usize {
    match step.sink_kind {
        SinkKind::Direct => step.offset.map_or(0, skew_of),
        _ => 0,
    }
}

fn receive(
    kernel: &impl Kernel,
    buffer: &mut Buffer,
    step: &ReceiveStep<'_>,
) -> Result<(), Outcome> {
    let spare = buffer.spare(step.want(), skew(step));
    let status = match step.receive(|| kernel.recv(step.source, spare, step.may_wait)) {
        Ok(0) => Status::Ended,
        Ok(received) => {
            buffer.filled(received);
            return Ok(());
        }
        Err(Errno::AGAIN | Errno::INTR) => Status::Blocked(Side::Source),
        Err(errno) => Status::Failed(Side::Source, errno),
    };
    Err(status.in_call("recv"))
}

/// Takes the bytes that `splice` has left in its pipe.
fn read_pipe(
    kernel: &impl Kernel,
    buffer: &mut Buffer,
    pipe: &mut Pipe,
    step: &ReceiveStep<'_>,
) -> Result<(), Outcome> {
    let spare = buffer.spare(pipe.held(), skew(step));
    match retry_on_intr(|| pipe.read(kernel, spare)) {
        Ok(read) if read > 0 => {
            buffer.filled(read);
            Ok(())
        }
        // The pipe holds bytes, and its write end is open.
        Ok(_) => Err(Status::Failed(Side::Source, Errno::IO).in_call("read")),
        Err(errno) => Err(Status::Failed(Side::Source, errno).in_call("read")),
    }
}
