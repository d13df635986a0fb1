//! `uncopied bench`: what each mechanism costs on this machine.
//!
//! | module | what it does |
//! |---|---|
//! | `catalog` | what can be measured |
//! | `network`, `namespace` | reaching the listener: a child, or one on another machine |
//! | `protocol` | what the two sides tell each other |
//! | `sender`, `listener` | the two sides |
//! | `calls` | times and counts of calls |
//! | `summary`, `thresholds` | from figures to results |
//! | `results`, `text`, `csv`, `page` | the results, and how people and programs see them |

mod calls;
mod catalog;
mod csv;
mod error;
mod listener;
mod namespace;
mod network;
mod page;
mod progress;
mod protocol;
mod results;
mod sender;
mod summary;
mod text;
mod thresholds;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use uncopied_measure::interrupt;
use uncopied_measure::size::size_text;

use crate::error::Error;
use crate::flags::BenchFlags;
use crate::output::print;
use crate::result_file::ResultFile;

pub(crate) use error::BenchError;

use catalog::Case;
use network::Session;
use progress::Progress;
use results::{Cell, FORMAT, Machine, Network, Results, Setting};
use sender::{Sample, Scratch, Window, measure};
use summary::{Measured, remarks};

/// The sizes of a whole run, and of `--quick`.
const SIZES: [u64; 8] = [
    1 << 10,
    4 << 10,
    16 << 10,
    64 << 10,
    256 << 10,
    1 << 20,
    16 << 20,
    64 << 20,
];
const QUICK_SIZES: [u64; 3] = [4 << 10, 64 << 10, 1 << 20];

const DEFAULT_ROUNDS: u32 = 3;
const DEFAULT_TIME: Duration = Duration::from_millis(500);
const QUICK_TIME: Duration = Duration::from_millis(60);

/// After this time, `--quick` begins no further measurement of a round that repeats another one.
const QUICK_LIMIT: Duration = Duration::from_secs(27);

/// The warm-up is this part of the measurement.
const WARM_UP_DIVISOR: u32 = 4;

/// Measures, and prints the results; or listens for a sender.
///
/// # Errors
///
/// The results cannot be written, the listener cannot be reached, or bytes were lost or changed.
/// That a mechanism is refused is no error.
pub(crate) fn run(flags: &BenchFlags) -> Result<(), Error> {
    if let Some(address) = flags.listen {
        return Ok(listener::run(address, flags)?);
    }
    let cases = cases(flags)?;
    // Find out before measuring whether the files can be written.
    let open = |path: &Option<PathBuf>| path.as_deref().map(ResultFile::open).transpose();
    let output = open(&flags.output)?;
    let tuning = open(&flags.save_tuning)?;
    let report = open(&flags.report)?;
    let (results, remarks) = measure_all(flags, &cases)?;
    if let Some(report) = report {
        report.write(page::page(&results).as_bytes())?;
    }
    if let Some(tuning) = tuning {
        tuning.write(tuning_text(&results).as_bytes())?;
    }
    let bytes = if flags.json {
        let mut json = serde_json::to_vec_pretty(&results).map_err(output_failed)?;
        json.push(b'\n');
        json
    } else if flags.csv {
        csv::csv(&results).map_err(output_failed)?
    } else {
        text::text(&results, &cases, &remarks).into_bytes()
    };
    match output {
        Some(file) => file.write(&bytes),
        None => print(&bytes).map_err(Error::Output),
    }
}

fn output_failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Output(std::io::Error::other(error))
}

/// Returns the content of a file for `UNCOPIED_TUNING`.
fn tuning_text(results: &Results) -> String {
    let tuning = thresholds::tuning(&results.thresholds);
    let machine = &results.machine;
    format!(
        "# Measured by `{}` on {}, Linux {}.\n{tuning}",
        results.setting.command.escape_debug(),
        machine.cpu.escape_debug(),
        machine.kernel
    )
}

