//! This project's sender, told to copy: what the layer costs over a plain `write`.

use uncopied::Mechanism;

use super::lending::{self, From};
use super::{Contender, How};

pub(super) const CONTENDER: Contender = Contender {
    name: "copy",
    about: "uncopied's sender by `copy`: what our layer costs over `write`",
    ours: true,
    version: || lending::version(Mechanism::Copy, From::Frozen),
    how: How::Within(|job| lending::send(job, Mechanism::Copy, From::Frozen)),
};
