//! Ordinary bytes of the heap ([`bytes::Bytes`] made from a `Vec`), sent with io_uring's `SEND_ZC`.
//! On loopback, the kernel copies all of them anyway. The difference from `send_zc` is the cost of
//! sending bytes that are not pages of the library.

use uncopied::Mechanism;

use super::one_mechanism::{self, BufferKind};
use crate::memory::contender::{MemorySender, SendingProgram};

pub(super) const CONTENDER: MemorySender = MemorySender {
    name: "send_zc-bytes",
    about: "like send_zc, but with `Bytes` made from a `Vec` instead of pages of the library",
    ours: true,
    version: || one_mechanism::version(Mechanism::SendZc, BufferKind::Heap),
    program: SendingProgram::Own(|job| {
        one_mechanism::send(&job, Mechanism::SendZc, BufferKind::Heap)
    }),
};
