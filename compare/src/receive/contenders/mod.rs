//! The contenders of `compare receive`. To add a contender, write a module with a `CONTENDER` that
//! says how to receive, and add the `CONTENDER` to [`ALL`].

mod recv;
mod uncopied;
mod uring_multishot;

use super::contender::MemoryReceiver;
use crate::participant;

/// All contenders, in the order in which they are measured and listed.
pub(super) const ALL: &[MemoryReceiver] = &[
    recv::CONTENDER,
    uncopied::MAP_RECEIVE,
    uncopied::PLAN,
    uncopied::COPY,
    uring_multishot::CONTENDER,
];

/// Finds a contender by its name.
pub(super) fn by_name(name: &str) -> Result<&'static MemoryReceiver, String> {
    participant::by_name(ALL, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        participant::check_names(ALL);
        assert!(by_name("readv").is_err_and(|message| message.contains("uring_multishot")));
    }
}
