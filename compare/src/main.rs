//! Runs uncopied and its peers side by side, with the same work on the same core, and prints medians
//! and ratios.
//!
//! `serve` is the comparison of file servers, `memory` that of ways from memory to a socket. The hidden
//! subcommands are the processes that they start: the contenders that are part of this program, and the
//! wrapper that pins every contender to its core.

#![forbid(unsafe_code)]

mod answer;
mod entrants;
mod error;
mod interrupt;
mod load;
mod machine;
mod measure;
mod memory;
mod page;
mod pattern;
mod process;
mod rounds;
mod serve;
mod table;
mod targets;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::Error;
use crate::serve::contenders::{ServeFlags, axum, axum_uncopied, plain};

/// Run uncopied and its peers side by side; print medians and ratios.
#[derive(Parser)]
#[command(name = "compare", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compare file servers: requests a second, CPU per GB, memory per idle connection.
    Serve(serve::Options),
    /// Compare ways from memory to a TCP socket: throughput, CPU per GB, share of bytes copied.
    Memory(memory::Options),
    /// Send memory until standard input ends, and say how it went: one of the contenders.
    #[command(hide = true)]
    MemorySender(memory::sender::Flags),
    /// The plainest sendfile loop: one of the contenders.
    #[command(hide = true)]
    PlainServer(ServeFlags),
    /// axum with tower-http's ServeDir on tokio's listener: one of the contenders.
    #[command(hide = true)]
    AxumServer(ServeFlags),
    /// The same axum app with this project's listener and file service: one of the contenders.
    #[command(hide = true)]
    AxumUncopiedServer(ServeFlags),
    /// Pin this process to a CPU, bind its life to its parent's, and become COMMAND.
    #[command(hide = true)]
    Pinned {
        /// The CPU to run on.
        #[arg(long)]
        cpu: usize,
        /// The program and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(options) => serve::run(&options),
        Command::Memory(options) => memory::run(&options),
        Command::MemorySender(flags) => memory::sender::run(&flags),
        Command::PlainServer(flags) => plain::serve(&flags),
        Command::AxumServer(flags) => axum::serve(&flags),
        Command::AxumUncopiedServer(flags) => axum_uncopied::serve(&flags),
        Command::Pinned { cpu, command } => process::become_pinned(cpu, &command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Usage(message)) => {
            eprintln!("compare: {message}");
            ExitCode::from(2)
        }
        Err(error) => {
            eprintln!("compare: {error}");
            ExitCode::FAILURE
        }
    }
}
