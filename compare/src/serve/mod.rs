//! The comparison of file servers: start them on the same files, alternate them under the same
//! load, and write down what was seen.

pub(crate) mod contenders;
mod idle;
mod report;
mod results;
mod site;
mod targets;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::entrants::{self, Trouble};
use crate::error::Error;
use crate::interrupt;
use crate::load::{self, Target, Timing};
use crate::machine::{self, Congestion};
use crate::page;
use crate::process::{self, Server};
use crate::rounds::Row;
use crate::table::{grouped, parse_seconds, parse_size, size_text};

use contenders::{Contender, Launch, Setup};
use results::{Idle, Measure, Results};
use site::Site;

/// Idle connections are opened this often at most: their cost hardly varies.
const IDLE_ROUNDS_LIMIT: usize = 3;

/// The file that idle connections ask for.
const IDLE_SIZE: u64 = 1 << 10;

/// Descriptors besides connections: files, pipes, libraries, the servers' own.
const OTHER_DESCRIPTORS: u64 = 200;

/// Options of `compare serve`.
#[derive(Args)]
pub(crate) struct Options {
    /// Rounds; in each one every contender is measured once at every size.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Seconds per measurement.
    #[arg(long, default_value = "1.5", value_parser = parse_seconds)]
    seconds: Duration,
    /// Seconds of load before each measurement.
    #[arg(long, default_value = "0.3", value_parser = parse_seconds)]
    warm_up: Duration,
    /// Keep-alive connections, each with one request under way.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// No two requests are the same: each has a number of its own in its query.
    #[arg(long)]
    distinct: bool,
    /// Idle connections for the memory figure.
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u16).range(1..=20000))]
    idle_connections: u16,
    /// Sizes of the files.
    #[arg(long, value_delimiter = ',', value_parser = parse_size,
          default_value = "1k,16k,64k,256k,1m,16m")]
    sizes: Vec<u64>,
    /// Who takes part; the default is everyone.
    #[arg(long, value_delimiter = ',', value_parser = contenders::by_name)]
    contenders: Vec<&'static Contender>,
    /// Measure only this.
    #[arg(long)]
    only: Option<Part>,
    /// Where README.md and raw.csv go. The default is `benchmarks/DATE-NAME`; a run that
    /// `--only`, `--sizes` or `--contenders` cut down is only printed unless this is given.
    #[arg(long)]
    out: Option<PathBuf>,
    /// The machine's name in the report; the default is its host name.
    #[arg(long)]
    name: Option<String>,
    /// Where the served files are made: on a real file system. The default is the directory of
    /// this program.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The CPU that all servers run on.
    #[arg(long, default_value_t = 0)]
    server_cpu: usize,
    /// The CPU that the load generator runs on.
    #[arg(long, default_value_t = 1)]
    load_cpu: usize,
    /// The TCP congestion control to set while the run lasts (needs root).
    #[arg(long, default_value = "cubic")]
    congestion: String,
}

/// One half of the run.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Requests a second and CPU per GB.
    Load,
    /// Memory per idle connection.
    Idle,
}

/// A contender in this run.
pub(crate) struct Entrant {
    contender: &'static Contender,
    address: std::net::SocketAddr,
    scratch: PathBuf,
    launch: Option<Launch>,
    server: Option<Server>,
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
    process::allow_descriptors(u64::from(options.idle_connections) + OTHER_DESCRIPTORS)?;
    page::warn_of_debug_build();
    let out = page::directory(options.out.as_deref(), is_cut_down(options), || {
        options.name.clone().unwrap_or_else(machine::host_name)
    })?;
    let parent = machine::files_parent(options.dir.as_deref())?;
    let mut sizes = options.sizes.clone();
    sizes.push(IDLE_SIZE);
    sizes.sort_unstable();
    sizes.dedup();
    let site = Site::create(&parent, &sizes)?;
    let facts = machine::facts(&site.files());
    let mut entrants = prepare(options, &site)?;
    let congestion = Congestion::set(&options.congestion)?;
    process::pin_to(options.load_cpu)?;

    let mut results = Results::default();
    if options.only != Some(Part::Idle) {
        start_all(&mut entrants, options)?;
        measure_loads(&mut entrants, options, &site, &congestion, &mut results)?;
        for entrant in &mut entrants {
            entrant.server = None;
        }
    }
    if options.only != Some(Part::Load) {
        measure_idles(&mut entrants, options, &site, &mut results)?;
    }
    if results.loads.is_empty() && results.idles.is_empty() {
        return Err(Error::Unavailable(
            "no contender could be measured; see above why".into(),
        ));
    }

    let report = report::Report {
        options,
        entrants: &entrants,
        results: &results,
        facts: &facts,
        congestion: congestion.name(),
        files: &site.files(),
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
        [options.server_cpu, options.load_cpu],
        "--server-cpu and --load-cpu",
        "servers and load generator",
    )
}

/// Whether the run leaves anything out that a full one has.
fn is_cut_down(options: &Options) -> bool {
    let all_sizes = targets::SIZES
        .iter()
        .all(|size| options.sizes.contains(size));
    options.only.is_some() || !options.contenders.is_empty() || !all_sizes
}

