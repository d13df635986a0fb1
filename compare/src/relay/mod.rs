//! `compare relay`: compares programs that relay TCP connections. Starts all relays in front of the
//! same server, puts one after the other under the same loads, and reports the measurements.

mod case;
pub(crate) mod contender;
pub(crate) mod contenders;
mod load;
mod namespace;
pub(crate) mod options;
mod relays;
mod report;
mod results;
mod targets;

use crate::error::Error;
use crate::loopback::participants::{self, Participant};
use crate::loopback::session::Session;
use crate::machine::CongestionSetting;
use crate::participant::Exclusion;
use crate::table::size_text;
use crate::{page, process};

use case::RelayCase;
use contender::RelayProgram;
use load::RelayTarget;
use load::bulk::SourceFile;
use options::RelayOptions;
use relays::{Measurements, Pace, Relays};
use results::RelaySample;

/// Runs the comparison, prints the report, and writes it.
///
/// # Errors
///
/// [`Error::Failed`] if a contender failed or delivered wrong bytes: the report is written even
/// then, with the results of the others. [`Error::Unavailable`] if this process may not create a
/// network namespace. A contender that cannot be started is not an error: the report says that it
/// was left out.
pub(crate) fn run(options: &RelayOptions) -> Result<(), Error> {
    let session = Session::open(
        "relay",
        &options.loopback,
        options.out.as_deref(),
        options.is_incomplete(),
    )?;
    let cases = case::all(
        &options.bulk_connections,
        &options.message_sizes,
        &options.message_connections,
        options.only,
    );
    let mut relays = Relays::default();
    let mut participants =
        participants::prepare(contenders::ALL, &options.contenders, |contender| {
            relays.prepare(contender, session.scratch())
        });
    // Building a contender may need the network, so this comes after it.
    namespace::enter()?;
    let congestion = CongestionSetting::set(&options.loopback.congestion)?;
    let target = RelayTarget::listen(relays::TARGET, congestion.name())?;
    for participant in &mut participants {
        start(participant, &mut relays, options.loopback.sender_cpu)?;
    }
    process::pin_to(options.loopback.receiver_cpu)?;

    let mut measurements = Measurements {
        relays,
        target,
        file: SourceFile::create(session.scratch())?,
        times: options.times(),
        congestion: congestion.name(),
        pace: Pace::default(),
    };
    verify(&mut participants, &cases, &mut measurements, options)?;
    let results = participants::measure_all(
        &mut participants,
        options.rounds,
        &cases,
        |contender, case| {
            congestion.check()?;
            measurements.measure(contender, case).map(Some)
        },
        RelaySample::describe,
    )?;
    let report = report::RelayReport {
        options,
        cases: &cases,
        participants: &participants,
        results: &results,
        relays: &measurements.relays,
        facts: session.facts(),
        congestion: congestion.name(),
    };
    let page = report.markdown(session.scratch());
    match options.json {
        true => page::print(&report.json()?)?,
        false => page::print(&page)?,
    }
    page::write(
        session.output_directory(),
        &page,
        &report::raw_data(&results),
    )?;
    participants::check_failures(&participants)
}

/// Starts a contender, unless it is excluded. If it does not start, excludes it.
fn start(
    participant: &mut Participant<RelayProgram>,
    relays: &mut Relays,
    cpu: usize,
) -> Result<(), Error> {
    if participant.exclusion.is_some() {
        return Ok(());
    }
    let contender = participant.contender;
    match relays.start(contender, cpu) {
        Ok(()) => Ok(()),
        Err(error @ (Error::Interrupted | Error::Usage(_))) => Err(error),
        Err(error) => {
            participant.exclusion = Some(Exclusion::unavailable(contender.name, &error));
            Ok(())
        }
    }
}

/// Compares every byte of one transfer per contender and case of bulk traffic.
fn verify(
    participants: &mut [Participant<RelayProgram>],
    cases: &[RelayCase],
    measurements: &mut Measurements<'_>,
    options: &RelayOptions,
) -> Result<(), Error> {
    for &case in cases {
        let RelayCase::Bulk {
            connections,
            direction,
        } = case
        else {
            continue;
        };
        for participant in participants.iter_mut() {
            participant.attempt(case, |contender| {
                measurements.verify(contender, connections, direction, options.verified)
            })?;
        }
    }
    if cases
        .iter()
        .any(|case| matches!(case, RelayCase::Bulk { .. }))
    {
        eprintln!(
            "compared every byte of transfers of {} per connection",
            size_text(options.verified)
        );
    }
    Ok(())
}
