//! A region of huge pages, sent with `vmsplice`. A program may overwrite a region at any time, but
//! this contender never does.

use uncopied::Mechanism;

use super::one_mechanism::{self, BufferKind};
use crate::memory::contender::{MemorySender, SendingProgram};

pub(super) const CONTENDER: MemorySender = MemorySender {
    name: "region",
    about: "uncopied's sender with `vmsplice` from a region of huge pages (a program may overwrite \
            a region at any time; this contender does not)",
    ours: true,
    version: || one_mechanism::version(Mechanism::Vmsplice, BufferKind::Region),
    program: SendingProgram::Own(|job| {
        one_mechanism::send(&job, Mechanism::Vmsplice, BufferKind::Region)
    }),
};
