//! The load generator: keep-alive connections that each send a GET, read the answer, and send it again: the
//! same, or one with another number in its query.
//!
//! It has to be cheaper than any server, or it measures itself: one thread, edge-triggered epoll,
//! one send and one receive for a small answer, nothing allocated once the load runs. From
//! 16 KiB on, bodies are discarded inside the kernel (`MSG_TRUNC`), because copying them out would
//! cost the client more than sending them costs a server that does not copy.
//!
//! Nobody wins by wrong answers: the first answer of every connection is compared with the file
//! byte by byte, and of every later one the status and the place of the empty line are checked.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::time::Timespec;

use crate::answer::{self, EMPTY_LINE, STATUS_OK};
use crate::error::{Context, Error};
use crate::interrupt;
use crate::measure::Snapshot;

/// From this size on a body is discarded instead of copied out.
const DISCARD_FROM_BYTES: usize = 16 * 1024;

/// What one receive takes at most.
const RECEIVE_BYTES: usize = 1024 * 1024;

/// No sane head is longer; it bounds what a wrong server can make us keep.
const HEAD_LIMIT_BYTES: usize = 16 * 1024;

/// A server that sends nothing for so long has failed.
const STALL_LIMIT: Duration = Duration::from_secs(5);

/// As many digits tell requests apart that must be distinct.
const NUMBER_DIGITS: usize = 12;

/// The longest sleep, so that Ctrl-C and the end of the window are noticed.
const WAIT_LIMIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// One file on one server.
pub(crate) struct Target<'a> {
    /// Where the server listens.
    pub(crate) address: SocketAddr,
    /// The server's process, whose CPU time is read.
    pub(crate) pid: u32,
    /// The path to ask for, with its leading slash.
    pub(crate) path: &'a str,
    /// The file's bytes.
    pub(crate) expected: &'a [u8],
}

/// How hard and how long.
#[derive(Clone, Copy)]
pub(crate) struct Timing {
    /// Keep-alive connections, each with one request under way.
    pub(crate) connections: usize,
    /// Load before the measurement begins.
    pub(crate) warm_up: Duration,
    /// The measurement.
    pub(crate) window: Duration,
    /// Whether no two requests are the same.
    pub(crate) distinct: bool,
}

/// What one measurement showed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// Length of the window.
    pub(crate) seconds: f64,
    /// Answers, fractions of those under way at either end included.
    pub(crate) requests: f64,
    /// Bytes of body in them.
    pub(crate) body_bytes: f64,
    /// CPU time of the server's process.
    pub(crate) server_cpu_seconds: f64,
    /// Time in which any CPU was busy, with whatever.
    pub(crate) machine_busy_seconds: f64,
    /// CPU time of this load generator.
    pub(crate) load_cpu_seconds: f64,
}

/// Puts `target` under load and measures it.
///
/// # Errors
///
/// [`Error::WrongAnswer`] if an answer is not the file or stops half-way; [`Error::Interrupted`].
pub(crate) fn run(target: &Target<'_>, timing: Timing) -> Result<Sample, Error> {
    let mut load = Load::connect(target, timing)?;
    let start = Instant::now();
    load.run_until(start + timing.warm_up)?;
    let before = Snapshot::take(target.pid, load.received_bytes)?;
    load.run_until(before.at + timing.window)?;
    let after = Snapshot::take(target.pid, load.received_bytes)?;
    let usage = after.since(&before);
    let requests = usage.received_bytes as f64 / load.answer_bytes as f64;
    Ok(Sample {
        seconds: usage.seconds,
        requests,
        body_bytes: requests * target.expected.len() as f64,
        server_cpu_seconds: usage.process_cpu_seconds,
        machine_busy_seconds: usage.machine_busy_seconds,
        load_cpu_seconds: usage.own_cpu_seconds,
    })
}

