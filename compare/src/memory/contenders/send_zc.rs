//! Frozen pages ([`uncopied::arena::Pages`]), sent with io_uring's `SEND_ZC`. On loopback, the
//! kernel copies all of them anyway.

use uncopied::Mechanism;

use super::one_mechanism::{self, BufferKind};
use crate::memory::contender::{MemorySender, SendingProgram};

pub(super) const CONTENDER: MemorySender = MemorySender {
    name: "send_zc",
    about: "uncopied's sender with io_uring's `SEND_ZC`, at most 16 MiB in flight",
    ours: true,
    version: || one_mechanism::version(Mechanism::SendZc, BufferKind::Frozen),
    program: SendingProgram::Own(|job| {
        one_mechanism::send(&job, Mechanism::SendZc, BufferKind::Frozen)
    }),
};
