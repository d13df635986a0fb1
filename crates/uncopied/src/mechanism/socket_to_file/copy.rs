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
//! - A file that another process truncates meanwhile is extended again by the next write, which
//!   leaves a hole in place of the bytes that were cut off.
//! - If the sink is blocking, and is a pipe or a terminal, a write waits until the sink has
//!   accepted the bytes.
//!
//! # References
//!
//! `recv(2)`, `write(2)`, `pwrite(2)`, `getrlimit(2)`.

use rustix::io::Errno;

use super::ReceiveStep;
use super::buffer::Buffer;
use crate::mechanism::pipe::Pipe;
use crate::mechanism::{Outcome, Side, Status, retry_on_intr};
use crate::sys::Kernel;

pub(super) fn step(
    kernel: &impl Kernel,
    buffer: &mut Buffer,
    pipe: Option<&mut Pipe>,
    step: &ReceiveStep<'_>,
) -> Outcome {
    if buffer.len() == 0 {
        let filled = match pipe {
            Some(pipe) if pipe.held() > 0 => read_pipe(kernel, buffer, pipe),
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
    match retry_on_intr(|| kernel.write(step.sink, buffer.bytes(), step.offset)) {
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

fn receive(
    kernel: &impl Kernel,
    buffer: &mut Buffer,
    step: &ReceiveStep<'_>,
) -> Result<(), Outcome> {
    let spare = buffer.spare(step.want());
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
fn read_pipe(kernel: &impl Kernel, buffer: &mut Buffer, pipe: &mut Pipe) -> Result<(), Outcome> {
    let spare = buffer.spare(pipe.held());
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
