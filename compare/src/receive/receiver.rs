//! The hidden subcommand `memory-receiver`: the process in which a contender receives.

use std::net::SocketAddr;

use clap::Args;

use super::contender::MemoryReceiver;
use super::contenders;
use super::job::{ReceiveJob, ReceiverReport};
use super::meter::Meter;
use super::options::ReceivingOptions;
use crate::error::{Context, Error};
use crate::loopback::tcp;

/// Arguments of the hidden subcommand `memory-receiver`.
#[derive(Args)]
pub(crate) struct MemoryReceiverFlags {
    /// The contender to run.
    #[arg(long, value_parser = contenders::by_name)]
    contender: &'static MemoryReceiver,
    /// The address to connect to.
    #[arg(long)]
    connect: SocketAddr,
    /// The TCP congestion control to set on the socket.
    #[arg(long)]
    congestion: String,
    #[command(flatten)]
    receiving: ReceivingOptions,
}

/// Receives until the stream ends, which is soon after the measurement, then prints a report.
pub(crate) fn run(flags: &MemoryReceiverFlags) -> Result<(), Error> {
    let stream = tcp::connect(flags.connect, &flags.congestion)?;
    let congestion = tcp::congestion(&stream)?;
    let low_water_mark = flags.receiving.low_water_mark as usize;
    // The receiver sets the option, which stays set when the socket is taken out of it.
    let options = uncopied::ReceiveOptions::default().low_water_mark(low_water_mark);
    let stream = uncopied::Receiver::with(stream, options).into_inner();
    let mut meter =
        Meter::new(&stream, &flags.receiving).context(|| "cannot share the socket".into())?;
    let job = ReceiveJob {
        stream,
        low_water_mark,
    };
    let mapped_bytes = (flags.contender.receive)(job, &mut meter)?;
    let (window, total_bytes) = meter.finish()?;
    let report = ReceiverReport {
        total_bytes,
        mapped_bytes,
        window,
        congestion,
    };
    println!("{}", report.line());
    Ok(())
}
