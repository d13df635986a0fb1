//! `compare copy`: compares ways to send a file over TCP. In each measurement, a sender sends a
//! file from the page cache once, over a new loopback connection, to a receiver that discards the
//! bytes.

mod contender;
mod contenders;
mod file;
mod job;
pub(crate) mod options;
mod report;
mod results;
pub(crate) mod sender;
mod targets;
mod transfer;

use crate::error::Error;
use crate::loopback::participants;
use crate::loopback::session::Session;
use crate::measure::Usage;
use crate::page;
use crate::rounds::Measure;
use crate::table::{percent, size_text, three_significant};

use file::SourceFile;
use options::CopyOptions;
use results::CopyMeasure;
use transfer::Transfers;

/// Runs the comparison, prints the report, and writes it.
///
/// # Errors
///
/// [`Error::Failed`] if a contender failed or sent wrong bytes. The report is written even then,
/// with the results of the other contenders.
pub(crate) fn run(options: &CopyOptions) -> Result<(), Error> {
    let session = Session::open(
        "copy",
        &options.loopback,
        options.out.as_deref(),
        options.is_incomplete(),
    )?;
    let mut participants = participants::prepare(contenders::ALL, &options.contenders, |one| {
        Ok((one.version)())
    });
    let files = options
        .sizes
        .iter()
        .map(|&size| SourceFile::create(session.scratch(), size))
        .collect::<Result<Vec<_>, _>>()?;
    let congestion = &options.loopback.congestion;
    let mut transfers = Transfers {
        session: &session,
        receiver: session.receiver(congestion)?,
        congestion,
    };

    for file in &files {
        let expected = file.read()?;
        for participant in &mut participants {
            participant.attempt(file.size, |contender| {
                transfers.verify(contender, file, &expected)
            })?;
        }
        eprintln!(
            "verified every byte of one transfer per contender at {}",
            size_text(file.size)
        );
    }
    let results = participants::measure_all(
        &mut participants,
        options.rounds,
        &options.sizes,
        |contender, size| match files.iter().find(|file| file.size == size) {
            Some(file) => transfers.measure(contender, file).map(Some),
            None => Ok(None),
        },
        describe,
    )?;
    let report = report::CopyReport {
        options,
        participants: &participants,
        results: &results,
        facts: session.facts(),
    };
    page::publish(
        session.output_directory(),
        &report.markdown(),
        &report::raw_data(&results),
    )?;
    participants::check_failures(&participants)
}

/// Formats a measurement for the progress that is printed on standard error.
fn describe(usage: &Usage) -> String {
    format!(
        "{:>8} CPU s  {:.4} CPU s/GB  {:>6.2} GB/s  (sender {}, receiver {} of a CPU)",
        three_significant(CopyMeasure::TransferCpu.value(usage)),
        CopyMeasure::SenderCpu.value(usage),
        CopyMeasure::Throughput.value(usage),
        percent(CopyMeasure::SenderShare.value(usage)),
        percent(CopyMeasure::ReceiverShare.value(usage)),
    )
}
