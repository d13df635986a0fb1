//! The flags of `uncopied probe`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

pub(super) const PROBE_HELP: &str = "\
Columns:
  Each row has a name, which --require takes; yes, no or partly; why; and what
  would change it. Rows are tried over loopback, not guessed from versions.
  Over loopback no network card is involved: what only a card can show is said
  to be not shown, with the settings of the cards that decide it.

  docs/probe.md explains each row and the keys of --json.

Exit status:
  0 whatever is found, 1 if a row of --require is 'no' (with one line on
  standard error) or if --path or --interface does not exist, 2 on wrong usage.";

/// The flags of `uncopied probe`.
#[derive(Args, Debug)]
pub(crate) struct ProbeFlags {
    /// Network interface to describe; default: all that are up
    #[arg(long, short, value_name = "IF")]
    pub(crate) interface: Option<String>,

    /// File or directory whose file system is tried; in a directory, with a temporary file
    #[arg(long, short, value_name = "FILE", default_value = ".")]
    pub(crate) path: PathBuf,

    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,

    /// Rows that must not be 'no', separated by commas
    #[arg(long, value_name = "ROW", value_delimiter = ',')]
    pub(crate) require: Vec<ProbeRow>,
}

/// The rows of the probe, in the order in which they are printed. They are those of the table in
/// the README, under "What works today".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub(crate) enum ProbeRow {
    Copy,
    MmapWrite,
    Sendfile,
    Splice,
    Vmsplice,
    MsgZerocopy,
    SendZc,
    MapReceive,
    Zcrx,
    HeaderSplit,
    PageAlignment,
    CopyOnWrite,
    Completions,
    Switches,
    KernelTls,
}

impl ProbeRow {
    /// Returns the name that flags and `--json` use.
    pub(crate) fn key(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Returns the name in the README's table.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Copy => "read + write",
            Self::MmapWrite => "mmap + write",
            Self::Sendfile => "sendfile",
            Self::Splice => "splice",
            Self::Vmsplice => "vmsplice",
            Self::MsgZerocopy => "MSG_ZEROCOPY",
            Self::SendZc => "io_uring send_zc",
            Self::MapReceive => "TCP_ZEROCOPY_RECEIVE",
            Self::Zcrx => "io_uring zero-copy receive",
            Self::HeaderSplit => "header splitting",
            Self::PageAlignment => "page size and alignment rule",
            Self::CopyOnWrite => "copy on write",
            Self::Completions => "\"is it sent yet?\"",
            Self::Switches => "switching zero copy off",
            Self::KernelTls => "kernel TLS",
        }
    }
}
