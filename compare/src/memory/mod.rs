//! The comparison of ways from memory to a TCP socket: one connection on loopback, a sender on its CPU,
//! and a receiver that throws away what comes.

pub(crate) mod contenders;
mod iperf3;
mod receiver;
mod report;
mod results;
pub(crate) mod sender;
mod targets;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use clap::Args;

use crate::entrants::{self, Trouble};
use crate::error::{Context, Error};
use crate::process::{self, Pinned};
use crate::rounds::Row;
use crate::table::{parse_seconds, parse_size, percent, size_text};
use crate::{interrupt, machine, page};

use contenders::{Contender, Setup};
use receiver::{Receiver, Timing};
use results::{Measure, Results, Sample};

/// How long a sender may take to end after its connection has.
const END_LIMIT: Duration = Duration::from_secs(10);

/// How long a sender that has failed may take to say why.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// What a sender of a fixed time sends beyond the measurement, so that it does not end within.
const MARGIN: Duration = Duration::from_millis(250);

/// Options of `compare memory`.
#[derive(Args)]
pub(crate) struct Options {
    /// Rounds; in each one every contender is measured once at every size.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Seconds per measurement.
    #[arg(long, default_value = "1", value_parser = parse_seconds)]
    seconds: Duration,
    /// Seconds of sending before each measurement.
    #[arg(long, default_value = "0.3", value_parser = parse_seconds)]
    warm_up: Duration,
    /// Sizes of the buffers; each is sent with one call, over and over.
    #[arg(long, value_delimiter = ',', value_parser = parse_size,
          default_value = "4k,16k,64k,256k,1m,2m,16m")]
    sizes: Vec<u64>,
    /// Who takes part; the default is everyone.
    #[arg(long, value_delimiter = ',', value_parser = contenders::by_name)]
    contenders: Vec<&'static Contender>,
    /// Where README.md and raw.csv go. The default is `benchmarks/DATE-NAME-memory`; a run that
    /// `--sizes` or `--contenders` cut down is only printed unless this is given.
    #[arg(long)]
    out: Option<PathBuf>,
    /// The machine's name in the report; the default is its host name.
    #[arg(long)]
    name: Option<String>,
    /// Where the senders' files are made: on a real file system. The default is the directory of
    /// this program.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The CPU that all senders run on.
    #[arg(long, default_value_t = 0)]
    sender_cpu: usize,
    /// The CPU that the receiver runs on.
    #[arg(long, default_value_t = 1)]
    receiver_cpu: usize,
    /// The TCP congestion control of both sides, set on the sockets.
    #[arg(long, default_value = "cubic")]
    congestion: String,
}

/// A contender in this run.
pub(crate) struct Entrant {
    contender: &'static Contender,
    version: Option<String>,
    trouble: Option<Trouble>,
}

/// Runs the comparison, prints it, and writes it down.
///
/// # Errors
///
/// [`Error::Failed`] if a contender failed half-way; the report of the others is there all the
/// same. A contender that cannot be started at all is a visible row, not an error.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    check(options)?;
    interrupt::watch()?;
    page::warn_of_debug_build();
    let out = page::directory(options.out.as_deref(), is_cut_down(options), || {
        let name = options.name.clone().unwrap_or_else(machine::host_name);
        format!("{name}-memory")
    })?;
    let scratch = tempfile::Builder::new()
        .prefix("compare-")
        .tempdir_in(machine::files_parent(options.dir.as_deref())?)
        .context(|| "cannot make a directory for the senders' files".into())?;
    let mut facts = machine::facts(scratch.path());
    facts.extend(machine::tcp_facts());
    let mut entrants = prepare(options);
    let mut receiver = Receiver::listen(&options.congestion)?;
    process::pin_to(options.receiver_cpu)?;

    let results = measure_all(&mut entrants, options, scratch.path(), &mut receiver)?;
    if results.is_empty() {
        return Err(Error::Unavailable(
            "no contender could be measured; see above why".into(),
        ));
    }
    let report = report::Report {
        options,
        entrants: &entrants,
        results: &results,
        facts: &facts,
    };
    page::publish(out.as_deref(), &report.markdown(), &report::raw(&results))?;
    entrants::failures(
        entrants
            .iter()
            .map(|entrant| (entrant.contender.name, entrant.trouble.as_ref())),
    )
}

