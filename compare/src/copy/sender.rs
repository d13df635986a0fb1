//! The hidden subcommand `copy-sender`: the process in which a contender sends a file.

use std::fs::File;
use std::io::{self, Read};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;

use clap::Args;

use super::contender::FileSender;
use super::contenders;
use super::job::{CopyJob, TransferReport};
use crate::error::{Context, Error};
use crate::loopback::tcp;
use crate::measure;

/// Arguments of the hidden subcommand `copy-sender`.
#[derive(Args)]
pub(crate) struct CopySenderFlags {
    /// The contender to run.
    #[arg(long, value_parser = contenders::by_name)]
    contender: &'static FileSender,
    /// The file to send.
    #[arg(long)]
    file: PathBuf,
    /// The address to connect to.
    #[arg(long)]
    connect: SocketAddr,
    /// The TCP congestion control to set on the socket.
    #[arg(long)]
    congestion: String,
}

/// Opens the file and the connection, waits for the end of standard input as the signal to start,
/// sends the file, and prints a report.
pub(crate) fn run(flags: &CopySenderFlags) -> Result<(), Error> {
    let file =
        File::open(&flags.file).context(|| format!("cannot open {}", flags.file.display()))?;
    let socket = tcp::connect(flags.connect, &flags.congestion)?;
    let congestion = tcp::congestion(&socket)?;
    let connection = socket.try_clone();
    let connection = connection.context(|| "cannot share the socket".into())?;
    io::copy(&mut io::stdin(), &mut io::sink()).context(|| "cannot read the input".into())?;

    let before = measure::own_process_cpu_seconds();
    let bytes = (flags.contender.send)(CopyJob { file, socket })?;
    wait_until_received(connection)?;
    let cpu_seconds = measure::own_process_cpu_seconds() - before;
    let report = TransferReport {
        bytes,
        cpu_seconds,
        congestion,
    };
    println!("{}", report.line());
    Ok(())
}

/// Shuts down the sending side of the connection, and waits until the receiver has received
/// everything and closes the connection.
///
/// When the contender's function returns, megabytes may still be in the socket's buffer. The CPU
/// time for transmitting these bytes and freeing their pages is part of the transfer, so it must be
/// measured too.
fn wait_until_received(mut connection: TcpStream) -> Result<(), Error> {
    connection
        .shutdown(Shutdown::Write)
        // Make the socket blocking again, because the asynchronous contenders have made it
        // non-blocking.
        .and_then(|()| connection.set_nonblocking(false))
        .and_then(|()| connection.read(&mut [0]))
        .map(|_| ())
        .context(|| "cannot wait for the receiver".into())
}