/// Opens a connection, sends one request, and compares the whole answer with the file.
///
/// Returns the connection, idle, and the length of the answer with its head.
pub(crate) fn open_checked(
    target: &Target<'_>,
    request: &[u8],
    buffer: &mut [u8],
) -> Result<(TcpStream, Framing), Error> {
    let mut stream = TcpStream::connect(target.address)
        .context(|| format!("cannot connect to {}", target.address))?;
    stream
        .set_read_timeout(Some(STALL_LIMIT))
        .and_then(|()| stream.set_nodelay(true))
        .and_then(|()| stream.write_all(request))
        .context(|| format!("cannot ask {}", target.address))?;
    let (head_bytes, mut have) = receive_head(&mut stream, buffer, target.expected.len())?;
    let mut body = target.expected;
    let mut from = head_bytes;
    loop {
        let got = &buffer[from..have];
        let Some(rest) = body.strip_prefix(got) else {
            return Err(Error::WrongAnswer(format!(
                "{} is not the file's bytes, at {} or after",
                target.path,
                target.expected.len() - body.len()
            )));
        };
        body = rest;
        if body.is_empty() {
            break;
        }
        from = 0;
        have = receive(&mut stream, buffer)?;
    }
    let answer_bytes = head_bytes + target.expected.len();
    Ok((
        stream,
        Framing {
            head_bytes,
            answer_bytes,
        },
    ))
}

/// Where the parts of an answer lie; it is the same for all answers of one server about one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Framing {
    head_bytes: usize,
    answer_bytes: usize,
}

/// The request for a path.
pub(crate) fn request(target: &Target<'_>) -> Vec<u8> {
    format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\n\r\n",
        target.path, target.address
    )
    .into_bytes()
}

/// As [`request`], with a query that is to be a number, and where that lies.
fn numbered_request(target: &Target<'_>) -> (Vec<u8>, Range<usize>) {
    let path = format!("{}?{:0digits$}", target.path, 0, digits = NUMBER_DIGITS);
    let end = "GET ".len() + path.len();
    let numbered = Target {
        path: &path,
        ..*target
    };
    (request(&numbered), end - NUMBER_DIGITS..end)
}

/// Reads until the head is whole; returns its length and how much of the buffer is filled.
fn receive_head(
    stream: &mut TcpStream,
    buffer: &mut [u8],
    body_bytes: usize,
) -> Result<(usize, usize), Error> {
    let mut have = 0;
    loop {
        have += receive(stream, &mut buffer[have..])?;
        if let Some(head) = answer::parse_head(&buffer[..have])? {
            if head.content_length != body_bytes as u64 {
                return Err(Error::WrongAnswer(format!(
                    "Content-Length {} for a file of {body_bytes} bytes",
                    head.content_length
                )));
            }
            return Ok((head.length, have));
        }
        if have > HEAD_LIMIT_BYTES {
            return Err(Error::WrongAnswer("a head without an end".into()));
        }
    }
}

fn receive(stream: &mut TcpStream, buffer: &mut [u8]) -> Result<usize, Error> {
    match stream.read(buffer) {
        Ok(0) => Err(closed()),
        Ok(count) => Ok(count),
        Err(source) => Err(broken(source)),
    }
}

fn closed() -> Error {
    Error::WrongAnswer("the server closed a keep-alive connection".into())
}

/// What an I/O error on a connection means: a reset is a close with a request unread.
fn broken(source: io::Error) -> Error {
    match source.kind() {
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => closed(),
        _ => Error::Io {
            what: "a connection failed".into(),
            source,
        },
    }
}

/// A connection with a request under way, and what is still owed of its answer.
struct Connection {
    stream: TcpStream,
    left_bytes: usize,
}

/// Why [`Connection::take_in`] came back.
enum Took {
    /// The answer is whole.
    Whole,
    /// The socket is empty for now.
    Drained,
}

struct Load {
    epoll: OwnedFd,
    connections: Vec<Connection>,
    request: Vec<u8>,
    /// Where in the request its number lies, if each has one of its own.
    number_at: Option<Range<usize>>,
    number: u64,
    head_bytes: usize,
    answer_bytes: usize,
    buffer: Vec<u8>,
    received_bytes: u64,
}

