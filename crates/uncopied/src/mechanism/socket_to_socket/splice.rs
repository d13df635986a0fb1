//! Moves the bytes of one socket to another with `splice(2)`.
//!
//! # Moves
//!
//! A pipe takes references to the buffers of the source, except for bytes that lie in the same
//! memory as the headers of their packet, which it copies. A second call passes the references on
//! to the sink.
//!
//! # Needs
//!
//! Any two stream sockets, and a pipe from the [pool](super::pipe_pool).
//!
//! # Errno
//!
//! Getting a pipe:
//!
//! | errno | outcome |
//! |---|---|
//! | any (`EMFILE`, `ENFILE`, `EPERM`, …) | copied once |
//!
//! From the source into the pipe, which is empty:
//!
//! | errno | outcome |
//! |---|---|
//! | `EAGAIN`, or a result of 0 | `copy` makes this step: see below |
//! | `EINTR` | the call is repeated: no byte was moved |
//! | `EINVAL`, `EOPNOTSUPP`, `ESPIPE`, `ENOSYS`, `EPERM`, `EOVERFLOW`, `ENOMEM` | unsupported |
//! | any other | failed on the source |
//!
//! `EAGAIN` can mean that the source has no bytes, or that urgent data comes next, which `splice`
//! does not pass over. A result of 0 can mean the end of the stream, or urgent data. It cannot mean
//! a full pipe, because the pipe is empty. A `recv` finds out which it is, and passes over the
//! urgent data. So `copy` makes the step.
//!
//! From the pipe into the sink:
//!
//! | errno | outcome |
//! |---|---|
//! | `EAGAIN` | blocked on the sink: the pipe is not empty |
//! | `EINTR` | the call is repeated: no byte was moved |
//! | `EINVAL`, `EOPNOTSUPP`, `ESPIPE`, `ENOSYS`, `EPERM`, `EOVERFLOW`, `ENOMEM` | unsupported |
//! | any other (`EPIPE`, `ECONNRESET`, …) | failed on the sink |
//!
//! # Caveats
//!
//! - A pipe is full once all its slots are in use, which may be after 16 small packets, and one
//!   slot may refer to more than a page. So a step fills an empty pipe once, and never concludes
//!   anything from the number of bytes in it.
//! - The pipe goes back to the pool whenever it is empty, so only a stream whose sink is full keeps
//!   one. Bytes in the pipe keep the memory of their packets.
//! - Bytes that are in the pipe when `copy` takes over are read out of it and sent.
//! - The call obeys `O_NONBLOCK` of the sockets: if the source is blocking and has no bytes, or the
//!   sink is blocking and full, the call waits.
//!
//! # References
//!
//! `splice(2)`, `pipe(7)`; the kernel's `net/ipv4/tcp.c` (`tcp_splice_read`).

use std::os::fd::AsFd;

use rustix::io::Errno;

use super::pipe_pool::PooledPipe;
use super::{MAX_STEP_BYTES, RelayStep};
use crate::mechanism::{Outcome, Side, Status, is_unsupported, retry_on_intr};
use crate::policy::Flow;
use crate::sys::Kernel;

/// Makes a step, or returns `None` if the source has to be looked at with `recv`.
pub(super) fn step(
    kernel: &impl Kernel,
    held: &mut Option<PooledPipe>,
    flow: &mut Flow,
    step: &RelayStep<'_>,
) -> Option<Outcome> {
    let mut pipe = match held.take() {
        Some(pipe) => pipe,
        None => match PooledPipe::take(kernel) {
            Ok(pipe) => pipe,
            Err(errno) => return Some(Status::CopyOnce(errno).in_call("pipe2")),
        },
    };
    if pipe.held() == 0 {
        let count = step.want(MAX_STEP_BYTES);
        let writer = pipe.writer().as_fd();
        let taken = match retry_on_intr(|| kernel.splice_receive(step.source, writer, count)) {
            Ok(0) | Err(Errno::AGAIN) => {
                pipe.recycle();
                return None;
            }
            Ok(taken) => taken,
            Err(errno) if is_unsupported(errno) => {
                return Some(Status::Unsupported(errno).into());
            }
            Err(errno) => return Some(Status::Failed(Side::Source, errno).into()),
        };
        pipe.filled(taken);
        flow.record_bulk_read(taken);
    }
    let outcome = pipe.drain(kernel, step.sink, false);
    match pipe.held() {
        0 => pipe.recycle(),
        _ => *held = Some(pipe),
    }
    Some(outcome)
}
