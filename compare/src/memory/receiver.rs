//! The other side of every sender: takes in what comes and throws it away.
//!
//! It has to be cheaper than any sender, or it measures itself. What comes is discarded inside the kernel
//! (`MSG_TRUNC`), because copying it out would cost more than sending it costs a sender that does not
//! copy. It is the same for all, also for iperf3, whose own server would copy.
//!
//! Nobody wins by wrong bytes: the first two buffers of each of our senders are compared byte by byte, and
//! at the end the bytes that came are those that the sender says it has sent.

use std::io::{self, ErrorKind, Read};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, sockopt};
use rustix::time::Timespec;

use super::iperf3::Control;
use crate::error::{Context, Error};
use crate::interrupt;
use crate::measure::{Snapshot, Usage};
use crate::process::Pinned;

/// What one receive takes at most.
const RECEIVE_BYTES: usize = 1024 * 1024;

/// A sender that does nothing for so long has failed.
pub(super) const STALL_LIMIT: Duration = Duration::from_secs(5);

/// The longest sleep, so that Ctrl-C and a sender that has ended are noticed.
const WAIT_LIMIT: Duration = Duration::from_millis(100);

/// How long to send.
#[derive(Clone, Copy)]
pub(super) struct Timing {
    /// Before the measurement begins.
    pub(super) warm_up: Duration,
    /// The measurement.
    pub(super) window: Duration,
}

/// What a sender speaks.
pub(super) enum Protocol {
    /// Nothing but these bytes, over and over.
    Bytes(Vec<u8>),
    /// iperf3's: a connection for control, and one for bytes that nobody can foretell.
    Iperf3,
}

/// What came from one sender.
pub(super) struct Received {
    /// In the measurement.
    pub(super) usage: Usage,
    /// From the beginning to the end.
    pub(super) total_bytes: u64,
}

/// Where senders connect to.
pub(super) struct Receiver {
    listener: TcpListener,
    congestion: String,
    buffer: Vec<u8>,
}

impl Receiver {
    /// Listens on a free port of 127.0.0.1, with that congestion control.
    pub(super) fn listen(congestion: &str) -> Result<Self, Error> {
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .context(|| "cannot listen on 127.0.0.1".into())?;
        set_congestion(&listener, congestion)?;
        Ok(Self {
            listener,
            congestion: congestion.to_owned(),
            buffer: vec![0; RECEIVE_BYTES],
        })
    }

    /// Where it listens on 127.0.0.1.
    pub(super) fn port(&self) -> Result<u16, Error> {
        let address = self.listener.local_addr();
        let address = address.context(|| "cannot ask for the listener's address".into())?;
        Ok(address.port())
    }

    /// Takes in all that a sender sends, and measures a part of it. `sender` has been started to connect
    /// here.
    ///
    /// # Errors
    ///
    /// [`Error::WrongAnswer`] if wrong bytes come, or the sender stops before it is told to.
    pub(super) fn measure(
        &mut self,
        sender: &mut Pinned,
        protocol: Protocol,
        timing: Timing,
    ) -> Result<Received, Error> {
        let mut accept = || self.accept(sender);
        let (stream, expected, control) = match protocol {
            Protocol::Bytes(bytes) => (accept()?, bytes, None),
            Protocol::Iperf3 => {
                let (stream, control) = Control::open(accept)?;
                (stream, Vec::new(), Some(control))
            }
        };
        let mut flow = Flow {
            stream,
            buffer: &mut self.buffer,
            received_bytes: 0,
        };
        flow.compare(&expected)?;
        flow.compare(&expected)?;
        flow.discard_until(Instant::now() + timing.warm_up)?;
        let before = Snapshot::take(sender.id(), flow.received_bytes)?;
        flow.discard_until(before.at + timing.window)?;
        let after = Snapshot::take(sender.id(), flow.received_bytes)?;
        sender.end_input();
        flow.drain(control)?;
        Ok(Received {
            usage: after.since(&before),
            total_bytes: flow.received_bytes,
        })
    }

    /// The next connection, which `sender` has to open.
    fn accept(&self, sender: &mut Pinned) -> Result<TcpStream, Error> {
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
                .context(|| "cannot set a connection up".into())?;
            check_congestion(&stream, &self.congestion)?;
            return Ok(stream);
        }
        Err(Error::Unavailable(format!(
            "it did not connect within {} s",
            STALL_LIMIT.as_secs()
        )))
    }
}

/// A connection whose bytes are counted.
struct Flow<'a> {
    stream: TcpStream,
    buffer: &'a mut [u8],
    received_bytes: u64,
}

