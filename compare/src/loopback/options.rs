//! The options that `memory`, `copy`, `receive`, `get` and `relay` share.

use std::path::PathBuf;

use clap::Args;

/// The options that `memory`, `copy`, `receive`, `get` and `relay` share.
#[derive(Args)]
pub(crate) struct LoopbackOptions {
    /// The machine's name in the report; its host name by default.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Directory for temporary files, on a real file system; the directory of this program by
    /// default.
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    /// The CPU that senders run on; for `get`, the server; for `relay`, the relays.
    #[arg(long, default_value_t = 0)]
    pub(crate) sender_cpu: usize,
    /// The CPU that receivers run on; for `get`, the downloaders; for `relay`, clients and server.
    #[arg(long, default_value_t = 1)]
    pub(crate) receiver_cpu: usize,
    /// The TCP congestion control of both sides. It is set on the sockets, but by `get` as the
    /// machine's default for the duration of the run, because its contenders are other programs,
    /// and by `relay` as the default of its network namespace.
    #[arg(long, default_value = "cubic")]
    pub(crate) congestion: String,
}
