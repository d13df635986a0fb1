//! The contenders of `compare relay`. To add a contender, write a module with a `CONTENDER` that
//! says how to start the relay, and add the `CONTENDER` to [`ALL`].

pub(crate) mod bare;
mod haproxy;
mod nginx;
pub(crate) mod plain_loop;
pub(crate) mod tokio;
mod uncopied;

use super::contender::RelayProgram;
use crate::participant;

/// All contenders, in the order in which they are measured and listed. The first contender that is
/// not ours is the baseline: the report has the ratio of every other contender to the baseline.
pub(super) const ALL: &[RelayProgram] = &[
    uncopied::CONTENDER,
    uncopied::SPLICE,
    uncopied::COPY,
    bare::CONTENDER,
    haproxy::CONTENDER,
    haproxy::SPLICE,
    nginx::CONTENDER,
    tokio::CONTENDER,
    plain_loop::CONTENDER,
];

/// Finds a contender by its name.
pub(super) fn by_name(name: &str) -> Result<&'static RelayProgram, String> {
    participant::by_name(ALL, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        participant::check_names(ALL);
        assert!(by_name("socat").is_err_and(|message| message.contains("haproxy")));
    }
}
