//! The receiver, to which all senders send. It accepts a connection, and compares or discards the
//! bytes that arrive.
//!
//! The receiver has to use less CPU time than any sender. Otherwise it would be the bottleneck, and
//! the run would measure the receiver. So it discards bytes inside the kernel (`MSG_TRUNC`):
//! copying them to user space would cost the receiver more than sending costs a zero-copy sender.

use std::io::{self, ErrorKind, Read};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::time::Timespec;

use super::tcp;
use crate::error::{Context, Error};
use crate::interrupt;
use crate::process::PinnedChild;

/// Maximum size of one receive.
const RECEIVE_BYTES: usize = 1024 * 1024;

/// A sender that makes no progress for this long is considered failed.
pub(crate) const STALL_LIMIT: Duration = Duration::from_secs(5);

/// Maximum duration of one wait. Between waits, the receiver checks for Ctrl-C, and for a sender
/// that has exited or makes no progress.
const WAIT_LIMIT: Duration = Duration::from_millis(100);

/// The listener that senders connect to.
pub(crate) struct Receiver {
    listener: TcpListener,
    congestion: String,
    buffer: Vec<u8>,
}

impl Receiver {
    /// Listens on a free port of 127.0.0.1, with the given congestion control.
    pub(crate) fn listen(congestion: &str) -> Result<Self, Error> {
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .context(|| "cannot listen on 127.0.0.1".into())?;
        tcp::set_congestion(&listener, congestion)?;
        Ok(Self {
            listener,
            congestion: congestion.to_owned(),
            buffer: vec![0; RECEIVE_BYTES],
        })
    }

    /// Returns the port on 127.0.0.1 that the receiver listens on.
    pub(crate) fn port(&self) -> Result<u16, Error> {
        let address = self.listener.local_addr();
        let address = address.context(|| "cannot get the listener's address".into())?;
        Ok(address.port())
    }

    /// Waits for the connection that `sender` opens, and accepts it. The returned stream is
    /// blocking, with [`WAIT_LIMIT`] as its read timeout.
    pub(crate) fn accept(&self, sender: &mut PinnedChild) -> Result<TcpStream, Error> {
        let deadline = Instant::now() + STALL_LIMIT;
        while Instant::now() < deadline {
            interrupt::check()?;
            sender.check_alive()?;
            wait_readable(&mut [PollFd::new(&self.listener, PollFlags::IN)])?;
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error).context(|| "cannot accept".into()),
            };
            stream
                .set_nonblocking(false)
                .and_then(|()| stream.set_read_timeout(Some(WAIT_LIMIT)))
                .context(|| "cannot set up a connection".into())?;
            let got = tcp::congestion(&stream)?;
            if got != self.congestion {
                return Err(Error::WrongResult(format!(
                    "the receiver's congestion control is {got}, not {}",
                    self.congestion
                )));
            }
            return Ok(stream);
        }
        Err(Error::Unavailable(format!(
            "it did not connect within {} s",
            STALL_LIMIT.as_secs()
        )))
    }

    /// Returns an [`Incoming`] that receives from an accepted connection.
    pub(crate) fn incoming(&mut self, stream: TcpStream) -> Incoming<'_> {
        Incoming {
            stream,
            buffer: &mut self.buffer,
            received_bytes: 0,
        }
    }
}

/// A connection whose received bytes are counted. Dropping it closes the connection.
pub(crate) struct Incoming<'a> {
    stream: TcpStream,
    buffer: &'a mut [u8],
    received_bytes: u64,
}

