//! The sections that the reports of `memory`, `copy`, `receive`, `get` and `relay` share.

use std::ffi::OsString;

use super::participants::Participant;
use crate::error::Error;
use crate::page;
use crate::participant::Contender;
use crate::rounds::{Case, Measure, Rounds};

/// Builds the section that lists the contenders, with their versions and commands.
pub(crate) fn contenders<C: Contender>(
    participants: &[Participant<C>],
    command: impl Fn(&C) -> Result<Vec<OsString>, Error>,
) -> String {
    let mut section = String::from("## Contenders\n\n");
    for participant in participants {
        let contender = participant.contender;
        let command = command(contender).map(|command| page::command_text(&command));
        let version = participant.version.as_deref();
        section += &page::contender_line(
            contender,
            version.zip(command.ok().as_deref()),
            participant.exclusion.as_ref(),
        );
    }
    section.push('\n');
    section
}

/// Builds the section with the tables of medians. `remark` returns the remark for a case and a
/// contender. It is not called for a contender that could not be started, whose remark is always
/// that it was left out.
pub(crate) fn medians<C: Contender, M: Measure, K: Case>(
    participants: &[Participant<C>],
    results: &Rounds<M::Sample, K>,
    columns: &[M],
    cases: &[K],
    remark: impl Fn(K, &C) -> String,
) -> String {
    let names: Vec<&str> = participants
        .iter()
        .map(|participant| participant.contender.name())
        .collect();
    let remark = |case, index: usize| match &participants[index].exclusion {
        Some(exclusion) if !exclusion.may_have_results() => "left out: see above".to_owned(),
        Some(_) | None => remark(case, participants[index].contender),
    };
    let tables = page::medians(results, columns, cases, &names, remark);
    format!("## Measured\n\n{tables}")
}

/// Builds the section with the tables of ratios. For each measure there is one table per peer in
/// the run. A peer is a contender that is not ours. The table of the first peer has the ratios of
/// all other contenders to that peer. The tables of the other peers have only the ratios of our
/// contenders to the peer.
///
/// Each measure is paired with `more` or `less`: the direction in which the measure gets better.
pub(crate) fn ratios<C: Contender, M: Measure, K: Case>(
    participants: &[Participant<C>],
    results: &Rounds<M::Sample, K>,
    measures: &[(M, &str)],
    cases: &[K],
) -> String {
    let names_of = |is_ours| {
        participants
            .iter()
            .map(|participant| participant.contender)
            .filter(move |contender| contender.is_ours() == is_ours)
            .map(|contender| contender.name())
    };
    let mut section = String::from("## Ratios\n\n");
    for &(measure, better) in measures {
        for (index, peer) in names_of(false).enumerate() {
            let other_peers = names_of(false).filter(|&other| index == 0 && other != peer);
            let pairs: Vec<_> = names_of(true)
                .chain(other_peers)
                .map(|name| (name, peer))
                .collect();
            if !pairs.is_empty() {
                section += &page::ratios(results, measure, better, cases, &pairs);
            }
        }
    }
    section
}
