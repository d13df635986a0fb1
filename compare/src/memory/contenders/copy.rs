//! This project's sender, forced to copy: what the layer costs over a plain `write`.

use uncopied::Mechanism;

use super::one_mechanism::{self, BufferKind};
use crate::memory::contender::{MemorySender, SendingProgram};

pub(super) const CONTENDER: MemorySender = MemorySender {
    name: "copy",
    about: "uncopied's sender by `copy`: what our layer costs over `write`",
    ours: true,
    version: || one_mechanism::version(Mechanism::Copy, BufferKind::Frozen),
    program: SendingProgram::Own(|job| {
        one_mechanism::send(&job, Mechanism::Copy, BufferKind::Frozen)
    }),
};
