//! The trials: each one moves real bytes with the library over a real connection.

pub(super) mod file;
pub(super) mod memory;
pub(super) mod receive;
pub(super) mod tls;

use std::io::{self, Read as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use uncopied::policy::Plan;
use uncopied::{Errno, Mechanism, Report};

use crate::error::kernel_text;

/// How many bytes a trial sends: whole pages, more than what the library copies by itself, and
/// little enough for any socket buffer.
pub(super) const TRIAL_BYTES: usize = 64 << 10;

/// No trial waits longer than this for a socket or for a notification.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// Why a trial has not shown that a mechanism works.
#[derive(Debug)]
pub(super) enum Refusal {
    /// An environment variable, whose setting is the text, switches the mechanism off.
    SwitchedOff(&'static str),
    /// The kernel refused with this errno.
    Errno(Errno),
    /// There is no connection to try it over.
    Connection(io::Error),
    /// Anything else, as a sentence.
    Other(String),
}

/// Returns a connection over loopback: the end that sends, and the end that receives.
fn connection() -> Result<(TcpStream, TcpStream), Refusal> {
    connect_to(TcpListener::bind("127.0.0.1:0"))
}

fn connect_to(listener: io::Result<TcpListener>) -> Result<(TcpStream, TcpStream), Refusal> {
    let connect = || -> io::Result<_> {
        let listener = listener?;
        let near = TcpStream::connect_timeout(&listener.local_addr()?, TIME_LIMIT)?;
        let (far, _) = listener.accept()?;
        for socket in [&near, &far] {
            socket.set_read_timeout(Some(TIME_LIMIT))?;
            socket.set_write_timeout(Some(TIME_LIMIT))?;
        }
        Ok((near, far))
    };
    connect().map_err(Refusal::Connection)
}

/// Sends with `send`, and returns its result and the bytes that the other end has received.
fn exchange<T>(
    send: impl FnOnce(&TcpStream) -> Result<T, uncopied::Error>,
) -> Result<(T, Vec<u8>), Refusal> {
    let (near, mut far) = connection()?;
    thread::scope(|scope| {
        let receiving = thread::Builder::new().spawn_scoped(scope, move || {
            let mut received = Vec::new();
            far.read_to_end(&mut received).map(|_| received)
        });
        let receiving = receiving.map_err(no_thread)?;
        let sent = send(&near);
        // Ends the stream. If this fails, so does the receiver.
        let _ = near.shutdown(Shutdown::Write);
        let received = receiving.join();
        let sent = sent.map_err(|error| of_error(&error))?;
        match received {
            Ok(Ok(bytes)) => Ok((sent, bytes)),
            Ok(Err(error)) => Err(Refusal::Other(format!("receiving failed: {error}"))),
            Err(_) => Err(Refusal::Other("the receiving thread stopped".to_owned())),
        }
    })
}

/// Sends with `send`, and returns its result. Fails unless the bytes that arrive are `expected`.
fn send_over<T>(
    expected: &[u8],
    send: impl FnOnce(&TcpStream) -> Result<T, uncopied::Error>,
) -> Result<T, Refusal> {
    let (sent, received) = exchange(send)?;
    match received == expected {
        true => Ok(sent),
        false => Err(wrong_bytes()),
    }
}

/// What no trial should ever find.
fn wrong_bytes() -> Refusal {
    let why = "other bytes arrived than were sent; this is a bug, please report it";
    Refusal::Other(why.to_owned())
}

fn no_thread(error: io::Error) -> Refusal {
    Refusal::Other(format!("no thread can be started: {}", kernel_text(&error)))
}

/// Returns the mechanism with `copy` as its fallback, so that the report has the errno of a
/// refusal.
fn forced(mechanism: Mechanism) -> Plan {
    Plan::preferring(mechanism)
}

/// Returns the refusal that an error of the library stands for.
fn of_error(error: &uncopied::Error) -> Refusal {
    match error.raw_os_error() {
        Some(errno) => Refusal::Errno(Errno::from_raw_os_error(errno)),
        None => Refusal::Other(error.to_string()),
    }
}

/// Fails unless `mechanism` has moved all bytes of the report.
fn moved_by(mechanism: Mechanism, report: &Report) -> Result<(), Refusal> {
    if report.bytes() > 0 && report.by(mechanism) == report.bytes() {
        return Ok(());
    }
    if report.switched_off() {
        return Err(Refusal::SwitchedOff("UNCOPIED_SEND"));
    }
    let mut fallbacks = report.fallbacks().iter();
    match fallbacks.find(|fallback| fallback.from == mechanism) {
        Some(fallback) => Err(Refusal::Errno(fallback.errno)),
        None => Err(Refusal::Other(format!(
            "the library sent {} of {} bytes with it, and copied the others",
            report.by(mechanism),
            report.bytes()
        ))),
    }
}

/// Returns bytes that differ from page to page and from one `seed` to another.
fn pattern(seed: u8, len: usize) -> Vec<u8> {
    let byte = |at: usize| (at as u8) ^ ((at >> 8) as u8).wrapping_mul(31) ^ seed;
    (0..len).map(byte).collect()
}
