//! A region of huge pages that may be overwritten at any time, and is not, by `vmsplice`.

use uncopied::Mechanism;

use super::lending::{self, From};
use super::{Contender, How};

pub(super) const CONTENDER: Contender = Contender {
    name: "region",
    about: "uncopied's sender by `vmsplice` of a region of huge pages that may be overwritten at any \
            time, and is not",
    ours: true,
    version: || lending::version(Mechanism::Vmsplice, From::Region),
    how: How::Within(|job| lending::send(job, Mechanism::Vmsplice, From::Region)),
};
