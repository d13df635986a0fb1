//! `compare memory`: compares mechanisms that send memory over TCP. In each measurement, a sender
//! sends over one loopback connection, or over several at the same time, to a receiver that
//! discards the bytes. Sender and receiver run on different CPUs by default.

mod contender;
mod contenders;
mod iperf3;
mod job;
pub(crate) mod options;
mod receive;
mod report;
mod results;
pub(crate) mod sender;
mod targets;

use crate::error::Error;
use crate::loopback::participants;
use crate::loopback::receiver::Receiver;
use crate::loopback::session::Session;
use crate::page;
use crate::rounds::Measure;
use crate::table::percent;

use contender::MemorySender;
use job::SenderSetup;
use options::MemoryOptions;
use receive::MeasurementTimes;
use results::{MemoryMeasure, MemorySample};

/// Runs the comparison, prints the report, and writes it.
///
/// # Errors
///
/// [`Error::Failed`] if a contender failed while being measured. The report is written even then,
/// with the results of the other contenders. A contender that cannot be started is not an error:
/// the report says that it was left out.
pub(crate) fn run(options: &MemoryOptions) -> Result<(), Error> {
    let session = Session::open(
        options.comparison(),
        &options.loopback,
        options.out.as_deref(),
        options.is_incomplete(),
    )?;
    let mut participants = participants::prepare(contenders::ALL, &options.chosen(), |contender| {
        contender.version(options.connections)
    });
    let mut receiver = session.receiver(&options.loopback.congestion)?;
    let results = participants::measure_all(
        &mut participants,
        options.rounds,
        &options.sizes,
        |contender, size| match contender.supports(size) {
            true => measure(contender, options, size, &session, &mut receiver).map(Some),
            false => Ok(None),
        },
        describe,
    )?;
    let report = report::MemoryReport {
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

/// Starts a sender, measures it, and checks the sender's own report against the bytes that arrived.
fn measure(
    contender: &MemorySender,
    options: &MemoryOptions,
    size: u64,
    session: &Session,
    receiver: &mut Receiver,
) -> Result<MemorySample, Error> {
    let congestion = &options.loopback.congestion;
    let command = contender.command(&SenderSetup {
        port: &receiver.port()?.to_string(),
        size: &size.to_string(),
        connections: options.connections,
        sending_time: options.sending_time(),
        congestion,
        scratch: session.scratch(),
    })?;
    let times = MeasurementTimes {
        warm_up: options.warm_up,
        window: options.seconds,
    };
    let (received, printed) = session.run_sender(
        &command,
        |sender| {
            let protocol = contender.protocol(size);
            receive::measure(receiver, sender, protocol, options.connections, times)
        },
        |printed| contender.failure(printed),
    )?;
    let report = contender.parse_report(&printed)?;
    report.check(received.total_bytes, congestion)?;
    Ok(MemorySample {
        usage: received.usage,
        sent: report.sent,
    })
}

/// Formats a measurement for the progress that is printed on standard error.
fn describe(sample: &MemorySample) -> String {
    format!(
        "{:>6.2} GB/s  {:.4} CPU s/GB  {:>5} copied  (sender {}, receiver {} of a CPU)",
        MemoryMeasure::Throughput.value(sample),
        MemoryMeasure::SenderCpu.value(sample),
        percent(MemoryMeasure::CopiedShare.value(sample)),
        percent(MemoryMeasure::SenderShare.value(sample)),
        percent(MemoryMeasure::ReceiverShare.value(sample)),
    )
}
