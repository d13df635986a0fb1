//! Pages that are frozen for good, by `vmsplice`: no copy, also on loopback.

use uncopied::Mechanism;

use super::lending::{self, From};
use super::{Contender, How};

pub(super) const CONTENDER: Contender = Contender {
    name: "vmsplice",
    about: "uncopied's sender by `vmsplice` of pages that are frozen for good, in huge pages (`PageBuffer::huge`)",
    ours: true,
    version: || lending::version(Mechanism::Vmsplice, From::FrozenForGood),
    how: How::Within(|job| lending::send(job, Mechanism::Vmsplice, From::FrozenForGood)),
};
