//! The contenders of `compare get`. To add a contender, write a module with a `CONTENDER` that says
//! how to download, and add the `CONTENDER` to [`ALL`].

mod aria2c;
mod curl;
pub(crate) mod plain_loop;
mod uncopied;
mod wget;

use super::contender::Downloader;
use crate::participant;

/// All contenders, in the order in which they are measured and listed. The first contender that is
/// not ours is the baseline: the report has the ratio of every other contender to the baseline.
pub(super) const ALL: &[Downloader] = &[
    uncopied::CONTENDER,
    curl::CONTENDER,
    wget::CONTENDER,
    aria2c::CONTENDER,
    plain_loop::CONTENDER,
];

/// Finds a contender by its name.
pub(super) fn by_name(name: &str) -> Result<&'static Downloader, String> {
    participant::by_name(ALL, name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::get::case::GetCase;

    #[test]
    fn names_are_unique_and_found() {
        participant::check_names(ALL);
        assert!(by_name("cat").is_err_and(|message| message.contains("uncopied, curl")));
    }

    #[test]
    fn only_aria2_and_the_loop_leave_cases_out() {
        let names_in = |case| {
            let taking_part = ALL.iter().filter(move |one| (one.takes_part)(case));
            taking_part.map(|one| one.name).collect::<Vec<_>>()
        };
        assert_eq!(names_in(GetCase::File(1)).len(), ALL.len());
        let without_aria2 = ["uncopied", "curl", "wget", "loop"];
        assert_eq!(names_in(GetCase::Null(1)), without_aria2);
        let without_loop = ["uncopied", "curl", "wget", "aria2c"];
        assert_eq!(names_in(GetCase::Many(1)), without_loop);
    }
}
