//! The receiver, to which all senders send. It accepts a sender's connections, and compares or
//! discards the bytes that arrive.
//!
//! The receiver has to use less CPU time than any sender. Otherwise it would be the bottleneck, and
//! the run would measure the receiver. So it discards bytes inside the kernel.

use std::io::{self, ErrorKind, Read};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::io::Errno;
use uncopied_measure::discard::Discarder;

use super::listener::{ANY_PORT, Listener};
use super::wait::{WAIT_LIMIT, WAIT_LIMIT_TIMESPEC, check_progress};
use crate::error::{Context, Error};
use crate::interrupt;
use crate::process::PinnedChild;

/// The listener that senders connect to.
pub(crate) struct Receiver {
    listener: Listener,
    discarder: Discarder,
}

impl Receiver {
    /// Listens on a free port of 127.0.0.1, with the given congestion control.
    pub(crate) fn listen(congestion: &str) -> Result<Self, Error> {
        Self::on(TcpListener::bind(ANY_PORT), congestion)
    }

    /// Takes a listener that is bound, and sets the congestion control of the connections that it
    /// will accept.
    pub(crate) fn on(bound: io::Result<TcpListener>, congestion: &str) -> Result<Self, Error> {
        Ok(Self {
            listener: Listener::new(bound, congestion)?,
            discarder: Discarder::new(),
        })
    }

    /// Returns the port on 127.0.0.1 that the receiver listens on.
    pub(crate) fn port(&self) -> Result<u16, Error> {
        self.listener.port()
    }

    /// The listener.
    pub(crate) fn listener(&self) -> &Listener {
        &self.listener
    }

    /// Waits for the next connection that `sender` opens, and accepts it. The returned stream is
    /// blocking, with [`WAIT_LIMIT`] as its read timeout.
    pub(crate) fn accept(&self, sender: &mut PinnedChild) -> Result<TcpStream, Error> {
        let stream = self.listener.accept(sender)?;
        stream
            .set_read_timeout(Some(WAIT_LIMIT))
            .context(|| "cannot set up a connection".into())?;
        Ok(stream)
    }

    /// Returns an [`Incoming`] that receives from accepted connections, of which there must be at
    /// least one.
    pub(crate) fn incoming(&mut self, streams: Vec<TcpStream>) -> Result<Incoming<'_>, Error> {
        let readable = match streams.len() {
            1 => None,
            _ => Some(ReadableStreams::watch(&streams)?),
        };
        Ok(Incoming {
            open_streams: streams.len(),
            streams,
            readable,
            discarder: &mut self.discarder,
            received_bytes: 0,
        })
    }
}

/// The connections of one sender, whose received bytes are counted. Dropping it closes the
/// connections.
pub(crate) struct Incoming<'a> {
    streams: Vec<TcpStream>,
    /// The number of streams that have not ended.
    open_streams: usize,
    /// `None` if there is only one stream: the receive itself then waits, which saves a system
    /// call.
    readable: Option<ReadableStreams>,
    discarder: &'a mut Discarder,
    received_bytes: u64,
}

impl Incoming<'_> {
    /// The number of bytes received so far, over all connections.
    pub(crate) fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    /// The first connection, for waiting until it is readable.
    pub(crate) fn stream(&self) -> &TcpStream {
        &self.streams[0]
    }

    /// Whether the sender has ended all connections.
    pub(crate) fn has_ended(&self) -> bool {
        self.open_streams == 0
    }

    /// Receives as many bytes as `expected` has from each connection, one connection after the
    /// other, and compares them with `expected`.
    ///
    /// # Errors
    ///
    /// [`Error::WrongResult`] if the bytes differ, or if the sender stops before it has sent all of
    /// them.
    pub(crate) fn compare(&mut self, expected: &[u8]) -> Result<(), Error> {
        for stream in &mut self.streams {
            let mut rest = expected;
            let mut last_progress = Instant::now();
            while !rest.is_empty() {
                let buffer = self.discarder.buffer();
                let wanted = rest.len().min(buffer.len());
                let got = match stream.read(&mut buffer[..wanted]) {
                    Ok(0) => return Err(closed_early()),
                    Ok(got) => got,
                    Err(error) if is_timeout(&error) => {
                        check_progress(last_progress)?;
                        continue;
                    }
                    Err(error) => return Err(connection_failed(error)),
                };
                last_progress = Instant::now();
                let Some(after) = rest.strip_prefix(&buffer[..got]) else {
                    return Err(Error::WrongResult(format!(
                        "after {} bytes, the received bytes differ from the expected ones",
                        self.received_bytes
                    )));
                };
                self.received_bytes += got as u64;
                rest = after;
            }
        }
        Ok(())
    }

    /// Keeps receiving until the time `end`, and discards the bytes.
    ///
    /// # Errors
    ///
    /// [`Error::WrongResult`] if the sender ends a connection before `end`.
    pub(crate) fn discard_until(&mut self, end: Instant) -> Result<(), Error> {
        let mut last_progress = Instant::now();
        loop {
            let has_progress = self.discard()?;
            interrupt::check()?;
            let now = Instant::now();
            if self.open_streams < self.streams.len() {
                return Err(closed_early());
            }
            match has_progress {
                true => last_progress = now,
                false => check_progress(last_progress)?,
            }
            if now >= end {
                return Ok(());
            }
        }
    }

    /// Keeps receiving until the sender ends all connections, and discards the bytes.
    pub(crate) fn discard_to_end(&mut self) -> Result<(), Error> {
        let mut last_progress = Instant::now();
        while !self.has_ended() {
            interrupt::check()?;
            match self.discard()? {
                true => last_progress = Instant::now(),
                false => check_progress(last_progress)?,
            }
        }
        Ok(())
    }

    /// Receives once from each readable connection, and discards the bytes. Returns false if no
    /// connection was readable within [`WAIT_LIMIT`]. Must not be called after the last connection
    /// has ended.
    pub(crate) fn discard(&mut self) -> Result<bool, Error> {
        let indices = match &mut self.readable {
            Some(readable) => readable.wait()?,
            None => vec![0],
        };
        let mut has_progress = false;
        for index in indices {
            has_progress |= self.discard_from(index)?;
        }
        Ok(has_progress)
    }

    /// Like [`discard`](Self::discard), but receives from one connection only.
    fn discard_from(&mut self, index: usize) -> Result<bool, Error> {
        let stream = &self.streams[index];
        match self.discarder.discard(stream) {
            Ok(0) => {
                self.open_streams -= 1;
                if let Some(readable) = &self.readable {
                    readable.forget(stream)?;
                }
                Ok(true)
            }
            Ok(got) => {
                self.received_bytes += got as u64;
                Ok(true)
            }
            Err(error) if is_timeout(&error) => Ok(false),
            Err(error) => Err(connection_failed(error)),
        }
    }
}

