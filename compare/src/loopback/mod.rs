//! The parts that `memory`, `copy` and `receive` share. In all of them, the contender's process is
//! one end of a TCP connection on loopback, and this process is the other end.

pub(crate) mod listener;
pub(crate) mod options;
pub(crate) mod participants;
pub(crate) mod receiver;
pub(crate) mod report;
pub(crate) mod session;
pub(crate) mod tcp;
pub(crate) mod wait;
