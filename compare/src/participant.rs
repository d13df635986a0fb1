//! The code that the contenders of all comparisons share: names, selection and exclusion.

use crate::error::Error;

/// A program, or a part of this program, that can take part in a comparison.
pub(crate) trait Contender: 'static {
    /// The contender's name on the command line and in every table.
    fn name(&self) -> &'static str;

    /// A phrase for the report that says what the contender is.
    fn about(&self) -> &'static str;

    /// Whether the contender is part of this project. All other contenders are peers, and the
    /// report compares each of ours with every peer.
    fn is_ours(&self) -> bool;
}

/// Finds a contender by its name.
pub(crate) fn by_name<C: Contender>(all: &'static [C], name: &str) -> Result<&'static C, String> {
    all.iter()
        .find(|contender| contender.name() == name)
        .ok_or_else(|| {
            let names: Vec<&str> = all.iter().map(Contender::name).collect();
            format!("no contender {name:?}: choose from {}", names.join(", "))
        })
}

/// Checks that each contender is found by its name, and no other one has that name.
#[cfg(test)]
pub(crate) fn check_names<C: Contender>(all: &'static [C]) {
    for contender in all {
        let namesakes = all.iter().filter(|other| other.name() == contender.name());
        assert_eq!(namesakes.count(), 1, "{}", contender.name());
        let found = by_name(all, contender.name());
        assert!(found.is_ok_and(|found| found.about() == contender.about()));
    }
}

/// Returns the contenders in `chosen`, or all contenders if `chosen` is empty. Either way, they are
/// returned in the order in which `all` lists them.
pub(crate) fn selected<C: Contender>(
    all: &'static [C],
    chosen: &[&'static C],
) -> impl Iterator<Item = &'static C> {
    all.iter().filter(move |contender| {
        chosen.is_empty() || chosen.iter().any(|one| one.name() == contender.name())
    })
}

/// Why a contender was never measured, or stopped being measured.
pub(crate) enum Exclusion {
    /// The contender could not be started.
    Unavailable(String),
    /// The contender was started, and failed later.
    Failed(String),
}

impl Exclusion {
    /// Prints why a contender could not be started, and returns the matching `Exclusion`.
    pub(crate) fn unavailable(name: &str, error: &Error) -> Self {
        eprintln!("compare: leaving out {name}: {error}");
        Self::Unavailable(error.to_string())
    }

    /// Prints why a contender failed while being measured, and returns the matching `Exclusion`.
    /// `case` is the case in which the contender failed, as in `at 1 KiB`.
    pub(crate) fn failed(name: &str, case: &str, error: &Error) -> Self {
        eprintln!("compare: {name} failed {case}, continuing without it: {error}");
        Self::Failed(format!("{case}: {error}"))
    }

    /// Whether the contender may have been measured before it was excluded.
    pub(crate) fn may_have_results(&self) -> bool {
        matches!(self, Self::Failed(_))
    }

    /// Returns the text for the report.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Unavailable(why) => format!("**Left out: {why}**"),
            Self::Failed(why) => format!("**Failed {why}**"),
        }
    }
}

/// Returns an error if a contender failed while being measured.
///
/// A contender that could not be started does not cause an error here: the report says that it was
/// left out, and why.
pub(crate) fn check_failures<'a>(
    participants: impl Iterator<Item = (&'static str, Option<&'a Exclusion>)>,
) -> Result<(), Error> {
    let failed: Vec<String> = participants
        .filter_map(|(name, exclusion)| match exclusion {
            Some(Exclusion::Failed(why)) => Some(format!("{name} ({why})")),
            Some(Exclusion::Unavailable(_)) | None => None,
        })
        .collect();
    if failed.is_empty() {
        Ok(())
    } else {
        Err(Error::Failed(failed.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_failures_during_the_measurement_are_errors() {
        let unavailable = Exclusion::Unavailable("not installed".into());
        let failed = Exclusion::Failed("at 1 KiB: it ended".into());
        assert!(check_failures([("a", None), ("b", Some(&unavailable))].into_iter()).is_ok());
        let message = check_failures([("a", Some(&unavailable)), ("b", Some(&failed))].into_iter())
            .map_err(|error| error.to_string());
        assert!(
            message.is_err_and(|message| message.contains("b (at 1 KiB: it ended)")
                && !message.contains("not installed"))
        );
    }
}
