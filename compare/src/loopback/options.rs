//! The options that `memory`, `copy` and `receive` share.

use std::path::PathBuf;

use clap::Args;

/// The options that `memory`, `copy` and `receive` share.
#[derive(Args)]
pub(crate) struct LoopbackOptions {
    /// The machine's name in the report; its host name by default.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Directory for temporary files, on a real file system; the directory of this program by
    /// default.
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    /// The CPU that senders run on.
    #[arg(long, default_value_t = 0)]
    pub(crate) sender_cpu: usize,
    /// The CPU that receivers run on.
    #[arg(long, default_value_t = 1)]
    pub(crate) receiver_cpu: usize,
    /// The TCP congestion control of both sides, set on the sockets.
    #[arg(long, default_value = "cubic")]
    pub(crate) congestion: String,
}
