//! The command line of `compare memory`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::contender::MemorySender;
use super::contenders;
use super::targets;
use crate::loopback::options::LoopbackOptions;
use crate::table::{parse_seconds, parse_size};

/// The time that is added to the sending time of a sender that cannot be told to stop, so that the
/// sender does not stop before the measurement ends.
const EXTRA_SENDING_TIME: Duration = Duration::from_millis(250);

/// Options of `compare memory`.
#[derive(Args)]
pub(crate) struct MemoryOptions {
    /// Number of rounds. Each round measures every contender once at every size.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) rounds: u32,
    /// Seconds per measurement.
    #[arg(long, default_value = "1", value_parser = parse_seconds)]
    pub(super) seconds: Duration,
    /// Seconds of sending before each measurement.
    #[arg(long, default_value = "0.3", value_parser = parse_seconds)]
    pub(super) warm_up: Duration,
    /// Sizes of the buffers. A buffer is sent with one call, over and over.
    #[arg(long, value_delimiter = ',', value_parser = parse_size,
          default_value = "4k,16k,64k,256k,1m,2m,16m")]
    pub(super) sizes: Vec<u64>,
    /// Number of connections to which each sender sends the same buffer at the same time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=200))]
    pub(super) connections: u16,
    /// Contenders to measure; by default all that can send over this number of connections.
    #[arg(long, value_delimiter = ',', value_parser = contenders::by_name)]
    pub(super) contenders: Vec<&'static MemorySender>,
    /// Directory for README.md and raw.csv; `benchmarks/DATE-NAME-memory` by default, or
    /// `benchmarks/DATE-NAME-memory-fan-out` with several connections. Without this option, the
    /// report of a run with `--contenders`, or without all default sizes, is only printed.
    #[arg(long)]
    pub(super) out: Option<PathBuf>,
    #[command(flatten)]
    pub(super) loopback: LoopbackOptions,
}

impl MemoryOptions {
    /// Returns the name of the comparison, which is a part of the directory's name.
    pub(super) fn comparison(&self) -> &'static str {
        match self.connections {
            1 => "memory",
            _ => "memory-fan-out",
        }
    }

    /// Returns the contenders to measure.
    pub(super) fn chosen(&self) -> Vec<&'static MemorySender> {
        if !self.contenders.is_empty() {
            return self.contenders.clone();
        }
        let able = |contender: &&MemorySender| contender.can_open(self.connections);
        contenders::ALL.iter().filter(able).collect()
    }

    /// Whether the run leaves out a size of the default run, or was restricted with `--contenders`.
    pub(super) fn is_incomplete(&self) -> bool {
        let has_all_sizes = targets::SIZES.iter().all(|size| self.sizes.contains(size));
        !self.contenders.is_empty() || !has_all_sizes
    }

    /// Returns the sending time for a sender that cannot be told to stop.
    pub(super) fn sending_time(&self) -> Duration {
        self.warm_up + self.seconds + EXTRA_SENDING_TIME
    }
}