/// Finds and builds what is to be compared, with all CPUs still at hand.
fn prepare(options: &Options, site: &Site) -> Result<Vec<Entrant>, Error> {
    let mut prepared = Vec::new();
    for contender in entrants::chosen(contenders::ALL, &options.contenders) {
        let scratch = site.scratch(contender.name)?;
        let address = process::free_address()?;
        let mut entrant = Entrant {
            contender,
            address,
            scratch,
            launch: None,
            server: None,
            trouble: None,
        };
        let launch = (contender.prepare)(&Setup {
            files: &site.files(),
            scratch: &entrant.scratch,
            address,
        });
        interrupt::check()?;
        match launch {
            Ok(launch) => entrant.launch = Some(launch),
            Err(error) => entrant.skip(&error),
        }
        prepared.push(entrant);
    }
    Ok(prepared)
}

fn start_all(entrants: &mut [Entrant], options: &Options) -> Result<(), Error> {
    for entrant in entrants {
        entrant.start(options.server_cpu)?;
    }
    Ok(())
}

/// The rounds: at each size A B C D, then the next size, then all of it again.
fn measure_loads(
    entrants: &mut [Entrant],
    options: &Options,
    site: &Site,
    congestion: &Congestion,
    results: &mut Results,
) -> Result<(), Error> {
    let timing = Timing {
        connections: usize::from(options.connections),
        warm_up: options.warm_up,
        window: options.seconds,
        distinct: options.distinct,
    };
    for round in 1..=options.rounds as usize {
        for &size in &options.sizes {
            for entrant in entrants.iter_mut() {
                let Some(sample) = entrant.measure(site, size, timing)? else {
                    continue;
                };
                let contender = entrant.contender.name;
                eprintln!(
                    "round {round}/{}  {:>7}  {contender:<9} {:>9} requests/s  {:.4} CPU s/GB  \
                     (server {:.0} %, load {:.0} % of a CPU)",
                    options.rounds,
                    size_text(size),
                    grouped(Measure::Requests.of(&sample)),
                    Measure::ServerCpu.of(&sample),
                    Measure::ServerShare.of(&sample) * 100.0,
                    Measure::LoadShare.of(&sample) * 100.0,
                );
                results.loads.push(Row {
                    round,
                    size,
                    contender,
                    sample,
                });
            }
            congestion.check()?;
        }
    }
    Ok(())
}

/// Each time a fresh server, so that nothing is left in it from the load.
fn measure_idles(
    entrants: &mut [Entrant],
    options: &Options,
    site: &Site,
    results: &mut Results,
) -> Result<(), Error> {
    let count = usize::from(options.idle_connections);
    let rounds = (options.rounds as usize).min(IDLE_ROUNDS_LIMIT);
    for round in 1..=rounds {
        for entrant in entrants.iter_mut() {
            entrant.start(options.server_cpu)?;
            let measured = entrant.with_server(site, IDLE_SIZE, |server, target| {
                idle::measure(server, target, count)
            });
            entrant.server = None;
            let Some(footprint) = measured? else {
                continue;
            };
            let contender = entrant.contender.name;
            eprintln!(
                "round {round}/{rounds}  idle     {contender:<9} {:.1} KiB a connection",
                footprint.bytes_each() / 1024.0
            );
            results.idles.push(Idle {
                round,
                contender,
                footprint,
            });
        }
    }
    Ok(())
}

impl Entrant {
    /// Starts it, unless it is out; one that does not come up is out from then on.
    fn start(&mut self, cpu: usize) -> Result<(), Error> {
        if self.trouble.is_some() {
            return Ok(());
        }
        let Some(launch) = &self.launch else {
            return Ok(());
        };
        let errors = self.scratch.join("stderr");
        match Server::start(&launch.command, self.address, cpu, &errors) {
            Ok(server) => self.server = Some(server),
            Err(error @ (Error::Interrupted | Error::Usage(_))) => return Err(error),
            Err(error) => self.skip(&error),
        }
        Ok(())
    }

    fn skip(&mut self, error: &Error) {
        self.trouble = Some(Trouble::skipped(self.contender.name, error));
    }

    /// One measurement under load; `None` if it is out.
    fn measure(
        &mut self,
        site: &Site,
        size: u64,
        timing: Timing,
    ) -> Result<Option<load::Sample>, Error> {
        self.with_server(site, size, |_, target| load::run(target, timing))
    }

    /// Lets `work` use the running server. A failure puts the contender out; only Ctrl-C ends the
    /// whole run.
    fn with_server<T>(
        &mut self,
        site: &Site,
        size: u64,
        work: impl FnOnce(&mut Server, &Target<'_>) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        let (Some(server), Some(page)) = (&mut self.server, site.page(size)) else {
            return Ok(None);
        };
        let target = Target {
            address: server.address(),
            pid: server.id(),
            path: &page.path,
            expected: &page.bytes,
        };
        match work(server, &target) {
            Ok(value) => Ok(Some(value)),
            Err(Error::Interrupted) => Err(Error::Interrupted),
            Err(error) => {
                // If the server has ended, that says more than the broken connection.
                let error = server.check_alive().err().unwrap_or(error);
                let at = size_text(size);
                self.trouble = Some(Trouble::failed(self.contender.name, &at, &error));
                self.server = None;
                Ok(None)
            }
        }
    }
}