/// Returns what the flags say is to be measured.
fn cases(flags: &BenchFlags) -> Result<Vec<Case>, BenchError> {
    let mut sizes = match (flags.sizes.is_empty(), flags.quick) {
        (false, _) => flags.sizes.clone(),
        (true, true) => QUICK_SIZES.to_vec(),
        (true, false) => SIZES.to_vec(),
    };
    sizes.sort_unstable();
    sizes.dedup();
    let cases = Case::all(&flags.directions, &flags.mechanisms, &sizes);
    match cases.is_empty() {
        true => Err(BenchError::NothingToMeasure),
        false => Ok(cases),
    }
}

/// Measures all cases, in rounds.
fn measure_all(flags: &BenchFlags, cases: &[Case]) -> Result<(Results, Vec<String>), BenchError> {
    let began = Instant::now();
    // Before this process is pinned to one of the CPUs.
    let machine = Machine::describe();
    if flags.netns {
        namespace::enter()?;
    }
    interrupt::watch().map_err(BenchError::setup("watch for signals"))?;
    let mut session = Session::open(flags)?;
    let directory = flags.dir.clone().unwrap_or_else(std::env::temp_dir);
    let mut scratch = Scratch::in_directory(directory);
    let rounds = flags.rounds.unwrap_or(DEFAULT_ROUNDS);
    let time = match (flags.seconds, flags.quick) {
        (Some(time), _) => time,
        (None, true) => QUICK_TIME,
        (None, false) => DEFAULT_TIME,
    };
    let mut measured: Vec<Measured> = cases.iter().copied().map(Measured::nothing_of).collect();
    let progress = Progress::of(cases.len() as u64 * u64::from(rounds));
    'rounds: for round in 0..rounds {
        let window = Window {
            warm_up: time / WARM_UP_DIVISOR,
            measured: time,
            counts_calls: round == 0,
        };
        for case in &mut measured {
            if interrupt::is_interrupted() {
                return Err(BenchError::Interrupted);
            }
            if flags.quick && round > 0 && began.elapsed() > QUICK_LIMIT {
                break 'rounds;
            }
            progress.begin(format!(
                "{} {} {}",
                case.case.direction.name(),
                size_text(case.case.size),
                case.case.mechanism.name()
            ));
            if !case.is_refused() {
                let sample: Sample = measure(&mut session, &mut scratch, case.case, window)?;
                case.add(sample);
            }
            progress.end_one();
        }
    }
    drop(progress);
    let cells: Vec<Cell> = measured.iter().map(Measured::cell).collect();
    let remarks = remarks(&measured, &cells);
    let thresholds = thresholds::thresholds(&cells);
    let tuning = thresholds::tuning(&thresholds);
    let results = Results {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION"),
        machine,
        setting: setting(flags, &session, rounds, time),
        tuning: thresholds::by_key(&tuning),
        cells,
        thresholds,
    };
    Ok((results, remarks))
}

fn setting(flags: &BenchFlags, session: &Session, rounds: u32, time: Duration) -> Setting {
    let network = session.network();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    Setting {
        network,
        peer: flags.to.clone(),
        congestion: session.congestion().to_owned(),
        rounds,
        seconds_per_cell: time.as_secs_f64(),
        sender_cpu: session.sender_cpu(),
        receiver_cpu: session.receiver_cpu(),
        command: format!("uncopied {}", arguments.join(" ")),
        cannot_show: cannot_show(network)
            .iter()
            .map(|&sentence| sentence.to_owned())
            .collect(),
    }
}

/// Returns what a setting cannot show.
fn cannot_show(network: Network) -> &'static [&'static str] {
    match network {
        Network::Loopback | Network::Netns => &[
            "No network card is involved: what its driver, its interrupts, segmentation and \
             checksums cost, and what it saves by fetching pages itself.",
            "The kernel copies what is sent with MSG_ZEROCOPY and send_zc to the same machine, so \
             their cost without that copy, and their threshold, are not known.",
            "The bytes of a copy stay in the caches of the CPU, where the receiver finds them; \
             between machines, a copy costs more than here.",
            "A receiver that maps pages gets them from a copy that the kernel made for it, so what \
             mapping saves with a card that splits headers from payloads is not known.",
        ],
        Network::Remote => &[
            "Whether the receiver, or the network, limits the throughput: compare the column of \
             the limit, and the CPU time, rather than the throughput.",
            "What other programs on either machine did meanwhile.",
        ],
    }
}