impl Load {
    /// Opens and checks the connections, then sends the first request on each.
    fn connect(target: &Target<'_>, timing: Timing) -> Result<Self, Error> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .context(|| "cannot create an epoll instance".into())?;
        let (request, number_at) = match timing.distinct {
            true => {
                let (request, number_at) = numbered_request(target);
                (request, Some(number_at))
            }
            false => (request(target), None),
        };
        let count = timing.connections;
        let mut buffer = vec![0; RECEIVE_BYTES];
        let mut framing = None;
        let mut connections = Vec::with_capacity(count);
        for index in 0..count {
            interrupt::check()?;
            let (stream, this) = open_checked(target, &request, &mut buffer)?;
            if *framing.get_or_insert(this) != this {
                return Err(Error::WrongAnswer(
                    "two heads of different length for one file".into(),
                ));
            }
            stream
                .set_nonblocking(true)
                .context(|| "cannot make a socket non-blocking".into())?;
            epoll::add(
                &epoll,
                &stream,
                epoll::EventData::new_u64(index as u64),
                epoll::EventFlags::IN | epoll::EventFlags::ET,
            )
            .context(|| "cannot watch a socket".into())?;
            connections.push(Connection {
                stream,
                left_bytes: this.answer_bytes,
            });
        }
        let framing = framing.ok_or_else(|| Error::Usage("no connections to load with".into()))?;
        let mut load = Self {
            epoll,
            connections,
            request,
            number_at,
            number: 0,
            head_bytes: framing.head_bytes,
            answer_bytes: framing.answer_bytes,
            buffer,
            received_bytes: 0,
        };
        for index in 0..load.connections.len() {
            load.ask(index)?;
        }
        Ok(load)
    }

    /// Sends the next request on a connection.
    fn ask(&mut self, index: usize) -> Result<(), Error> {
        if let Some(number_at) = &self.number_at {
            self.number += 1;
            let mut left = self.number;
            for digit in self.request[number_at.clone()].iter_mut().rev() {
                *digit = b'0' + (left % 10) as u8;
                left /= 10;
            }
        }
        send_request(&self.connections[index].stream, &self.request)
    }

    /// Keeps the load up until `end`.
    fn run_until(&mut self, end: Instant) -> Result<(), Error> {
        let mut events = Vec::with_capacity(self.connections.len());
        let mut last_progress = Instant::now();
        loop {
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&WAIT_LIMIT)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context(|| "cannot wait for answers".into()),
            }
            let now = Instant::now();
            if !events.is_empty() {
                last_progress = now;
            } else if now > last_progress + STALL_LIMIT {
                return Err(Error::WrongAnswer("the server stopped answering".into()));
            }
            for event in events.drain(..) {
                self.on_readable(event.data.u64() as usize)?;
            }
            interrupt::check()?;
            if now >= end {
                return Ok(());
            }
        }
    }

    /// Takes in what has come on one connection; after a whole answer the next request goes out.
    fn on_readable(&mut self, index: usize) -> Result<(), Error> {
        let connection = &mut self.connections[index];
        let before = connection.left_bytes;
        let took = connection.take_in(&mut self.buffer, self.head_bytes, self.answer_bytes)?;
        self.received_bytes += (before - connection.left_bytes) as u64;
        if matches!(took, Took::Whole) {
            connection.left_bytes = self.answer_bytes;
            self.ask(index)?;
        }
        Ok(())
    }
}

impl Connection {
    fn take_in(
        &mut self,
        buffer: &mut [u8],
        head_bytes: usize,
        answer_bytes: usize,
    ) -> Result<Took, Error> {
        let discards = answer_bytes - head_bytes >= DISCARD_FROM_BYTES;
        loop {
            let begins = self.left_bytes == answer_bytes;
            let (asked, flags) = match (discards, begins) {
                (true, true) => (head_bytes, RecvFlags::empty()),
                (true, false) => (self.left_bytes.min(buffer.len()), RecvFlags::TRUNC),
                (false, _) => (self.left_bytes.min(buffer.len()), RecvFlags::empty()),
            };
            let got = match rustix::net::recv(&self.stream, &mut buffer[..asked], flags) {
                Ok((_, 0)) => return Err(closed()),
                Ok((_, got)) => got,
                Err(Errno::AGAIN) => return Ok(Took::Drained),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(broken(error.into())),
            };
            if begins {
                check_head(&buffer[..got], head_bytes)?;
            }
            self.left_bytes -= got;
            if self.left_bytes == 0 {
                return Ok(Took::Whole);
            }
            // A short receive has emptied the socket: edge-triggered epoll tells of the rest.
            if got < asked {
                return Ok(Took::Drained);
            }
        }
    }
}

/// Sees to it that an answer begins and that its head ends where the first one's did.
///
/// What came of the head in one piece is looked at. A head that comes in pieces escapes the check
/// of its end, but then a wrong length shows at the beginning of the next answer.
fn check_head(bytes: &[u8], head_bytes: usize) -> Result<(), Error> {
    let status = bytes.len().min(STATUS_OK.len());
    let status_fits = bytes[..status] == STATUS_OK[..status];
    let end_fits = bytes.len() < head_bytes || bytes[..head_bytes].ends_with(EMPTY_LINE);
    if status_fits && end_fits {
        Ok(())
    } else {
        Err(Error::WrongAnswer(
            "a later answer is not framed like the first one".into(),
        ))
    }
}

