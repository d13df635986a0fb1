//! Frozen pages ([`uncopied::arena::Pages`]), sent with `MSG_ZEROCOPY`. On loopback, the kernel
//! copies all of them anyway.

use uncopied::Mechanism;

use super::one_mechanism::{self, BufferKind};
use crate::memory::contender::{MemorySender, SendingProgram};

pub(super) const CONTENDER: MemorySender = MemorySender {
    name: "msg_zerocopy",
    about: "uncopied's sender with `MSG_ZEROCOPY`, at most 16 MiB in flight",
    ours: true,
    version: || one_mechanism::version(Mechanism::MsgZerocopy, BufferKind::Frozen),
    program: SendingProgram::Own(|job| {
        one_mechanism::send(&job, Mechanism::MsgZerocopy, BufferKind::Frozen)
    }),
};
