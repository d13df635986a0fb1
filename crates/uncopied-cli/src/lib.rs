//! The `uncopied` command.
//!
//! Exit status: 0 for success, 1 for a failure (reported in one line on standard error), 2 for
//! wrong usage. If the reader of standard output closes the pipe, that is not a failure.
//!
//! This is a library only so that fuzz targets can use parts of it. It has no stable API.

#![forbid(unsafe_code)]

mod commands;
mod descriptor_limit;
mod directory;
mod error;
mod flags;
mod man;
mod output;
mod result_file;
mod server;
mod tuning;

#[doc(hidden)]
pub use commands::serve::fuzz;

use std::process::ExitCode;

use crate::commands::{audit, bench, get, probe, relay, serve};
use crate::error::Error;
use crate::flags::{Cli, Command};
use crate::output::{print, say};
use crate::server::listening::PassedSockets;

/// Runs the command with the arguments and the environment of this process.
#[doc(hidden)]
pub fn main() -> ExitCode {
    // Must run before the process opens a descriptor, because passed sockets are identified by
    // their descriptor numbers, and before it starts a thread, because other threads may read the
    // environment while this changes it.
    let passed = PassedSockets::from_environment();
    let cli = match Cli::parse_arguments() {
        Ok(cli) => cli,
        Err(error) => return error.report(),
    };
    match run(cli.command, passed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&error);
            ExitCode::from(error.exit_status())
        }
    }
}

fn run(command: Command, passed: PassedSockets) -> Result<(), Error> {
    let moves_bytes = matches!(
        command,
        Command::Serve(_) | Command::Get(_) | Command::Relay(_) | Command::Bench(_)
    );
    if moves_bytes {
        tuning::apply_environment()?;
    }
    match command {
        Command::Serve(flags) => serve::run(*flags, passed),
        Command::Get(flags) => get::run(*flags),
        Command::Relay(flags) => relay::run(&flags, passed),
        Command::Probe(flags) => probe::run(&flags),
        Command::Audit(flags) => audit::run(&flags),
        Command::Bench(flags) => bench::run(&flags),
        Command::Completions { shell } => print(&man::completions(shell)).map_err(Error::Output),
        Command::Man => man::manual()
            .and_then(|page| print(&page))
            .map_err(Error::Output),
    }
}
