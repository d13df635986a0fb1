//! The command line of `compare serve`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::case::Receiver;
use super::contender::FileServer;
use super::contenders;
use super::targets;
use crate::error::Error;
use crate::table::{parse_seconds, parse_size};
use crate::{page, process};

/// Options of `compare serve`.
#[derive(Args)]
pub(crate) struct ServeOptions {
    /// Number of rounds. Each round measures every contender once in every case.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) rounds: u32,
    /// Seconds per measurement.
    #[arg(long, default_value = "1.5", value_parser = parse_seconds)]
    pub(super) seconds: Duration,
    /// Seconds of load before each measurement.
    #[arg(long, default_value = "0.3", value_parser = parse_seconds)]
    pub(super) warm_up: Duration,
    /// Number of keep-alive connections, each with one request in flight.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) connections: u16,
    /// Make all requests for a file the same. By default, no two requests are: each has another
    /// number in its query and in a cookie.
    #[arg(long)]
    pub(super) identical: bool,
    /// Number of idle connections with which memory is measured.
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u16).range(1..=20000))]
    pub(super) idle_connections: u16,
    /// Sizes of the files.
    #[arg(long, value_delimiter = ',', value_parser = parse_size,
          default_value = "1k,16k,64k,256k,1m,16m")]
    pub(super) sizes: Vec<u64>,
    /// Numbers of files of the same size over which requests are spread, evenly if there are fewer
    /// than 10,000. Otherwise, requests follow Zipf's law, and nine tenths of the files are removed
    /// from the page cache before each measurement. Sizes at which the files would take up more
    /// than 2 GiB are left out.
    #[arg(long, value_delimiter = ',', default_value = "1,1000,100000",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(super) files: Vec<u32>,
    /// What the client does with the bodies of responses.
    #[arg(long, value_delimiter = ',', default_value = "copy,discard")]
    pub(super) receivers: Vec<Receiver>,
    /// Contenders to measure; all of them by default.
    #[arg(long, value_delimiter = ',', value_parser = contenders::by_name)]
    pub(super) contenders: Vec<&'static FileServer>,
    /// Measure only this part.
    #[arg(long)]
    pub(super) only: Option<MeasuredPart>,
    /// Directory for README.md and raw.csv; `benchmarks/DATE-NAME-serve` by default, or
    /// `benchmarks/DATE-NAME-serve-identical` with `--identical`. Without this option, the report
    /// of a run with `--only` or `--contenders`, or without all default cases, is only printed.
    #[arg(long)]
    pub(super) out: Option<PathBuf>,
    /// The machine's name in the report; its host name by default.
    #[arg(long)]
    pub(super) name: Option<String>,
    /// Directory for the served files, on a real file system; the directory of this program by
    /// default.
    #[arg(long)]
    pub(super) dir: Option<PathBuf>,
    /// The CPU that all servers run on.
    #[arg(long, default_value_t = 0)]
    pub(super) server_cpu: usize,
    /// The CPU that the load generator runs on.
    #[arg(long, default_value_t = 1)]
    pub(super) load_cpu: usize,
    /// The TCP congestion control to set for the duration of the run (needs root).
    #[arg(long, default_value = "cubic")]
    pub(super) congestion: String,
}

/// A part of the run, to be selected with `--only`.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum MeasuredPart {
    /// Requests per second and CPU per GB.
    Load,
    /// Latency at a fixed rate, and the requests per second that the rate is derived from.
    Latency,
    /// Memory per idle connection.
    Idle,
}

impl ServeOptions {
    /// Returns an error if the name cannot be part of a directory name, or if this process may not
    /// run on the chosen CPUs.
    pub(super) fn check(&self) -> Result<(), Error> {
        page::check_name(self.name.as_deref())?;
        process::check_cpus(
            [self.server_cpu, self.load_cpu],
            "--server-cpu and --load-cpu",
            "servers and load generator",
        )
    }

    /// Whether the run leaves out a case or a part of the default run, or was restricted with
    /// `--contenders`.
    pub(super) fn is_incomplete(&self) -> bool {
        let has_all_sizes = targets::SIZES.iter().all(|size| self.sizes.contains(size));
        let has_all_files = targets::FILES
            .iter()
            .all(|files| self.files.contains(files));
        let has_all_receivers = self.receivers.len() == Receiver::value_variants().len();
        let has_all_cases = has_all_sizes && has_all_files && has_all_receivers;
        self.only.is_some() || !self.contenders.is_empty() || !has_all_cases
    }
}
