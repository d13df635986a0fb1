//! Moves the bytes of one socket to another with `recv(2)` and `send(2)`: the cheapest way for
//! small messages, and the last fallback of every plan.
//!
//! # Moves
//!
//! The kernel copies the bytes into a buffer of this thread, and from there into the buffers of the
//! other socket: two copies.
//!
//! # Needs
//!
//! Any two stream sockets.
//!
//! # Errno
//!
//! | step | errno | outcome |
//! |---|---|---|
//! | receiving | `EAGAIN` | blocked on the source |
//! | receiving | `EINTR` | the call is repeated |
//! | receiving | any other (`ECONNRESET`, `ENOTCONN`, …) | failed on the source |
//! | reading bytes that `splice` left in its pipe | any | failed on the source |
//! | sending | `EAGAIN` | blocked on the sink |
//! | sending | `EINTR` | the call is repeated |
//! | sending | any other (`EPIPE`, `ECONNRESET`, …) | failed on the sink |
//!
//! # Caveats
//!
//! - The bytes that the sink has not accepted are kept in memory of their own, at most 16 KiB. The
//!   buffer belongs to the thread, so an idle connection has none.
//! - `recv` passes over urgent data (`MSG_OOB`), which is not relayed.
//!
//! # References
//!
//! `recv(2)`, `send(2)`, `tcp(7)`.

use std::cell::RefCell;

use rustix::io::Errno;

use super::{HeldBytes, RelayStep};
use crate::mechanism::{Outcome, Side, Status, retry_on_intr, send_slice};
use crate::policy::Flow;
use crate::sys::Kernel;

/// The most bytes that one step moves. A read that fills the buffer shows that more bytes may have
/// been waiting.
const BUFFER_BYTES: usize = 16 << 10;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER_BYTES].into());
}

/// Receives bytes and sends them.
pub(super) fn step(
    kernel: &impl Kernel,
    held: &mut HeldBytes,
    flow: &mut Flow,
    step: &RelayStep<'_>,
) -> Outcome {
    with_buffer(|buffer| {
        let room = step.want(buffer.len());
        let received = match retry_on_intr(|| kernel.recv(step.source, &mut buffer[..room], false))
        {
            Ok(0) => return Status::Ended.in_call("recv"),
            Ok(received) => received.min(room),
            Err(Errno::AGAIN) => return Status::Blocked(Side::Source).in_call("recv"),
            Err(errno) => return Status::Failed(Side::Source, errno).in_call("recv"),
        };
        flow.record_copied_read(received, received == BUFFER_BYTES);
        held.has_read_less = received < room;
        send(kernel, held, &buffer[..received], step)
    })
}

/// Sends bytes that are held in memory.
pub(super) fn pass_on(kernel: &impl Kernel, held: &mut HeldBytes, step: &RelayStep<'_>) -> Outcome {
    let outcome = send_slice(kernel, step.sink, held.in_memory(), false);
    held.accepted(usize::try_from(outcome.moved).unwrap_or(usize::MAX));
    outcome
}

/// Reads bytes out of the pipe that `splice` has left there, and sends them.
pub(super) fn empty_pipe(
    kernel: &impl Kernel,
    held: &mut HeldBytes,
    step: &RelayStep<'_>,
) -> Outcome {
    with_buffer(|buffer| {
        let Some(pipe) = &mut held.pipe else {
            return Outcome::moved(0);
        };
        let read = match retry_on_intr(|| pipe.read(kernel, buffer)) {
            // The pipe holds bytes, and its write end is open.
            Ok(0) => return Status::Failed(Side::Source, Errno::IO).in_call("read"),
            Ok(read) => read,
            Err(errno) => return Status::Failed(Side::Source, errno).in_call("read"),
        };
        if let Some(empty) = held.pipe.take_if(|pipe| pipe.held() == 0) {
            empty.recycle();
        }
        send(kernel, held, &buffer[..read], step)
    })
}

/// Sends `bytes`, and keeps those that the sink does not accept.
fn send(kernel: &impl Kernel, held: &mut HeldBytes, bytes: &[u8], step: &RelayStep<'_>) -> Outcome {
    let outcome = send_slice(kernel, step.sink, bytes, false);
    let sent = usize::try_from(outcome.moved).map_or(bytes.len(), |sent| sent.min(bytes.len()));
    if sent < bytes.len() {
        held.keep(&bytes[sent..]);
    }
    outcome
}

fn with_buffer(step: impl FnOnce(&mut [u8]) -> Outcome) -> Outcome {
    BUFFER.with_borrow_mut(|buffer| step(buffer))
}