impl Flow<'_> {
    /// Takes in as many bytes as are expected, and compares them.
    fn compare(&mut self, expected: &[u8]) -> Result<(), Error> {
        let mut rest = expected;
        let mut last_progress = Instant::now();
        while !rest.is_empty() {
            let asked = rest.len().min(self.buffer.len());
            let got = match self.stream.read(&mut self.buffer[..asked]) {
                Ok(0) => return Err(ended()),
                Ok(got) => got,
                Err(error) if is_pause(&error) => {
                    check_progress(last_progress)?;
                    continue;
                }
                Err(error) => return Err(broken(error)),
            };
            last_progress = Instant::now();
            let Some(after) = rest.strip_prefix(&self.buffer[..got]) else {
                return Err(Error::WrongAnswer(format!(
                    "what came is not what it was to send, at {} or after",
                    self.received_bytes
                )));
            };
            self.received_bytes += got as u64;
            rest = after;
        }
        Ok(())
    }

    /// Throws away what comes until `end`.
    fn discard_until(&mut self, end: Instant) -> Result<(), Error> {
        let mut last_progress = Instant::now();
        loop {
            let got = self.discard()?;
            interrupt::check()?;
            let now = Instant::now();
            match got {
                Some(0) => return Err(ended()),
                Some(_) => last_progress = now,
                None => check_progress(last_progress)?,
            }
            if now >= end {
                return Ok(());
            }
        }
    }

    /// Throws away what comes until the sender closes the connection; answers its control meanwhile.
    fn drain(&mut self, mut control: Option<Control>) -> Result<(), Error> {
        let mut last_progress = Instant::now();
        loop {
            interrupt::check()?;
            let (data, talk) = {
                let mut descriptors = vec![PollFd::new(&self.stream, PollFlags::IN)];
                if let Some(control) = &control {
                    descriptors.push(PollFd::new(control.stream(), PollFlags::IN));
                }
                wait_readable(&mut descriptors)?;
                let ready = |index: usize| {
                    let descriptor = descriptors.get(index);
                    descriptor.is_some_and(|descriptor| !descriptor.revents().is_empty())
                };
                (ready(0), ready(1))
            };
            if data && self.discard()? == Some(0) {
                return Ok(());
            }
            if talk
                && let Some(open) = &mut control
                && !open.answer(self.received_bytes)?
            {
                control = None;
            }
            if data || talk {
                last_progress = Instant::now();
            } else {
                check_progress(last_progress)?;
            }
        }
    }

    /// One receive; `None` if nothing came for [`WAIT_LIMIT`].
    fn discard(&mut self) -> Result<Option<usize>, Error> {
        match rustix::net::recv(&self.stream, &mut *self.buffer, RecvFlags::TRUNC) {
            Ok((_, got)) => {
                self.received_bytes += got as u64;
                Ok(Some(got))
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(error) => Err(broken(error.into())),
        }
    }
}

/// Sets the congestion control of a socket.
pub(super) fn set_congestion(socket: impl std::os::fd::AsFd, wanted: &str) -> Result<(), Error> {
    sockopt::set_tcp_congestion(socket, wanted).map_err(|error| {
        Error::Usage(format!(
            "cannot set the congestion control {wanted} on a socket ({error}): choose one of \
             net.ipv4.tcp_allowed_congestion_control with --congestion, or load its module"
        ))
    })
}

fn check_congestion(stream: &TcpStream, wanted: &str) -> Result<(), Error> {
    let got = sockopt::tcp_congestion(stream)
        .context(|| "cannot ask for the congestion control of a connection".into())?;
    if got == wanted {
        return Ok(());
    }
    Err(Error::WrongAnswer(format!(
        "the receiver's congestion control is {got} and not {wanted}"
    )))
}

fn wait_readable(descriptors: &mut [PollFd<'_>]) -> Result<(), Error> {
    let limit = Timespec {
        tv_sec: 0,
        tv_nsec: WAIT_LIMIT.as_nanos() as i64,
    };
    match rustix::event::poll(descriptors, Some(&limit)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error).context(|| "cannot wait for bytes".into()),
    }
}

fn check_progress(last: Instant) -> Result<(), Error> {
    interrupt::check()?;
    if last.elapsed() < STALL_LIMIT {
        return Ok(());
    }
    Err(Error::WrongAnswer("the sender has stopped sending".into()))
}

fn is_pause(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

fn ended() -> Error {
    Error::WrongAnswer("the sender closed the connection too early".into())
}

fn broken(source: io::Error) -> Error {
    Error::Io {
        what: "the connection failed".into(),
        source,
    }
}
