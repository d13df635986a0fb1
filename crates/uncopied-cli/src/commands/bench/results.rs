//! The results of a run, as `--json` prints them. The names of the fields are its keys.

use std::collections::BTreeMap;

use serde::Serialize;
pub(crate) use uncopied_measure::Spread;
pub(crate) use uncopied_measure::machine::Machine;

/// The version of the keys of `--json`. A change that could break a reader increases it.
pub(crate) const FORMAT: u32 = 1;

/// The results of a run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Results {
    /// [`FORMAT`].
    pub(crate) format: u32,
    /// The version of this command.
    pub(crate) version: &'static str,
    /// The machine that has sent.
    pub(crate) machine: Machine,
    pub(crate) setting: Setting,
    pub(crate) cells: Vec<Cell>,
    pub(crate) thresholds: Vec<Threshold>,
    /// The whole tuning that follows from the thresholds, by key. `None` means never.
    pub(crate) tuning: BTreeMap<&'static str, Option<u64>>,
}

/// What lies between the sender and the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Network {
    Loopback,
    Netns,
    Remote,
}

/// How the run was made.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Setting {
    pub(crate) network: Network,
    /// The address of the other machine.
    pub(crate) peer: Option<String>,
    /// The congestion control of the sender's connections.
    pub(crate) congestion: String,
    pub(crate) rounds: u32,
    pub(crate) seconds_per_cell: f64,
    /// The CPU that the sender is pinned to.
    pub(crate) sender_cpu: Option<usize>,
    pub(crate) receiver_cpu: Option<usize>,
    /// The command line.
    pub(crate) command: String,
    /// What this setting cannot show, in sentences.
    pub(crate) cannot_show: Vec<String>,
}

/// One mechanism, in one direction, at one size. The figures are medians over the rounds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Cell {
    pub(crate) direction: &'static str,
    pub(crate) source: String,
    pub(crate) sink: String,
    /// The mechanism, or `region-vmsplice`, or `auto` for what the library chooses.
    pub(crate) mechanism: String,
    /// Bytes per transfer.
    pub(crate) size: u64,
    /// Why it could not be measured. There are no figures then.
    pub(crate) refused: Option<String>,
    /// The mechanisms that have moved at least 1 % of the bytes, the most important one first.
    pub(crate) chosen: Vec<String>,
    /// Throughput, in 10⁹ bytes per second.
    pub(crate) gb_per_second: Option<Spread>,
    /// CPU seconds of the sender's process for 10⁹ bytes.
    pub(crate) sender_cpu_s_per_gb: Option<Spread>,
    /// CPU seconds of the receiver's process for 10⁹ bytes.
    pub(crate) receiver_cpu_s_per_gb: Option<Spread>,
    /// The parts of the bytes that were not copied, were copied by the kernel although a zero-copy
    /// mechanism moved them, were copied by another mechanism, and were mapped. They add up to 1.
    pub(crate) zero_copy_share: Option<f64>,
    pub(crate) kernel_copied_share: Option<f64>,
    pub(crate) copied_share: Option<f64>,
    pub(crate) mapped_share: Option<f64>,
    /// System calls of the thread that moves the bytes, for 10⁶ bytes. `None` if they could not
    /// be counted.
    pub(crate) calls_per_mb: Option<f64>,
    /// How long a call of the library takes; in `tcp_to_tcp`, a message and its confirmation.
    pub(crate) call_us: Option<CallTimes>,
    /// What has limited the sender's connection.
    pub(crate) limits: Option<Limits>,
    /// Whether the rounds differ too much for the figures to be trusted.
    pub(crate) is_wide: bool,
}

impl Cell {
    /// Returns a row without any figure.
    pub(crate) fn without_figures(
        direction: &'static str,
        source: &str,
        sink: &str,
        mechanism: &str,
        size: u64,
    ) -> Self {
        Self {
            direction,
            source: source.to_owned(),
            sink: sink.to_owned(),
            mechanism: mechanism.to_owned(),
            size,
            refused: None,
            chosen: Vec::new(),
            gb_per_second: None,
            sender_cpu_s_per_gb: None,
            receiver_cpu_s_per_gb: None,
            zero_copy_share: None,
            kernel_copied_share: None,
            copied_share: None,
            mapped_share: None,
            calls_per_mb: None,
            call_us: None,
            limits: None,
            is_wide: false,
        }
    }
}

/// Times of calls, in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct CallTimes {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

/// Parts of the time, from 0 to 1, as the kernel counts them for the sender's socket (`TCP_INFO`).
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Limits {
    /// There was something to send.
    pub(crate) busy: f64,
    /// The receiver's window was full: the receiver was the limit.
    pub(crate) receive_window: f64,
    /// The send buffer was full, and its size was the limit.
    pub(crate) send_buffer: f64,
}

/// From which size on a mechanism takes less CPU time than another one.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Threshold {
    /// The key of the tuning.
    pub(crate) key: &'static str,
    pub(crate) mechanism: String,
    /// What it is compared with.
    pub(crate) than: String,
    pub(crate) direction: &'static str,
    /// `None` if it never pays at the measured sizes.
    pub(crate) from_bytes: Option<u64>,
    /// The default of the library.
    pub(crate) default_bytes: u64,
    /// Whether `from_bytes` was measured. It is the default otherwise.
    pub(crate) measured: bool,
    /// Where the figure comes from, in a sentence.
    pub(crate) why: String,
}
