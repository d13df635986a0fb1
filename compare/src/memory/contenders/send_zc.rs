//! Frozen pages by io_uring's `SEND_ZC`: on loopback the kernel copies them all.

use uncopied::Mechanism;

use super::lending::{self, From};
use super::{Contender, How};

pub(super) const CONTENDER: Contender = Contender {
    name: "send_zc",
    about: "uncopied's sender by io_uring's `SEND_ZC`, 16 MiB lent at most",
    ours: true,
    version: || lending::version(Mechanism::SendZc, From::Frozen),
    how: How::Within(|job| lending::send(job, Mechanism::SendZc, From::Frozen)),
};
