//! The command line of `compare get`.

use std::path::PathBuf;

use clap::Args;

use super::contender::Downloader;
use super::contenders;
use super::targets;
use crate::loopback::options::LoopbackOptions;
use crate::table::parse_size;

/// Options of `compare get`.
#[derive(Args)]
pub(crate) struct GetOptions {
    /// Number of rounds. Each round measures every contender once in every case.
    #[arg(long, default_value_t = 21, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) rounds: u32,
    /// Sizes of the large files. Each is fetched to a file and to /dev/null.
    #[arg(long, value_delimiter = ',', value_parser = parse_size, default_value = "1g")]
    pub(super) sizes: Vec<u64>,
    /// Number of small files, of 1 KiB each, that are fetched with one command.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(super) files: u32,
    /// Number of small files that are fetched at the same time, each over its own connection.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub(super) parallel: u16,
    /// Contenders to measure; all of them by default.
    #[arg(long, value_delimiter = ',', value_parser = contenders::by_name)]
    pub(super) contenders: Vec<&'static Downloader>,
    /// Directory for README.md and raw.csv; `benchmarks/DATE-NAME-get` by default. Without this
    /// option, the report of a run with `--contenders`, or with other sizes and numbers than the
    /// default ones, is only printed.
    #[arg(long)]
    pub(super) out: Option<PathBuf>,
    #[command(flatten)]
    pub(super) loopback: LoopbackOptions,
}

impl GetOptions {
    /// Whether the run leaves out something of the default run, or was restricted with
    /// `--contenders`.
    pub(super) fn is_incomplete(&self) -> bool {
        let has_size = self.sizes.contains(&targets::LARGE_FILE_BYTES);
        let has_files = (self.files, self.parallel) == (targets::SMALL_FILES, targets::PARALLEL);
        !self.contenders.is_empty() || !has_size || !has_files
    }
}