fn check(options: &Options) -> Result<(), Error> {
    page::check_name(options.name.as_deref())?;
    process::check_cpus(
        [options.sender_cpu, options.receiver_cpu],
        "--sender-cpu and --receiver-cpu",
        "senders and receiver",
    )
}

/// Whether the run leaves anything out that a full one has.
fn is_cut_down(options: &Options) -> bool {
    let all_sizes = targets::SIZES
        .iter()
        .all(|size| options.sizes.contains(size));
    !options.contenders.is_empty() || !all_sizes
}

fn prepare(options: &Options) -> Vec<Entrant> {
    entrants::chosen(contenders::ALL, &options.contenders)
        .map(|contender| match contender.version() {
            Ok(version) => Entrant {
                contender,
                version: Some(version),
                trouble: None,
            },
            Err(error) => Entrant {
                contender,
                version: None,
                trouble: Some(Trouble::skipped(contender.name, &error)),
            },
        })
        .collect()
}

/// The rounds: at each size A B C D, then the next size, then all of it again.
fn measure_all(
    entrants: &mut [Entrant],
    options: &Options,
    scratch: &Path,
    receiver: &mut Receiver,
) -> Result<Results, Error> {
    let mut results = Results::default();
    for round in 1..=options.rounds as usize {
        for &size in &options.sizes {
            for entrant in entrants.iter_mut() {
                let Some(sample) = entrant.measure(options, size, scratch, receiver)? else {
                    continue;
                };
                let contender = entrant.contender.name;
                eprintln!(
                    "round {round}/{}  {:>7}  {contender:<12} {:>6.2} GB/s  {:.4} CPU s/GB  \
                     {:>5} copied  (sender {}, receiver {} of a CPU)",
                    options.rounds,
                    size_text(size),
                    Measure::Throughput.of(&sample),
                    Measure::SenderCpu.of(&sample),
                    percent(Measure::CopiedShare.of(&sample)),
                    percent(Measure::SenderShare.of(&sample)),
                    percent(Measure::ReceiverShare.of(&sample)),
                );
                results.push(Row {
                    round,
                    size,
                    contender,
                    sample,
                });
            }
        }
    }
    Ok(results)
}

impl Entrant {
    /// One measurement; `None` if it is out, or does not take that size. A failure puts it out; only
    /// Ctrl-C ends the whole run.
    fn measure(
        &mut self,
        options: &Options,
        size: u64,
        scratch: &Path,
        receiver: &mut Receiver,
    ) -> Result<Option<Sample>, Error> {
        if self.trouble.is_some() || !self.contender.takes(size) {
            return Ok(None);
        }
        match measure_one(self.contender, options, size, scratch, receiver) {
            Ok(sample) => Ok(Some(sample)),
            Err(Error::Interrupted) => Err(Error::Interrupted),
            Err(error) => {
                let at = size_text(size);
                self.trouble = Some(Trouble::failed(self.contender.name, &at, &error));
                Ok(None)
            }
        }
    }
}

/// Starts a sender, measures it, and holds what it says against what came.
fn measure_one(
    contender: &Contender,
    options: &Options,
    size: u64,
    scratch: &Path,
    receiver: &mut Receiver,
) -> Result<Sample, Error> {
    let command = contender.command(&Setup {
        port: &receiver.port()?.to_string(),
        size: &size.to_string(),
        at_least: options.warm_up + options.seconds + MARGIN,
        congestion: &options.congestion,
        scratch,
    })?;
    let said = scratch.join("stdout");
    let output = File::create(&said).context(|| format!("cannot write {}", said.display()))?;
    let errors = scratch.join("stderr");
    let mut sender = Pinned::start(&command, options.sender_cpu, Stdio::from(output), &errors)?;
    let timing = Timing {
        warm_up: options.warm_up,
        window: options.seconds,
    };
    let received = match receiver.measure(&mut sender, contender.protocol(size), timing) {
        Ok(received) => received,
        Err(Error::Interrupted) => return Err(Error::Interrupted),
        Err(error) => {
            // If the sender has ended, what it says of that says more than the broken connection.
            thread::sleep(LAST_WORDS);
            let ended = sender.check_alive().err().unwrap_or(error);
            return Err(contender.complaint(&read(&said)?).unwrap_or(ended));
        }
    };
    sender.wait(END_LIMIT)?;
    let account = contender.account(&read(&said)?)?;
    account.check(received.total_bytes, &options.congestion)?;
    Ok(Sample {
        usage: received.usage,
        account,
    })
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).context(|| format!("cannot read {}", path.display()))
}
