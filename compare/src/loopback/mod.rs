//! The parts that `memory` and `copy` share. In both, a sender process sends to a receiver, which
//! is part of this process, over TCP on loopback.

pub(crate) mod listener;
pub(crate) mod options;
pub(crate) mod participants;
pub(crate) mod receiver;
pub(crate) mod report;
pub(crate) mod session;
pub(crate) mod tcp;
pub(crate) mod wait;
