//! The sections that the reports of `memory` and `copy` share.

use std::ffi::OsString;

use super::participants::Participant;
use crate::error::Error;
use crate::page;
use crate::participant::Contender;
use crate::rounds::{Measure, Rounds};

/// The list of contenders, with their versions and commands.
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

/// The tables of medians. `remark` is asked for the remark of a contender that is not excluded from
/// the beginning.
pub(crate) fn medians<C: Contender, M: Measure>(
    participants: &[Participant<C>],
    results: &Rounds<M::Sample>,
    columns: &[M],
    sizes: &[u64],
    remark: impl Fn(u64, &C) -> String,
) -> String {
    let names: Vec<&str> = participants
        .iter()
        .map(|participant| participant.contender.name())
        .collect();
    let remark = |size, index: usize| match &participants[index].exclusion {
        Some(exclusion) if !exclusion.may_have_results() => "left out: see above".to_owned(),
        Some(_) | None => remark(size, participants[index].contender),
    };
    let tables = page::medians(results, columns, sizes, &names, remark);
    format!("## Measured\n\n{tables}")
}

/// The tables of ratios: for each measure, one table per peer that takes part. Every contender is
/// divided by the first peer, and ours also by each of the others.
///
/// Each measure comes with the direction that is better, as a word.
pub(crate) fn ratios<C: Contender, M: Measure>(
    participants: &[Participant<C>],
    results: &Rounds<M::Sample>,
    measures: &[(M, &str)],
    sizes: &[u64],
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
                section += &page::ratios(results, measure, better, sizes, &pairs);
            }
        }
    }
    section
}
