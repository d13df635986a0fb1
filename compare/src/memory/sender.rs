//! The hidden subcommand `memory-sender`: the process in which a contender that is built into this
//! program sends.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use clap::Args;

use super::contender::MemorySender;
use super::contenders;
use super::job::{MemoryJob, SenderReport};
use crate::error::Error;
use crate::loopback::tcp;
use crate::pattern;
use crate::table::parse_size;

/// Arguments of the hidden subcommand `memory-sender`.
#[derive(Args)]
pub(crate) struct MemorySenderFlags {
    /// The contender to run.
    #[arg(long, value_parser = contenders::by_name)]
    contender: &'static MemorySender,
    /// The address to connect to.
    #[arg(long)]
    connect: SocketAddr,
    /// The number of connections to open.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// The size of the buffer to send over and over.
    #[arg(long, value_parser = parse_size)]
    size: u64,
    /// The TCP congestion control to set on the sockets.
    #[arg(long)]
    congestion: String,
}

/// Sends until standard input ends, then prints a report.
pub(crate) fn run(flags: &MemorySenderFlags) -> Result<(), Error> {
    let send = flags.contender.own_function().ok_or_else(|| {
        Error::Usage(format!(
            "{} is a separate program: run that instead",
            flags.contender.name
        ))
    })?;
    let payload = pattern::bytes(flags.size);
    let streams = (0..flags.connections).map(|_| tcp::connect(flags.connect, &flags.congestion));
    let streams = streams.collect::<Result<Vec<_>, _>>()?;
    let congestion = tcp::congestion(&streams[0])?;
    let stop = Arc::new(AtomicBool::new(false));
    set_at_end_of_input(Arc::clone(&stop));
    let sent = send(MemoryJob::new(streams, payload, stop))?;
    println!("{}", SenderReport { sent, congestion }.line());
    Ok(())
}

/// Starts a thread that waits until standard input ends, and then sets `stop`.
///
/// The sender checks this flag before it sends each buffer. That costs practically nothing, and
/// less than reading the clock each time would.
fn set_at_end_of_input(stop: Arc<AtomicBool>) {
    thread::spawn(move || {
        let mut ignored = [0; 64];
        while std::io::stdin()
            .read(&mut ignored)
            .is_ok_and(|count| count > 0)
        {}
        stop.store(true, Ordering::Relaxed);
    });
}
