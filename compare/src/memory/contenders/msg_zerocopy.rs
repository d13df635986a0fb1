//! Frozen pages by `MSG_ZEROCOPY`: on loopback the kernel copies them all.

use uncopied::Mechanism;

use super::lending::{self, From};
use super::{Contender, How};

pub(super) const CONTENDER: Contender = Contender {
    name: "msg_zerocopy",
    about: "uncopied's sender by `MSG_ZEROCOPY`, 16 MiB lent at most",
    ours: true,
    version: || lending::version(Mechanism::MsgZerocopy, From::Frozen),
    how: How::Within(|job| lending::send(job, Mechanism::MsgZerocopy, From::Frozen)),
};
