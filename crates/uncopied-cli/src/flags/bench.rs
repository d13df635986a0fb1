//! The flags of `uncopied bench`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use uncopied_measure::size::parse_size;

/// The port that a listener uses if none is given.
pub(crate) const BENCH_PORT: u16 = 5210;

/// The largest transfer, in bytes.
pub(crate) const MAX_BENCH_SIZE: u64 = 64 << 20;

pub(super) const BENCH_HELP: &str = "\
Directions:
  file_to_tcp, memory_to_tcp     measured at the sender, which is this command
  tcp_to_memory, tcp_to_file,    measured at the receiver, which is another
  tcp_to_null, tcp_to_tcp        process, or the listener on the other machine

Mechanisms:
  Each direction has its own, as in `uncopied probe`; region-vmsplice sends a
  region that may be overwritten; auto is what the library chooses by itself.
  One that this machine refuses is a row that says why.

Between two machines:
  there:  uncopied bench --listen
  here:   uncopied bench --to HOST
  The listener receives from anyone who can reach it, and writes only to the
  temporary file of --dir. Stop it with Ctrl-C.

docs/bench.md shows how to read the output, and lists the keys of --json.

Exit status: 0 if there are results, whatever they are; 1 if the measurement
fails or is interrupted; 2 on wrong usage.";

/// The flags of `uncopied bench`.
#[derive(Args, Debug)]
pub(crate) struct BenchFlags {
    /// Receive for `uncopied bench --to`, on another machine, until Ctrl-C
    #[arg(long, value_name = "ADDR", num_args = 0..=1, default_missing_value = "0.0.0.0:5210",
          conflicts_with_all = ["to", "netns", "quick", "json", "csv", "sizes", "directions",
                                "mechanisms", "rounds", "seconds", "congestion", "output", "save_tuning", "report"])]
    pub(crate) listen: Option<SocketAddr>,

    /// Send to a listener on another machine, HOST or HOST:PORT
    #[arg(long, value_name = "HOST", conflicts_with = "netns")]
    pub(crate) to: Option<String>,

    /// Measure between two network namespaces, over a veth pair, instead of over loopback
    #[arg(long)]
    pub(crate) netns: bool,

    /// Measure everything, but at few sizes and briefly: at most 30 s in all
    #[arg(long, conflicts_with_all = ["rounds", "seconds"])]
    pub(crate) quick: bool,

    /// Bytes per transfer, such as 16k or 1m, separated by commas [default: 1k, 4k, 16k, 64k, 256k,
    /// 1m, 16m, 64m]
    #[arg(long, value_name = "SIZE", value_delimiter = ',', value_parser = parse_bench_size)]
    pub(crate) sizes: Vec<u64>,

    /// Directions to measure, separated by commas [default: all]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) directions: Vec<BenchDirection>,

    /// Mechanisms to measure, separated by commas [default: all]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) mechanisms: Vec<BenchMechanism>,

    /// How many times everything is measured [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: Option<u32>,

    /// How long each measurement takes, in seconds [default: 0.5]
    #[arg(long, value_name = "TIME", value_parser = parse_bench_seconds)]
    pub(crate) seconds: Option<Duration>,

    /// TCP congestion control of the sender [default: that of this machine]
    #[arg(long, value_name = "NAME")]
    pub(crate) congestion: Option<String>,

    /// Directory for temporary files; use the file system that matters to you [default: that of
    /// TMPDIR, or /tmp]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,

    /// Print the results as JSON
    #[arg(long, conflicts_with = "csv")]
    pub(crate) json: bool,

    /// Print the results as CSV, one line for each row of the tables
    #[arg(long)]
    pub(crate) csv: bool,

    /// File to write the thresholds of this machine to, for UNCOPIED_TUNING
    #[arg(long, value_name = "FILE")]
    pub(crate) save_tuning: Option<PathBuf>,

    /// File for a page with plots of the results, in HTML; it needs no network
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,

    /// File for the results, instead of standard output
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,

    /// Listen for one process: print the address on standard output, and end with that process
    #[arg(long, hide = true, requires = "listen")]
    pub(crate) child: bool,

    /// The CPU of a child
    #[arg(long, hide = true, requires = "child", value_name = "CPU")]
    pub(crate) cpu: Option<usize>,

    /// Enter a network namespace, and wait for a line on standard input before listening
    #[arg(long, hide = true, requires = "child")]
    pub(crate) own_namespace: bool,
}

/// What is measured: where the bytes come from, and where they go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub(crate) enum BenchDirection {
    FileToTcp,
    MemoryToTcp,
    TcpToMemory,
    TcpToFile,
    TcpToNull,
    TcpToTcp,
}

/// How the bytes are moved: a mechanism of the library, or a way to use one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub(crate) enum BenchMechanism {
    Sendfile,
    Splice,
    MmapWrite,
    Vmsplice,
    #[serde(rename = "region-vmsplice")]
    #[value(name = "region-vmsplice")]
    RegionVmsplice,
    MsgZerocopy,
    SendZc,
    MapReceive,
    Discard,
    Copy,
    Auto,
}

fn parse_bench_size(text: &str) -> Result<u64, String> {
    parse_size(text, MAX_BENCH_SIZE)
}

fn parse_bench_seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.01..=60.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("it is not a time of 0.01 to 60 seconds".to_owned()),
    }
}
