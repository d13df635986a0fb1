//! The flags of `uncopied audit`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

pub(super) const AUDIT_HELP: &str = "\
Output:
  The report goes to standard output, or to the file of --output. COMMAND has
  the standard streams of this command, so use --output if it prints as well.
  docs/audit.md explains each line.

Needs:
  Root, CAP_PERFMON, or a kernel.perf_event_paranoid of at most 1, to see what
  the kernel does. Other users get the time spent in the kernel, which is the
  most that copying can have taken. The report says what was used, and why.

Examples:
  uncopied audit --seconds 10 --pid 1234
  uncopied audit --output report.txt -- cp big /dev/shm/copy

Exit status: 0 if there is a report, whatever the status of COMMAND; 1 if
COMMAND cannot be started or the process cannot be watched; 2 on wrong usage.";

/// The flags of `uncopied audit`.
#[derive(Args, Debug)]
pub(crate) struct AuditFlags {
    /// Process to watch, with its threads and its descendants, those that it has and those that it
    /// starts
    #[arg(long, value_name = "PID", required_unless_present = "command",
          conflicts_with = "command", value_parser = clap::value_parser!(i32).range(1..))]
    pub(crate) pid: Option<i32>,

    /// How long to watch; a COMMAND is then ended with SIGTERM [default: 10 for a PID, and until
    /// its exit for a COMMAND]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub(crate) seconds: Option<u32>,

    /// Print the report as JSON
    #[arg(long, conflicts_with = "folded")]
    pub(crate) json: bool,

    /// Print the stacks of all samples, one per line, for flame graphs (the input of flamegraph.pl
    /// and of inferno)
    #[arg(long)]
    pub(crate) folded: bool,

    /// File for the report, instead of standard output
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,

    /// Program to run and to watch, with its arguments
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}
