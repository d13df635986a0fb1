//! `compare receive`: compares ways to receive from a TCP socket. In each measurement, this process
//! sends over a loopback connection to a contender's process, which receives the bytes and does
//! nothing with them. Sender and receiver run on different CPUs by default.

mod buffer_ring;
mod contender;
mod contenders;
mod job;
mod meter;
pub(crate) mod options;
pub(crate) mod receiver;
mod report;
mod results;
mod scenario;
mod sender;
mod targets;

use crate::error::Error;
use crate::loopback::participants;
use crate::loopback::session::Session;
use crate::page;
use crate::rounds::Measure;
use crate::table::percent;

use contender::MemoryReceiver;
use job::{ReceiverReport, ReceiverSetup};
use options::ReceiveOptions;
use results::{ReceiveMeasure, ReceiveSample};
use scenario::Scenario;

/// Runs the comparison, prints the report, and writes it.
///
/// # Errors
///
/// [`Error::Failed`] if a contender failed while being measured. The report is written even then,
/// with the results of the other contenders. A contender that cannot be started is not an error:
/// the report says that it was left out.
pub(crate) fn run(options: &ReceiveOptions) -> Result<(), Error> {
    let session = Session::open(
        options.comparison(),
        &options.loopback,
        options.out.as_deref(),
        options.is_incomplete(),
    )?;
    let mut participants =
        participants::prepare(contenders::ALL, &options.contenders, |one| (one.version)());
    session.pin_this_sender()?;
    let results = participants::measure_all(
        &mut participants,
        options.rounds,
        &options.scenarios,
        |contender, scenario| measure(contender, options, scenario, &session).map(Some),
        describe,
    )?;
    let report = report::ReceiveReport {
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

/// Starts a receiver, sends to it until it has measured itself, and checks its report against the
/// bytes that were sent.
fn measure(
    contender: &MemoryReceiver,
    options: &ReceiveOptions,
    scenario: Scenario,
    session: &Session,
) -> Result<ReceiveSample, Error> {
    let congestion = &options.loopback.congestion;
    let listener = scenario.listen(congestion)?;
    let command = contender.command(&ReceiverSetup {
        port: &listener.port()?.to_string(),
        options,
    })?;
    let (sent, printed) = session.run_receiver(&command, |receiver| {
        sender::send(listener.accept(receiver)?, scenario)
    })?;
    let report = ReceiverReport::parse(&printed)?;
    report.check(sent.bytes, congestion)?;
    Ok(ReceiveSample::new(&report, &sent))
}

/// Formats a measurement for the progress that is printed on standard error.
fn describe(sample: &ReceiveSample) -> String {
    format!(
        "{:>6.2} GB/s  {:.4} CPU s/GB  {:>5} mapped  (sender {}, receiver {} of a CPU)",
        ReceiveMeasure::Throughput.value(sample),
        ReceiveMeasure::ReceiverCpu.value(sample),
        percent(ReceiveMeasure::MappedShare.value(sample)),
        percent(ReceiveMeasure::SenderShare.value(sample)),
        percent(ReceiveMeasure::ReceiverShare.value(sample)),
    )
}
