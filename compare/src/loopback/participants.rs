//! The contenders of a run, and the rounds in which they are measured.

use crate::error::Error;
use crate::participant::{self, Contender, Exclusion};
use crate::rounds::{Measurement, Rounds};
use crate::table::size_text;

/// A contender in this run.
pub(crate) struct Participant<C: 'static> {
    /// The contender.
    pub(crate) contender: &'static C,
    /// What exactly is run, if it can be run.
    pub(crate) version: Option<String>,
    /// Why it is not measured, or not any more.
    pub(crate) exclusion: Option<Exclusion>,
}

/// The contenders in `chosen`, or all of them if it is empty. A contender without a version is
/// excluded.
pub(crate) fn prepare<C: Contender>(
    all: &'static [C],
    chosen: &[&'static C],
    version: impl Fn(&C) -> Result<String, Error>,
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

/// Measures everything round by round: at each size A B C D, then the next size, then all of it
/// again.
///
/// `measure` returns `None` if the contender does not support the size. `describe` formats a sample
/// for the progress on standard error.
///
/// # Errors
///
/// [`Error::Unavailable`] if there is no measurement at all, and [`Error::Interrupted`].
pub(crate) fn measure_all<C: Contender, S>(
    participants: &mut [Participant<C>],
    rounds: u32,
    sizes: &[u64],
    mut measure: impl FnMut(&C, u64) -> Result<Option<S>, Error>,
    describe: impl Fn(&S) -> String,
) -> Result<Rounds<S>, Error> {
    let mut results = Rounds::default();
    for round in 1..=rounds as usize {
        for &size in sizes {
            for participant in participants.iter_mut() {
                let sample = participant.attempt(size, |contender| measure(contender, size))?;
                let Some(sample) = sample.flatten() else {
                    continue;
                };
                let contender = participant.contender.name();
                eprintln!(
                    "round {round}/{rounds}  {:>7}  {contender:<14} {}",
                    size_text(size),
                    describe(&sample)
                );
                results.push(Measurement {
                    round,
                    size,
                    contender,
                    sample,
                });
            }
        }
    }
    if results.is_empty() {
        return Err(Error::Unavailable(
            "no contender could be measured; see above why".into(),
        ));
    }
    Ok(results)
}

/// Returns an error if a contender failed while it was measured.
pub(crate) fn check_failures<C: Contender>(participants: &[Participant<C>]) -> Result<(), Error> {
    participant::check_failures(participants.iter().map(|participant| {
        let name = participant.contender.name();
        (name, participant.exclusion.as_ref())
    }))
}

impl<C: Contender> Participant<C> {
    /// Calls `work`, unless the contender is excluded; then returns `None`. A failure excludes it.
    /// Only Ctrl-C ends the whole run.
    pub(crate) fn attempt<T>(
        &mut self,
        size: u64,
        work: impl FnOnce(&C) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        if self.exclusion.is_some() {
            return Ok(None);
        }
        match work(self.contender) {
            Ok(value) => Ok(Some(value)),
            Err(Error::Interrupted) => Err(Error::Interrupted),
            Err(error) => {
                let at = size_text(size);
                self.exclusion = Some(Exclusion::failed(self.contender.name(), &at, &error));
                Ok(None)
            }
        }
    }
}
