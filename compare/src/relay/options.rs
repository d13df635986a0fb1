//! The command line of `compare relay`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::ArgPredicate::IsPresent;

use super::case::MeasuredPart;
use super::contender::RelayProgram;
use super::{contenders, targets};
use crate::load::LoadTimes;
use crate::loopback::options::LoopbackOptions;
use crate::table::{parse_seconds, parse_size};

/// Options of `compare relay`.
#[derive(Args)]
pub(crate) struct RelayOptions {
    /// Number of rounds. Each round measures every contender once in every case.
    #[arg(long, default_value_t = 7, default_value_if("quick", IsPresent, "1"),
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) rounds: u32,
    /// Seconds per measurement.
    #[arg(long, default_value = "1", default_value_if("quick", IsPresent, "0.2"),
          value_parser = parse_seconds)]
    pub(super) seconds: Duration,
    /// Seconds of load before each measurement.
    #[arg(long, default_value = "0.2", default_value_if("quick", IsPresent, "0.05"),
          value_parser = parse_seconds)]
    pub(super) warm_up: Duration,
    /// Measure once and briefly, to see whether everything works.
    #[arg(long)]
    pub(super) quick: bool,
    /// Numbers of connections that send as much as possible, in one direction.
    #[arg(long, value_delimiter = ',', default_value = "1,8",
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(super) bulk_connections: Vec<u16>,
    /// Sizes of the messages that the server sends back, up to 32 KiB.
    #[arg(long, value_delimiter = ',', default_value = "1,1k", value_parser = parse_message_size)]
    pub(super) message_sizes: Vec<u64>,
    /// Numbers of connections with one message in flight on each.
    #[arg(long, value_delimiter = ',', default_value = "1,64",
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(super) message_connections: Vec<u16>,
    /// Number of bytes per connection that are compared before the rounds.
    #[arg(long, default_value = "16m", value_parser = parse_size)]
    pub(super) verified: u64,
    /// Contenders to measure; all of them by default.
    #[arg(long, value_delimiter = ',', value_parser = contenders::by_name)]
    pub(super) contenders: Vec<&'static RelayProgram>,
    /// Measure only this part.
    #[arg(long)]
    pub(super) only: Option<MeasuredPart>,
    /// Print the medians and the targets as JSON instead of the page.
    #[arg(long)]
    pub(super) json: bool,
    /// Directory for README.md and raw.csv; `benchmarks/DATE-NAME-relay` by default. Without this
    /// option, the report of a run with `--quick`, `--only` or `--contenders`, or without all
    /// default cases, is only printed.
    #[arg(long)]
    pub(super) out: Option<PathBuf>,
    #[command(flatten)]
    pub(super) loopback: LoopbackOptions,
}

/// Maximum size of a message. Sockets have room for a message of this size without waiting.
const MAX_MESSAGE_BYTES: u64 = 32 * 1024;

fn parse_message_size(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        size if size <= MAX_MESSAGE_BYTES => Ok(size),
        _ => Err(format!("{text:?} is more than 32 KiB")),
    }
}

impl RelayOptions {
    /// The duration of each load.
    pub(super) fn times(&self) -> LoadTimes {
        LoadTimes {
            warm_up: self.warm_up,
            window: self.seconds,
        }
    }

    /// Whether the run leaves out something of the default run, or was restricted with
    /// `--contenders`.
    pub(super) fn is_incomplete(&self) -> bool {
        let has_all_cases = self.bulk_connections == targets::BULK_CONNECTIONS
            && self.message_sizes == targets::MESSAGE_BYTES
            && self.message_connections == targets::MESSAGE_CONNECTIONS;
        self.quick || self.only.is_some() || !self.contenders.is_empty() || !has_all_cases
    }
}
