//! `compare get`: compares programs that download files. In each measurement, a downloader fetches
//! one large file or many small files from nginx on loopback.

mod case;
mod contender;
mod contenders;
mod download;
mod files;
pub(crate) mod options;
mod report;
mod results;
mod server;
mod targets;

pub(crate) use contenders::plain_loop;

use crate::error::Error;
use crate::loopback::participants;
use crate::loopback::session::Session;
use crate::machine::CongestionSetting;
use crate::page;
use crate::rounds::Measure;
use crate::table::{grouped, percent, three_significant};

use download::{Downloads, Sample};
use files::SourceFiles;
use options::GetOptions;
use results::GetMeasure;
use server::FileServer;

/// Runs the comparison, prints the report, and writes it.
///
/// # Errors
///
/// [`Error::Unavailable`] if nginx is not installed. [`Error::Failed`] if a downloader failed or
/// saved wrong bytes: the report is written even then, with the results of the others.
pub(crate) fn run(options: &GetOptions) -> Result<(), Error> {
    let session = Session::open(
        "get",
        &options.loopback,
        options.out.as_deref(),
        options.is_incomplete(),
    )?;
    let cases = case::all(&options.sizes, options.files);
    let mut participants =
        participants::prepare(contenders::ALL, &options.contenders, |one| (one.version)());
    let files = SourceFiles::create(session.scratch(), &cases)?;
    let congestion = CongestionSetting::set(&options.loopback.congestion)?;
    let mut downloads = Downloads {
        session: &session,
        server: FileServer::start(&session, &files, options.loopback.sender_cpu)?,
        files: &files,
        parallel: options.parallel,
        made: 0,
    };
    let results = participants::measure_all(
        &mut participants,
        options.rounds,
        &cases,
        |contender, case| {
            if !(contender.takes_part)(case) {
                return Ok(None);
            }
            congestion.check()?;
            downloads.measure(contender, case).map(Some)
        },
        describe,
    )?;
    let report = report::GetReport {
        options,
        cases: &cases,
        participants: &participants,
        results: &results,
        facts: session.facts(),
        congestion: congestion.name(),
        server: &downloads.server,
    };
    page::publish(
        session.output_directory(),
        &report.markdown(session.scratch()),
        &report::raw_data(&results),
    )?;
    participants::check_failures(&participants)
}

/// Formats a measurement for the progress that is printed on standard error.
fn describe(sample: &Sample) -> String {
    format!(
        "{:>8} CPU s  {:>8} s  {:>6.2} GB/s  {:>7} files/s  (client {}, server {} of a CPU)",
        three_significant(GetMeasure::ClientCpu.value(sample)),
        three_significant(GetMeasure::Seconds.value(sample)),
        GetMeasure::Throughput.value(sample),
        grouped(GetMeasure::FileRate.value(sample)),
        percent(GetMeasure::ClientShare.value(sample)),
        percent(GetMeasure::ServerShare.value(sample)),
    )
}
