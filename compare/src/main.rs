//! Compares uncopied with its peers: other programs and libraries that do the same job. All of them
//! do the same work on the same CPU, and the report has medians and ratios.
//!
//! `serve` compares file servers, `copy` compares ways to send a file from a program, `memory`
//! compares mechanisms that send memory, `receive` compares ways to receive, `get` compares
//! downloaders, and `relay` compares relays. Each program or mechanism that takes part is called a
//! contender, and runs as a child process. The hidden subcommands are for these child processes:
//! most run a contender that is built into this program, and `pinned` is the wrapper that pins
//! every contender to its CPU.

#![deny(unsafe_code)]

mod command_line;
mod copy;
mod error;
mod get;
mod interrupt;
mod load;
mod loopback;
mod machine;
mod measure;
mod memory;
mod nginx;
mod page;
mod participant;
mod process;
mod random;
mod receive;
mod relay;
mod rounds;
mod runtime;
mod serve;
mod table;
mod targets;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use uncopied_measure::pattern;

use crate::error::Error;
use crate::serve::contender::ServerFlags;
use crate::serve::contenders::{axum, axum_uncopied, plain};

/// Compare uncopied with its peers on the same work, and print medians and ratios.
#[derive(Parser)]
#[command(name = "compare", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compare file servers: requests per second, CPU per GB, memory per idle connection.
    Serve(serve::options::ServeOptions),
    /// Compare ways to send a file over TCP: CPU per transfer, CPU per GB, throughput.
    Copy(copy::options::CopyOptions),
    /// Compare mechanisms that send memory over TCP: throughput, CPU per GB, share of bytes copied.
    Memory(memory::options::MemoryOptions),
    /// Compare ways to receive over TCP: CPU per GB, throughput, share of bytes mapped.
    Receive(receive::options::ReceiveOptions),
    /// Compare programs that download files: CPU time, time, files per second.
    Get(get::options::GetOptions),
    /// Compare programs that relay TCP connections: throughput, CPU per GB, round trips and
    /// connections per second, latency.
    Relay(relay::options::RelayOptions),
    /// Send a file once, and report the CPU time: a contender of `copy`.
    #[command(hide = true)]
    CopySender(copy::sender::CopySenderFlags),
    /// Send memory until standard input ends, and report the bytes sent: a contender of `memory`.
    #[command(hide = true)]
    MemorySender(memory::sender::MemorySenderFlags),
    /// Receive until the stream ends, and report the CPU time: a contender of `receive`.
    #[command(hide = true)]
    MemoryReceiver(receive::receiver::MemoryReceiverFlags),
    /// Download a file with a minimal loop of recv and write: a contender of `get`.
    #[command(hide = true)]
    GetLoop(get::plain_loop::LoopFlags),
    /// Relay connections with a minimal loop of recv and send: a contender of `relay`.
    #[command(hide = true)]
    LoopRelay(relay::contender::RelayFlags),
    /// Relay connections with tokio's copy_bidirectional: a contender of `relay`.
    #[command(hide = true)]
    TokioRelay(relay::contender::RelayFlags),
    /// Relay connections with this project's copy_bidirectional: a contender of `relay`.
    #[command(hide = true)]
    BareRelay(relay::contender::RelayFlags),
    /// Serve files with a minimal sendfile loop: a contender of `serve`.
    #[command(hide = true)]
    PlainServer(ServerFlags),
    /// Serve files with axum and tower-http's ServeDir: a contender of `serve`.
    #[command(hide = true)]
    AxumServer(ServerFlags),
    /// Serve files with axum and this project's ServeFiles: a contender of `serve`.
    #[command(hide = true)]
    AxumUncopiedServer(ServerFlags),
    /// Pin this process to a CPU, make the kernel kill it when its parent dies, and exec COMMAND.
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
        Command::Copy(options) => copy::run(&options),
        Command::Memory(options) => memory::run(&options),
        Command::Receive(options) => receive::run(&options),
        Command::Get(options) => get::run(&options),
        Command::Relay(options) => relay::run(&options),
        Command::LoopRelay(flags) => relay::contenders::plain_loop::run(&flags),
        Command::TokioRelay(flags) => relay::contenders::tokio::run(&flags),
        Command::BareRelay(flags) => relay::contenders::bare::run(&flags),
        Command::GetLoop(flags) => get::plain_loop::run(&flags),
        Command::CopySender(flags) => copy::sender::run(&flags),
        Command::MemorySender(flags) => memory::sender::run(&flags),
        Command::MemoryReceiver(flags) => receive::receiver::run(&flags),
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
