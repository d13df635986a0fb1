//! The contenders of `compare serve`. To add a contender, write a module with a `CONTENDER` that
//! says how to start the server, and add the `CONTENDER` to [`ALL`].

pub(crate) mod axum;
pub(crate) mod axum_uncopied;
mod nginx;
pub(crate) mod plain;
mod uncopied;

use super::contender::FileServer;
use crate::participant;

/// All contenders, in the order in which they are measured and listed.
pub(super) const ALL: &[FileServer] = &[
    uncopied::CONTENDER,
    uncopied::WITH_ACCESS_LOG,
    nginx::CONTENDER,
    plain::CONTENDER,
    axum::CONTENDER,
    axum_uncopied::CONTENDER,
];

/// Finds a contender by its name.
pub(super) fn by_name(name: &str) -> Result<&'static FileServer, String> {
    participant::by_name(ALL, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        participant::check_names(ALL);
        assert!(by_name("apache").is_err_and(|message| message.contains("nginx")));
    }
}
