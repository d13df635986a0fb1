//! What `memory` and `copy` share: one sender process, one receiver, and one TCP connection between
//! them over loopback.

pub(crate) mod options;
pub(crate) mod participants;
pub(crate) mod receiver;
pub(crate) mod report;
pub(crate) mod session;
pub(crate) mod tcp;