fn send_request(stream: &TcpStream, request: &[u8]) -> Result<(), Error> {
    match rustix::net::send(stream, request, SendFlags::NOSIGNAL) {
        Ok(sent) if sent == request.len() => Ok(()),
        Ok(_) | Err(Errno::AGAIN) => Err(Error::WrongAnswer(
            "the server takes no requests in: its receive queue is full".into(),
        )),
        Err(error) => Err(broken(error.into())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";

    #[test]
    fn a_later_head_must_look_like_the_first() {
        assert!(check_head(HEAD, HEAD.len()).is_ok());
        assert!(check_head(&HEAD[..7], HEAD.len()).is_ok());
        assert!(check_head(HEAD, HEAD.len() - 1).is_err());
        assert!(check_head(b"hello HTTP/1.1 200 OK", HEAD.len()).is_err());
    }

    /// Serves `answers` in turn on one connection, one for each request.
    fn scripted(answers: Vec<Vec<u8>>) -> (SocketAddr, thread::JoinHandle<()>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 512];
            for answer in answers {
                if stream.read(&mut request).unwrap() == 0 {
                    return;
                }
                stream.write_all(&answer).unwrap();
            }
        });
        (address, server)
    }

    fn try_load(answers: Vec<Vec<u8>>) -> Result<Sample, Error> {
        let (address, server) = scripted(answers);
        let target = Target {
            address,
            pid: std::process::id(),
            path: "/file",
            expected: b"hello",
        };
        let timing = Timing {
            connections: 1,
            warm_up: Duration::ZERO,
            window: Duration::from_millis(200),
            distinct: false,
        };
        let result = run(&target, timing);
        server.join().unwrap();
        result
    }

    fn whole(body: &[u8]) -> Vec<u8> {
        [HEAD, body].concat()
    }

    #[test]
    fn wrong_bytes_and_early_ends_are_not_counted_as_answers() {
        let message = |answers| match try_load(answers) {
            Err(Error::WrongAnswer(message)) => message,
            other => panic!("{other:?}"),
        };
        assert!(message(vec![whole(b"hellO")]).contains("not the file's bytes"));
        assert!(message(vec![whole(b"hello!")]).contains("not the file's bytes"));
        assert!(message(vec![whole(b"hell")]).contains("closed"));
        let long = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello".to_vec();
        assert!(message(vec![long]).contains("Content-Length 6"));
        let later = b"HTTP/1.1 404 No\r\nContent-Length: 5\r\n\r\nhello".to_vec();
        assert!(message(vec![whole(b"hello"), later]).contains("not framed"));
        assert!(message(vec![whole(b"hello"), whole(b"hello")]).contains("closed"));
    }

    #[test]
    fn answers_are_counted_and_timed() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let body = vec![7; 3 * DISCARD_FROM_BYTES];
        let mut answer =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
        answer.extend_from_slice(&body);
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 512];
            let mut answered = 0;
            let mut seen = std::collections::HashSet::new();
            while stream.read(&mut request).is_ok_and(|count| count > 0) {
                assert!(answered == 0 || seen.insert(request), "the same twice");
                if stream.write_all(&answer).is_err() {
                    break;
                }
                answered += 1;
            }
            answered
        });
        let target = Target {
            address,
            pid: std::process::id(),
            path: "/file",
            expected: &body,
        };
        let timing = Timing {
            connections: 1,
            warm_up: Duration::ZERO,
            window: Duration::from_millis(200),
            distinct: true,
        };
        let sample = run(&target, timing).unwrap();
        let answered = f64::from(server.join().unwrap());
        assert!(sample.requests > 10.0);
        // Not in the window: the check's answer, one of the warm-up, one under way at the end.
        let outside = answered - sample.requests;
        assert!((1.0..=3.0).contains(&outside), "{answered} {sample:?}");
        assert!((sample.seconds - 0.2).abs() < 0.15, "{sample:?}");
        assert_eq!(sample.body_bytes, sample.requests * body.len() as f64);
        assert!(sample.load_cpu_seconds > 0.0);
    }
}
