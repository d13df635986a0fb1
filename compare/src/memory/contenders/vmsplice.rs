//! Permanently frozen pages, sent with `vmsplice`. Nothing is copied, not even on loopback.

use uncopied::Mechanism;

use super::one_mechanism::{self, BufferKind};
use crate::memory::contender::{MemorySender, SendingProgram};

pub(super) const CONTENDER: MemorySender = MemorySender {
    name: "vmsplice",
    about: "uncopied's sender with `vmsplice` from permanently frozen huge pages \
            (`PageBuffer::huge`)",
    ours: true,
    version: || one_mechanism::version(Mechanism::Vmsplice, BufferKind::FrozenPermanently),
    program: SendingProgram::Own(|job| {
        one_mechanism::send(&job, Mechanism::Vmsplice, BufferKind::FrozenPermanently)
    }),
};
