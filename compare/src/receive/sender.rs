//! The sender, which is a part of this process. It sends the same bytes over and over, until the
//! receiver has shut down its side of the connection.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::RecvFlags;
use socket2::SockRef;
use uncopied::arena::{PageBuffer, Pages};
use uncopied::{Mechanism, SendOptions, Sender};
use uncopied_measure::error::chain;

use super::scenario::Scenario;
use crate::error::{Context, Error};
use crate::interrupt;
use crate::loopback::wait::STALL_LIMIT;
use crate::measure::thread_cpu_seconds;
use crate::pattern;

/// The number of bytes that are sent with one call.
pub(super) const PAYLOAD_BYTES: usize = 256 << 10;

/// The sender waits if at least this number of bytes has been written to its socket but not been
/// sent (`TCP_NOTSENT_LOWAT`).
///
/// Such bytes are sent as soon as the receiver acknowledges earlier ones, and on loopback this
/// happens on the receiver's CPU, within the call that receives. Without a limit, there would be
/// megabytes of them whenever the receiver is slower than the sender, and whether a receiver pays
/// for sending the bytes that it receives would be a matter of luck.
const MAX_UNSENT_BYTES: u32 = 64 << 10;

/// What was sent to a receiver.
pub(super) struct Sent {
    /// The number of bytes.
    pub(super) bytes: u64,
    /// The CPU time of the sender, as a fraction of one CPU, from the first byte to the last.
    pub(super) cpu_share: f64,
}

/// Returns the bytes that are sent over and over.
pub(super) fn payload() -> Vec<u8> {
    pattern::bytes(PAYLOAD_BYTES as u64)
}

/// Sends until the receiver has shut down its side of the connection, and then ends the stream.
///
/// # Errors
///
/// Those of the connection, for example because the receiver has failed, or takes nothing for
/// [`STALL_LIMIT`].
pub(super) fn send(stream: TcpStream, scenario: Scenario) -> Result<Sent, Error> {
    stream
        .set_write_timeout(Some(STALL_LIMIT))
        .and_then(|()| SockRef::from(&stream).set_tcp_notsent_lowat(MAX_UNSENT_BYTES))
        .context(|| "cannot set up a connection".into())?;
    match scenario {
        Scenario::OrdinaryPayloads => {
            let payload = payload();
            let mut stream = stream;
            send_over_and_over(
                &mut stream,
                |stream| stream,
                |stream| stream.write_all(&payload).context(|| "cannot send".into()),
            )
        }
        Scenario::PagePayloads => {
            let pages = pages()?;
            let options = SendOptions::default().force_mechanisms(&[Mechanism::MsgZerocopy]);
            let mut sender = Sender::with(stream, options);
            send_over_and_over(&mut sender, Sender::get_ref, |sender| {
                let sent = sender.send(&pages);
                let failed = |error| Error::Unavailable(format!("cannot send: {}", chain(&error)));
                sent.map(drop).map_err(failed)
            })
        }
    }
}

/// Calls `send`, which sends the payload once, until the receiver has shut down its side.
fn send_over_and_over<S>(
    sender: &mut S,
    stream: impl Fn(&S) -> &TcpStream,
    mut send: impl FnMut(&mut S) -> Result<(), Error>,
) -> Result<Sent, Error> {
    let (start, cpu_before) = (Instant::now(), thread_cpu_seconds());
    let mut bytes = 0;
    while !has_ended(stream(sender))? {
        interrupt::check()?;
        send(sender)?;
        bytes += PAYLOAD_BYTES as u64;
    }
    let cpu_seconds = thread_cpu_seconds() - cpu_before;
    let cpu_share = cpu_seconds / start.elapsed().as_secs_f64();
    stream(sender)
        .shutdown(Shutdown::Write)
        .context(|| "cannot end the stream".into())?;
    Ok(Sent { bytes, cpu_share })
}

/// Whether the receiver has shut down its side of the connection.
fn has_ended(stream: &TcpStream) -> Result<bool, Error> {
    match rustix::net::recv(stream, &mut [0; 1], RecvFlags::DONTWAIT) {
        Ok((_, 0)) => Ok(true),
        Ok(_) => Err(Error::WrongResult("the receiver has sent bytes".into())),
        Err(Errno::AGAIN | Errno::INTR) => Ok(false),
        Err(error) => Err(error).context(|| "the connection failed".into()),
    }
}

/// Returns the payload in pages that are sent many times.
fn pages() -> Result<Pages, Error> {
    let buffer = PageBuffer::copy_from_slice(&payload());
    let buffer = buffer.context(|| "cannot allocate a buffer from the arena".into())?;
    Ok(buffer.freeze())
}
