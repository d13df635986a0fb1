//! The command line of `compare receive`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::contender::MemoryReceiver;
use super::contenders;
use super::scenario::Scenario;
use crate::loopback::options::LoopbackOptions;
use crate::table::{parse_seconds, parse_size};

/// Options of `compare receive`.
#[derive(Args)]
pub(crate) struct ReceiveOptions {
    /// Number of rounds. Each round measures every contender once in every scenario.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) rounds: u32,
    /// What is received.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "page-payloads,ordinary-payloads"
    )]
    pub(super) scenarios: Vec<Scenario>,
    /// Contenders to measure; all of them by default.
    #[arg(long, value_delimiter = ',', value_parser = contenders::by_name)]
    pub(super) contenders: Vec<&'static MemoryReceiver>,
    /// Directory for README.md and raw.csv; `benchmarks/DATE-NAME-receive` by default, or
    /// `benchmarks/DATE-NAME-receive-read` with `--read`. Without this option, the report of a run
    /// with `--contenders`, or without all scenarios, is only printed.
    #[arg(long)]
    pub(super) out: Option<PathBuf>,
    #[command(flatten)]
    pub(super) receiving: ReceivingOptions,
    #[command(flatten)]
    pub(super) loopback: LoopbackOptions,
}

/// The options that are passed on to the receivers.
#[derive(Args, Clone, Copy)]
pub(crate) struct ReceivingOptions {
    /// Seconds per measurement.
    #[arg(long, default_value = "1", value_parser = parse_seconds)]
    pub(super) seconds: Duration,
    /// Seconds of receiving before each measurement.
    #[arg(long, default_value = "0.3", value_parser = parse_seconds)]
    pub(super) warm_up: Duration,
    /// Number of bytes that have to arrive before a receiver wakes up (SO_RCVLOWAT), for all
    /// contenders alike; 1 is the kernel's default.
    #[arg(long, default_value = "256k", value_parser = parse_size)]
    pub(super) low_water_mark: u64,
    /// Let the receivers read all bytes, and compute their sum.
    #[arg(long)]
    pub(super) read: bool,
}

impl ReceiveOptions {
    /// Returns the name of the comparison, which is a part of the directory's name.
    pub(super) fn comparison(&self) -> &'static str {
        match self.receiving.read {
            true => "receive-read",
            false => "receive",
        }
    }

    /// Whether the run leaves out a scenario, or was restricted with `--contenders`.
    pub(super) fn is_incomplete(&self) -> bool {
        let has = |scenario| self.scenarios.contains(scenario);
        !self.contenders.is_empty() || !Scenario::ALL.iter().all(has)
    }
}