/// Waits for several streams at once.
struct ReadableStreams {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl ReadableStreams {
    /// Prepares to wait for these streams.
    fn watch(streams: &[TcpStream]) -> Result<Self, Error> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .context(|| "cannot create an epoll instance".into())?;
        for (index, stream) in streams.iter().enumerate() {
            let index = epoll::EventData::new_u64(index as u64);
            epoll::add(&epoll, stream, index, epoll::EventFlags::IN)
                .context(|| "cannot watch a connection".into())?;
        }
        Ok(Self {
            epoll,
            events: Vec::with_capacity(streams.len()),
        })
    }

    /// Waits until a stream is readable or has ended, but not longer than [`WAIT_LIMIT`]. Returns
    /// the indices of the streams.
    fn wait(&mut self) -> Result<Vec<usize>, Error> {
        let Self { epoll, events } = self;
        events.clear();
        match epoll::wait(&*epoll, spare_capacity(events), Some(&WAIT_LIMIT_TIMESPEC)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context(|| "cannot wait for bytes".into()),
        }
        let index_of = |event: &epoll::Event| event.data.u64() as usize;
        Ok(events.iter().map(index_of).collect())
    }

    /// Stops waiting for a stream, because it has ended.
    fn forget(&self, stream: &TcpStream) -> Result<(), Error> {
        epoll::delete(&self.epoll, stream).context(|| "cannot stop watching a connection".into())
    }
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
    use crate::loopback::wait::STALL_LIMIT;
    use crate::pattern;
    use std::io::Write;

    /// Calls `receive` with connections on each of which `bytes` arrive, followed by the end of the
    /// connection.
    fn with_connections<T>(
        count: usize,
        bytes: &[u8],
        receive: impl FnOnce(&mut Incoming<'_>) -> T,
    ) -> T {
        let mut receiver = Receiver::listen("reno").unwrap();
        let listener = TcpListener::bind(ANY_PORT).unwrap();
        let address = listener.local_addr().unwrap();
        let streams = (0..count).map(|_| {
            let mut sender = TcpStream::connect(address).unwrap();
            sender.write_all(bytes).unwrap();
            listener.accept().unwrap().0
        });
        let streams = streams.collect();
        receive(&mut receiver.incoming(streams).unwrap())
    }

    fn with_incoming<T>(bytes: &[u8], receive: impl FnOnce(&mut Incoming<'_>) -> T) -> T {
        with_connections(1, bytes, receive)
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
    fn every_connection_is_compared_and_received_to_its_end() {
        let sent = pattern::bytes(10_000);
        let total = with_connections(3, &sent, |incoming| {
            incoming.compare(&sent[..4000])?;
            assert_eq!(incoming.received_bytes(), 3 * 4000);
            incoming.discard_to_end()?;
            Ok::<_, Error>(incoming.received_bytes())
        });
        assert_eq!(total.unwrap(), 3 * 10_000);
        let ended = with_connections(3, &sent, |incoming| {
            incoming.discard_until(Instant::now() + STALL_LIMIT)
        });
        assert!(matches!(ended, Err(Error::WrongResult(_))), "{ended:?}");
    }

    #[test]
    fn a_connection_that_ends_within_the_measurement_is_an_error() {
        let ended = with_incoming(b"bytes", |incoming| {
            incoming.discard_until(Instant::now() + STALL_LIMIT)
        });
        assert!(matches!(ended, Err(Error::WrongResult(_))), "{ended:?}");
    }
}
