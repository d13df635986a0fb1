//! Moves a socket's bytes to a file, a pipe or a device with `splice(2)`.
//!
//! # Moves
//!
//! A pipe takes references to the socket's buffers, except for bytes that lie in the same memory as
//! the headers of their packet, which it copies. If the sink is itself a pipe, that is all: one
//! call. Otherwise, a second call passes the bytes on from a pipe of the library: `/dev/null` drops
//! the references, and a file copies the bytes into its pages. The report counts the latter as
//! copied by the kernel.
//!
//! # Needs
//!
//! Any stream socket. A sink that supports splicing and was not opened with `O_APPEND`.
//!
//! # Errno
//!
//! Creating the pipe:
//!
//! | errno | outcome |
//! |---|---|
//! | any (`EMFILE`, `ENFILE`, `ENOMEM`, …) | unsupported: fall back to a mechanism without a pipe |
//!
//! Enlarging the pipe:
//!
//! | errno | outcome |
//! |---|---|
//! | any (`EPERM`, `EBUSY`, `ENOMEM`) | ignored: the transfer works with a smaller pipe |
//!
//! From the socket into the pipe:
//!
//! | errno | outcome |
//! |---|---|
//! | `EAGAIN`, or a result of 0 | see below |
//! | `EINTR` | the call is repeated, or blocked if it may have waited: no byte was moved |
//! | `EPIPE` | failed on the sink, a pipe that nobody reads |
//! | `EBADF` | failed on the sink, a pipe that was not opened for writing |
//! | `EINVAL`, `EOPNOTSUPP`, `ESPIPE`, `ENOSYS`, `EPERM`, `EOVERFLOW`, `ENOMEM` | unsupported |
//! | any other | failed on the source |
//!
//! `EAGAIN` can mean that the socket has no bytes, that the sink is a full pipe, or that urgent
//! data comes next, which `splice` does not pass over. A result of 0 can mean the end of the
//! stream, or urgent data. `recv(2)` with `MSG_PEEK`, and `poll(2)` for the sink, tell which:
//!
//! | peeking | sink | outcome |
//! |---|---|---|
//! | `EAGAIN` | any | blocked on the source |
//! | the end | any | ended |
//! | a byte | a full pipe | blocked on the sink |
//! | a byte | any other | the call is repeated; if it moves nothing again, copied once |
//! | any other errno | any | failed on the source |
//!
//! From the pipe into the sink:
//!
//! | errno | outcome |
//! |---|---|
//! | `EAGAIN` | blocked on the sink: the pipe is not empty |
//! | `EINTR` | the call is repeated: no byte was moved |
//! | `EPERM` | failed on the sink: the file is sealed, for example |
//! | `EINVAL`, `EOPNOTSUPP`, `ESPIPE`, `ENOSYS`, `EOVERFLOW`, `ENOMEM` | unsupported |
//! | any other (`ENOSPC`, `EDQUOT`, `EFBIG`, `EIO`, `EPIPE`, …) | failed on the sink |
//!
//! # Caveats
//!
//! - Bytes that are in the pipe when another mechanism takes over are read out of it and written.
//! - The call obeys `O_NONBLOCK` of the socket: if the socket is blocking and has no bytes, the
//!   call waits. `SPLICE_F_NONBLOCK` concerns only the pipe. So a step makes one call: with a
//!   second one, it would wait while it holds bytes.
//! - Bytes in the pipe keep the memory of their packets, which can be several times as much, and no
//!   longer count as queued in the socket. So a step passes them on before it takes others.
//! - [`Kernel::splice_to_file`] and [`Kernel::splice_receive`] have to suppress SIGXFSZ and
//!   SIGPIPE.
//!
//! # References
//!
//! `splice(2)`, `pipe(7)`; the kernel's `net/ipv4/tcp.c` (`tcp_splice_read`).

use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use super::ReceiveStep;
use crate::mechanism::pipe::{Pipe, WidePipeError};
use crate::mechanism::{Outcome, Side, Status, is_unsupported, retry_on_intr};
use crate::policy::SinkKind;
use crate::sys::Kernel;

pub(super) fn step(
    kernel: &impl Kernel,
    pipe: &mut Option<Pipe>,
    step: &ReceiveStep<'_>,
) -> Outcome {
    if step.sink_kind == SinkKind::Pipe && step.offset.is_none() {
        return take(kernel, step, step.sink).map_or_else(|outcome| outcome, Outcome::moved);
    }
    let pipe = match pipe {
        Some(pipe) => pipe,
        none => match new_pipe(kernel) {
            Ok(pipe) => none.insert(pipe),
            Err(errno) => return Status::Unsupported(errno).in_call("pipe2"),
        },
    };
    if pipe.held() == 0 {
        match take(kernel, step, pipe.writer().as_fd()) {
            Ok(taken) => pipe.filled(taken),
            Err(outcome) => return outcome,
        }
    }
    pipe.drain_to_file(kernel, step.sink, step.offset)
}

/// Returns a wide pipe, or one of the usual capacity if the limit on pipe pages is reached.
fn new_pipe(kernel: &impl Kernel) -> rustix::io::Result<Pipe> {
    match Pipe::wide(kernel) {
        Ok(pipe) => Ok(pipe),
        Err(WidePipeError::TooNarrow(_)) => Pipe::new(kernel, 0),
        Err(WidePipeError::NoPipe(errno)) => Err(errno),
    }
}

/// Takes bytes from the socket into a pipe. Returns their number, which is not 0.
fn take(
    kernel: &impl Kernel,
    step: &ReceiveStep<'_>,
    pipe: BorrowedFd<'_>,
) -> Result<usize, Outcome> {
    let count = step.want();
    let splice = || step.receive(|| kernel.splice_receive(step.source, pipe, count));
    match splice() {
        Ok(0) | Err(Errno::AGAIN) => {}
        taken => return taken.map_err(failure),
    }
    match retry_on_intr(|| kernel.peek(step.source)) {
        Ok(0) => return Err(Status::Ended.in_call("recv")),
        Ok(_) if step.sink_kind == SinkKind::Pipe && !kernel.is_writable(step.sink) => {
            return Err(Status::Blocked(Side::Sink).into());
        }
        Ok(_) => {}
        Err(Errno::AGAIN) => return Err(Status::Blocked(Side::Source).into()),
        Err(errno) => return Err(Status::Failed(Side::Source, errno).in_call("recv")),
    }
    match splice() {
        Ok(0) | Err(Errno::AGAIN) => Err(Status::CopyOnce(Errno::AGAIN).into()),
        taken => taken.map_err(failure),
    }
}

fn failure(errno: Errno) -> Outcome {
    let status = match errno {
        Errno::INTR => Status::Blocked(Side::Source),
        Errno::PIPE | Errno::BADF => Status::Failed(Side::Sink, errno),
        errno if is_unsupported(errno) => Status::Unsupported(errno),
        errno => Status::Failed(Side::Source, errno),
    };
    status.into()
}