impl Incoming<'_> {
    /// The number of bytes received so far.
    pub(crate) fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    /// The connection, for waiting until it is readable.
    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Receives as many bytes as `expected` has, and compares them with `expected`.
    ///
    /// # Errors
    ///
    /// [`Error::WrongResult`] if the bytes differ, or if the sender stops before it has sent all of
    /// them.
    pub(crate) fn compare(&mut self, expected: &[u8]) -> Result<(), Error> {
        let mut rest = expected;
        let mut last_progress = Instant::now();
        while !rest.is_empty() {
            let wanted = rest.len().min(self.buffer.len());
            let got = match self.stream.read(&mut self.buffer[..wanted]) {
                Ok(0) => return Err(closed_early()),
                Ok(got) => got,
                Err(error) if is_timeout(&error) => {
                    check_progress(last_progress)?;
                    continue;
                }
                Err(error) => return Err(connection_failed(error)),
            };
            last_progress = Instant::now();
            let Some(after) = rest.strip_prefix(&self.buffer[..got]) else {
                return Err(Error::WrongResult(format!(
                    "the received bytes differ from the expected ones, at or after offset {}",
                    self.received_bytes
                )));
            };
            self.received_bytes += got as u64;
            rest = after;
        }
        Ok(())
    }

    /// Keeps receiving until the time `end`, and discards the bytes.
    ///
    /// # Errors
    ///
    /// [`Error::WrongResult`] if the sender stops before `end`.
    pub(crate) fn discard_until(&mut self, end: Instant) -> Result<(), Error> {
        let mut last_progress = Instant::now();
        loop {
            let got = self.discard()?;
            interrupt::check()?;
            let now = Instant::now();
            match got {
                Some(0) => return Err(closed_early()),
                Some(_) => last_progress = now,
                None => check_progress(last_progress)?,
            }
            if now >= end {
                return Ok(());
            }
        }
    }

    /// Keeps receiving until the sender ends the connection, and discards the bytes.
    pub(crate) fn discard_to_end(&mut self) -> Result<(), Error> {
        let mut last_progress = Instant::now();
        loop {
            interrupt::check()?;
            match self.discard()? {
                Some(0) => return Ok(()),
                Some(_) => last_progress = Instant::now(),
                None => check_progress(last_progress)?,
            }
        }
    }

    /// Receives once, and discards the bytes. Returns the number of bytes, which is 0 at the end of
    /// the connection, or `None` if nothing arrived within [`WAIT_LIMIT`].
    pub(crate) fn discard(&mut self) -> Result<Option<usize>, Error> {
        match rustix::net::recv(&self.stream, &mut *self.buffer, RecvFlags::TRUNC) {
            Ok((_, got)) => {
                self.received_bytes += got as u64;
                Ok(Some(got))
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(error) => Err(connection_failed(error.into())),
        }
    }
}

/// Waits until at least one of the descriptors is readable, but not longer than [`WAIT_LIMIT`].
pub(crate) fn wait_readable(descriptors: &mut [PollFd<'_>]) -> Result<(), Error> {
    let limit = Timespec {
        tv_sec: 0,
        tv_nsec: WAIT_LIMIT.as_nanos() as i64,
    };
    match rustix::event::poll(descriptors, Some(&limit)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error).context(|| "cannot wait for bytes".into()),
    }
}

/// Returns an error if `last_progress` is at least [`STALL_LIMIT`] ago, or if the user has
/// interrupted the run.
pub(crate) fn check_progress(last_progress: Instant) -> Result<(), Error> {
    interrupt::check()?;
    if last_progress.elapsed() < STALL_LIMIT {
        return Ok(());
    }
    Err(Error::WrongResult("the sender has stopped sending".into()))
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

fn closed_early() -> Error {
    Error::WrongResult("the sender closed the connection too early".into())
}

fn connection_failed(source: io::Error) -> Error {
    Error::Io {
        what: "the connection failed".into(),
        source,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::pattern;
    use std::io::Write;

    /// Calls `receive` with a connection on which `bytes` arrive, followed by the end of the
    /// connection.
    fn with_incoming<T>(bytes: &[u8], receive: impl FnOnce(&mut Incoming<'_>) -> T) -> T {
        let mut receiver = Receiver::listen("reno").unwrap();
        let address = receiver.listener.local_addr().unwrap();
        let mut sender = TcpStream::connect(address).unwrap();
        sender.write_all(bytes).unwrap();
        drop(sender);
        receiver.listener.set_nonblocking(false).unwrap();
        let stream = receiver.listener.accept().unwrap().0;
        receive(&mut receiver.incoming(stream))
    }

    #[test]
    fn every_byte_is_compared_and_counted() {
        let sent = pattern::bytes(10_000);
        let compare = |expected: &[u8]| {
            with_incoming(&sent, |incoming| {
                incoming.compare(expected)?;
                incoming.discard_to_end()?;
                Ok::<_, Error>(incoming.received_bytes())
            })
        };
        assert_eq!(compare(&sent).unwrap(), 10_000);
        assert_eq!(compare(&sent[..4000]).unwrap(), 10_000);
        let mut different = sent.clone();
        different[9_999] ^= 1;
        let message = compare(&different).unwrap_err().to_string();
        assert!(message.contains("differ from the expected"), "{message}");
        let longer = [&sent[..], b"x"].concat();
        let message = compare(&longer).unwrap_err().to_string();
        assert!(message.contains("too early"), "{message}");
    }

    #[test]
    fn a_connection_that_ends_within_the_measurement_is_an_error() {
        let ended = with_incoming(b"bytes", |incoming| {
            incoming.discard_until(Instant::now() + STALL_LIMIT)
        });
        assert!(matches!(ended, Err(Error::WrongResult(_))), "{ended:?}");
    }
}
