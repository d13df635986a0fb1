//! The contenders of a run, and the rounds in which they are measured.

use crate::error::Error;
use crate::participant::{self, Contender, Exclusion};
use crate::rounds::{Case, Measurement, Rounds};

/// A contender in this run.
pub(crate) struct Participant<C: 'static> {
    /// The contender.
    pub(crate) contender: &'static C,
    /// The name and the version of the contender's software, or `None` if the contender cannot be
    /// run.
    pub(crate) version: Option<String>,
    /// Why the contender was never measured, or stopped being measured. `None` while it takes part.
    pub(crate) exclusion: Option<Exclusion>,
}

/// Prepares the contenders in `chosen`, or all contenders if `chosen` is empty. If `version` fails
/// for a contender, the contender cannot be run, and is excluded from the start.
pub(crate) fn prepare<C: Contender>(
    all: &'static [C],
    chosen: &[&'static C],
    mut version: impl FnMut(&C) -> Result<String, Error>,
) -> Vec<Participant<C>> {
    participant::selected(all, chosen)
        .map(|contender| {
            let (version, exclusion) = match version(contender) {
                Ok(version) => (Some(version), None),
                Err(error) => (None, Some(Exclusion::unavailable(contender.name(), &error))),
            };
            Participant {
                contender,
                version,
                exclusion,
            }
        })
        .collect()
}

/// Measures the contenders in rounds. In each round, takes one case after the other, and measures
/// every contender once in that case before going on to the next case.
///
/// `measure` returns `None` if the contender does not support the case. `describe` formats a sample
/// for the progress that is printed on standard error.
///
/// # Errors
///
/// [`Error::Unavailable`] if no contender could be measured in any case, and [`Error::Interrupted`]
/// after Ctrl-C or SIGTERM.
pub(crate) fn measure_all<C: Contender, S, K: Case>(
    participants: &mut [Participant<C>],
    rounds: u32,
    cases: &[K],
    mut measure: impl FnMut(&C, K) -> Result<Option<S>, Error>,
    describe: impl Fn(&S) -> String,
) -> Result<Rounds<S, K>, Error> {
    let mut results = Rounds::default();
    for round in 1..=rounds as usize {
        for &case in cases {
            for participant in participants.iter_mut() {
                let sample = participant.attempt(case, |contender| measure(contender, case))?;
                let Some(sample) = sample.flatten() else {
                    continue;
                };
                let contender = participant.contender.name();
                eprintln!(
                    "round {round}/{rounds}  {:>7}  {contender:<14} {}",
                    case.text(),
                    describe(&sample)
                );
                results.push(Measurement {
                    round,
                    case,
                    contender,
                    sample,
                });
            }
        }
    }
    if results.is_empty() {
        return Err(Error::Unavailable(
            "no contender could be measured; see the reasons above".into(),
        ));
    }
    Ok(results)
}

/// Returns an error if a contender failed while being measured.
pub(crate) fn check_failures<C: Contender>(participants: &[Participant<C>]) -> Result<(), Error> {
    participant::check_failures(participants.iter().map(|participant| {
        let name = participant.contender.name();
        (name, participant.exclusion.as_ref())
    }))
}

impl<C: Contender> Participant<C> {
    /// Calls `work` and returns its result. Does nothing and returns `None` if the contender is
    /// excluded. If `work` fails, excludes the contender and returns `None`, so that the run
    /// continues with the others. Only [`Error::Interrupted`] is returned as an error.
    pub(crate) fn attempt<T>(
        &mut self,
        case: impl Case,
        work: impl FnOnce(&C) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        if self.exclusion.is_some() {
            return Ok(None);
        }
        match work(self.contender) {
            Ok(value) => Ok(Some(value)),
            Err(Error::Interrupted) => Err(Error::Interrupted),
            Err(error) => {
                let name = self.contender.name();
                self.exclusion = Some(Exclusion::failed(name, &case.phrase(), &error));
                Ok(None)
            }
        }
    }
}
