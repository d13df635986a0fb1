//! This project's sender, forced to copy. The difference from a plain `write` is the cost of our
//! layer.

use uncopied::Mechanism;

use super::one_mechanism::{self, BufferKind};
use crate::memory::contender::{MemorySender, SendingProgram};

pub(super) const CONTENDER: MemorySender = MemorySender {
    name: "copy",
    about: "uncopied's sender with `copy` (the difference from `write` is the cost of our layer)",
    ours: true,
    version: || one_mechanism::version(Mechanism::Copy, BufferKind::Frozen),
    program: SendingProgram::Own(|job| {
        one_mechanism::send(&job, Mechanism::Copy, BufferKind::Frozen)
    }),
};
