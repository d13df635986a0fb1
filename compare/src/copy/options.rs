//! The command line of `compare copy`.

use std::path::PathBuf;

use clap::Args;

use super::contender::FileSender;
use super::contenders;
use super::targets;
use crate::loopback::options::LoopbackOptions;
use crate::table::parse_size;

/// Options of `compare copy`.
#[derive(Args)]
pub(crate) struct CopyOptions {
    /// Number of rounds. Each round measures every contender once at every size.
    #[arg(long, default_value_t = 21, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) rounds: u32,
    /// Sizes of the files. Each file is sent once per measurement.
    #[arg(long, value_delimiter = ',', value_parser = parse_size, default_value = "256m")]
    pub(super) sizes: Vec<u64>,
    /// Contenders to measure; all of them by default.
    #[arg(long, value_delimiter = ',', value_parser = contenders::by_name)]
    pub(super) contenders: Vec<&'static FileSender>,
    /// Directory for README.md and raw.csv; `benchmarks/DATE-NAME-copy` by default. Without this
    /// option, the report of a run with `--contenders`, or without the default size, is only
    /// printed.
    #[arg(long)]
    pub(super) out: Option<PathBuf>,
    #[command(flatten)]
    pub(super) loopback: LoopbackOptions,
}

impl CopyOptions {
    /// Whether the run leaves out a size of the default run, or was restricted with `--contenders`.
    pub(super) fn is_incomplete(&self) -> bool {
        let has_all_sizes = targets::SIZES.iter().all(|size| self.sizes.contains(size));
        !self.contenders.is_empty() || !has_all_sizes
    }
}
