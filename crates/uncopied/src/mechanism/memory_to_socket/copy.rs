//! Moves memory to a socket with `send(2)`: the baseline, and the last fallback of every plan.
//!
//! # Moves
//!
//! The kernel copies the memory into the socket: one copy.
//!
//! # Needs
//!
//! Any stream socket.
//!
//! # Errno
//!
//! | errno | outcome | because |
//! |---|---|---|
//! | `EAGAIN` | blocked on the sink | |
//! | `EINTR` | the call is repeated | no byte was moved |
//! | any other | failed on the sink | |
//!
//! # Caveats
//!
//! - The memory can be reused as soon as the call has returned.
//!
//! # References
//!
//! `send(2)`.

use super::MemoryStep;
use crate::in_flight::FreeReason;
use crate::mechanism::{Outcome, Side, Status, retry_on_intr, sink_failure};
use crate::sys::Kernel;

pub(crate) fn step(kernel: &impl Kernel, step: &MemoryStep<'_>) -> Outcome {
    let bytes = step.first().mapped();
    match retry_on_intr(|| kernel.send_memory(step.sink, bytes)) {
        Ok(0) => Status::Blocked(Side::Sink).into(),
        Ok(moved) => {
            let bytes = moved as u64;
            step.tracker
                .count_finished(bytes, bytes, FreeReason::Copied);
            Outcome::moved(moved)
        }
        Err(errno) => sink_failure(errno).into(),
    }
}
