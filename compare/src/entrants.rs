//! What contenders of every comparison have in common: names, and what can go wrong with them.

use crate::error::Error;

/// Somebody who can take part in a comparison.
pub(crate) trait Named: 'static {
    /// How it is named on the command line and in every table.
    fn name(&self) -> &'static str;
}

/// Finds a contender by its name.
pub(crate) fn by_name<C: Named>(all: &'static [C], name: &str) -> Result<&'static C, String> {
    all.iter()
        .find(|contender| contender.name() == name)
        .ok_or_else(|| {
            let names: Vec<&str> = all.iter().map(Named::name).collect();
            format!("no contender {name:?}; there are {}", names.join(", "))
        })
}

/// Those of `all` that were chosen, in the order of `all`; everyone if nobody was.
pub(crate) fn chosen<C: Named>(
    all: &'static [C],
    chosen: &[&'static C],
) -> impl Iterator<Item = &'static C> {
    all.iter().filter(move |contender| {
        chosen.is_empty() || chosen.iter().any(|one| one.name() == contender.name())
    })
}

/// Why a contender does not take part, or no longer.
pub(crate) enum Trouble {
    /// It did not come up.
    Skipped(String),
    /// It came up, and then failed.
    Failed(String),
}

impl Trouble {
    /// A contender that is left out from the beginning; says so.
    pub(crate) fn skipped(name: &str, error: &Error) -> Self {
        eprintln!("compare: without {name}: {error}");
        Self::Skipped(error.to_string())
    }

    /// A contender that failed while it was measured; says so.
    pub(crate) fn failed(name: &str, at: &str, error: &Error) -> Self {
        eprintln!("compare: {name} failed at {at}, on without it: {error}");
        Self::Failed(format!("at {at}: {error}"))
    }

    /// Whether there may be results from before it.
    pub(crate) fn is_half_way(&self) -> bool {
        matches!(self, Self::Failed(_))
    }

    /// For the report.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Skipped(why) => format!("**Left out: {why}**"),
            Self::Failed(why) => format!("**Failed {why}**"),
        }
    }
}

/// An error if anybody failed half-way; whoever could not be started at all is a visible row instead.
pub(crate) fn failures<'a>(
    entrants: impl Iterator<Item = (&'static str, Option<&'a Trouble>)>,
) -> Result<(), Error> {
    let failed: Vec<String> = entrants
        .filter_map(|(name, trouble)| match trouble {
            Some(Trouble::Failed(why)) => Some(format!("{name} ({why})")),
            Some(Trouble::Skipped(_)) | None => None,
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
    fn only_failures_half_way_are_errors() {
        let skipped = Trouble::Skipped("not installed".into());
        let failed = Trouble::Failed("at 1 KiB: it ended".into());
        assert!(failures([("a", None), ("b", Some(&skipped))].into_iter()).is_ok());
        let message = failures([("a", Some(&skipped)), ("b", Some(&failed))].into_iter())
            .map_err(|error| error.to_string());
        assert!(
            message.is_err_and(|message| message.contains("b (at 1 KiB: it ended)")
                && !message.contains("not installed"))
        );
    }
}
