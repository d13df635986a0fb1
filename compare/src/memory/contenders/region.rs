//! A region of huge pages by `vmsplice`. It may be overwritten at any time, and is not.

use uncopied::Mechanism;

use super::one_mechanism::{self, BufferKind};
use crate::memory::contender::{MemorySender, SendingProgram};

pub(super) const CONTENDER: MemorySender = MemorySender {
    name: "region",
    about: "uncopied's sender by `vmsplice` of a region of huge pages, which may be overwritten at \
            any time, and is not",
    ours: true,
    version: || one_mechanism::version(Mechanism::Vmsplice, BufferKind::Region),
    program: SendingProgram::Own(|job| {
        one_mechanism::send(&job, Mechanism::Vmsplice, BufferKind::Region)
    }),
};
