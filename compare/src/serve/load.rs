//! The load generator. It has several keep-alive connections. On each one, it sends a GET request,
//! reads the response, and then sends the next request. All requests are the same or, with
//! `--distinct`, each one has a different number in its query.
//!
//! The load generator has to use less CPU time than any server. Otherwise it would be the
//! bottleneck, and the run would measure the load generator. So it has one thread with
//! edge-triggered epoll, needs one send and one receive for a small response, and does not allocate
//! memory while the load runs. It discards bodies of 16 KiB and more inside the kernel
//! (`MSG_TRUNC`): copying them to user space would cost the load generator more than sending costs
//! a zero-copy server.
//!
//! A server that sends wrong responses is treated as failed. The first response on every connection
//! is compared with the file byte by byte. For every later response, the status and the position of
//! the empty line after the head are checked, as far as the first receive returns them.

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

use super::response::{self, EMPTY_LINE, STATUS_OK};
use crate::error::{Context, Error};
use crate::interrupt;
use crate::measure::Snapshot;

/// Minimum size of a body that is discarded instead of copied out.
const MIN_DISCARD_BYTES: usize = 16 * 1024;

/// Maximum size of one receive.
const RECEIVE_BYTES: usize = 1024 * 1024;

/// The maximum length of a response head. No reasonable head is longer, so a server that exceeds
/// this limit is considered faulty.
const HEAD_LIMIT_BYTES: usize = 16 * 1024;

/// A server that sends nothing for this long is considered failed.
const STALL_LIMIT: Duration = Duration::from_secs(5);

/// The number of digits in the query of each request with `--distinct`.
const NUMBER_DIGITS: usize = 12;

/// Maximum duration of one wait. Between waits, the load generator checks for Ctrl-C, for the end
/// of the measurement, and for a server that sends nothing.
const WAIT_LIMIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// A file on a running server.
pub(super) struct ServedFile<'a> {
    /// The address that the server listens on.
    pub(super) address: SocketAddr,
    /// The server's process, whose CPU time is measured.
    pub(super) pid: u32,
    /// The path to request, with the leading slash.
    pub(super) path: &'a str,
    /// The bytes of the file.
    pub(super) expected: &'a [u8],
}

/// The kind and the duration of the load.
#[derive(Clone, Copy)]
pub(super) struct LoadSettings {
    /// The number of keep-alive connections, each with one request in flight.
    pub(super) connections: usize,
    /// Duration of the load before the measurement.
    pub(super) warm_up: Duration,
    /// Duration of the measurement.
    pub(super) window: Duration,
    /// Whether every request has a different number in its query.
    pub(super) distinct: bool,
}

/// The result of one measurement.
#[derive(Debug, Clone, Copy)]
pub(super) struct LoadSample {
    /// Duration of the measurement.
    pub(super) seconds: f64,
    /// The number of responses. Of a response that was in progress when the measurement began or
    /// ended, only the fraction that arrived during the measurement counts.
    pub(super) requests: f64,
    /// The number of body bytes in these responses.
    pub(super) body_bytes: f64,
    /// CPU time of the server's process.
    pub(super) server_cpu_seconds: f64,
    /// Busy time of all CPUs together, for all processes and the kernel.
    pub(super) machine_busy_seconds: f64,
    /// CPU time of this load generator.
    pub(super) load_cpu_seconds: f64,
}

/// Puts `served` under load and measures it.
///
/// # Errors
///
/// [`Error::WrongResult`] if a response is wrong or cut short, and [`Error::Interrupted`] after
/// Ctrl-C or SIGTERM.
pub(super) fn run(served: &ServedFile<'_>, settings: LoadSettings) -> Result<LoadSample, Error> {
    let mut load = LoadGenerator::connect(served, settings)?;
    let start = Instant::now();
    load.run_until(start + settings.warm_up)?;
    let before = Snapshot::take(served.pid, load.received_bytes)?;
    load.run_until(before.at + settings.window)?;
    let after = Snapshot::take(served.pid, load.received_bytes)?;
    let usage = after.since(&before);
    let requests = usage.received_bytes as f64 / load.response_bytes as f64;
    Ok(LoadSample {
        seconds: usage.seconds,
        requests,
        body_bytes: requests * served.expected.len() as f64,
        server_cpu_seconds: usage.process_cpu_seconds,
        machine_busy_seconds: usage.machine_busy_seconds,
        load_cpu_seconds: usage.own_cpu_seconds,
    })
}

/// Opens a connection, sends one request, and compares the complete response with the file.
///
/// Returns the connection, which is now idle, and the framing of the response.
pub(super) fn open_checked(
    served: &ServedFile<'_>,
    request: &[u8],
    buffer: &mut [u8],
) -> Result<(TcpStream, Framing), Error> {
    let mut stream = TcpStream::connect(served.address)
        .context(|| format!("cannot connect to {}", served.address))?;
    stream
        .set_read_timeout(Some(STALL_LIMIT))
        .and_then(|()| stream.set_nodelay(true))
        .and_then(|()| stream.write_all(request))
        .context(|| format!("cannot send a request to {}", served.address))?;
    let (head_bytes, mut have) = receive_head(&mut stream, buffer, served.expected.len())?;
    let mut body = served.expected;
    let mut from = head_bytes;
    loop {
        let got = &buffer[from..have];
        let Some(rest) = body.strip_prefix(got) else {
            return Err(Error::WrongResult(format!(
                "{} has wrong bytes, at or after offset {}",
                served.path,
                served.expected.len() - body.len()
            )));
        };
        body = rest;
        if body.is_empty() {
            break;
        }
        from = 0;
        have = receive(&mut stream, buffer)?;
    }
    let response_bytes = head_bytes + served.expected.len();
    Ok((
        stream,
        Framing {
            head_bytes,
            response_bytes,
        },
    ))
}

/// The lengths in bytes of a response and of its head. They must be the same for all of a server's
/// responses with the same file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Framing {
    head_bytes: usize,
    response_bytes: usize,
}

/// Returns the request for a file.
pub(super) fn request(served: &ServedFile<'_>) -> Vec<u8> {
    format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\n\r\n",
        served.path, served.address
    )
    .into_bytes()
}

/// Returns a request like that of [`request`], but with a number as its query. Also returns the
/// range of bytes that the number takes up in the request.
fn numbered_request(served: &ServedFile<'_>) -> (Vec<u8>, Range<usize>) {
    let path = format!("{}?{:0digits$}", served.path, 0, digits = NUMBER_DIGITS);
    let end = "GET ".len() + path.len();
    let numbered = ServedFile {
        path: &path,
        ..*served
    };
    (request(&numbered), end - NUMBER_DIGITS..end)
}

/// Receives until the head is complete. Returns the length of the head, and the number of bytes in
/// the buffer, which may include the beginning of the body.
fn receive_head(
    stream: &mut TcpStream,
    buffer: &mut [u8],
    body_bytes: usize,
) -> Result<(usize, usize), Error> {
    let mut have = 0;
    loop {
        have += receive(stream, &mut buffer[have..])?;
        if let Some(head) = response::parse_head(&buffer[..have])? {
            if head.content_length != body_bytes as u64 {
                return Err(Error::WrongResult(format!(
                    "Content-Length {} for a file of {body_bytes} bytes",
                    head.content_length
                )));
            }
            return Ok((head.length, have));
        }
        if have > HEAD_LIMIT_BYTES {
            return Err(Error::WrongResult("the head has no end".into()));
        }
    }
}

fn receive(stream: &mut TcpStream, buffer: &mut [u8]) -> Result<usize, Error> {
    match stream.read(buffer) {
        Ok(0) => Err(closed()),
        Ok(count) => Ok(count),
        Err(source) => Err(connection_error(source)),
    }
}

fn closed() -> Error {
    Error::WrongResult("the server closed a keep-alive connection".into())
}

/// Converts an I/O error of a connection. A reset or a broken pipe means that the server has closed
/// the connection: the kernel resets a connection that is closed while a request is unread.
fn connection_error(source: io::Error) -> Error {
    match source.kind() {
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => closed(),
        _ => Error::Io {
            what: "a connection failed".into(),
            source,
        },
    }
}

/// A connection with a request in flight.
struct LoadConnection {
    stream: TcpStream,
    /// The number of bytes of the response that have not arrived yet.
    remaining_bytes: usize,
}

/// The reason why [`LoadConnection::receive_response`] returned.
enum ReceiveProgress {
    /// The response is complete.
    Complete,
    /// The socket is empty for now.
    Drained,
}

struct LoadGenerator {
    epoll: OwnedFd,
    connections: Vec<LoadConnection>,
    request: Vec<u8>,
    /// The position of the number in the request, or `None` if all requests are the same.
    number_range: Option<Range<usize>>,
    number: u64,
    head_bytes: usize,
    response_bytes: usize,
    buffer: Vec<u8>,
    received_bytes: u64,
}

impl LoadGenerator {
    /// Opens and checks the connections, then sends the first request on each.
    fn connect(served: &ServedFile<'_>, settings: LoadSettings) -> Result<Self, Error> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .context(|| "cannot create an epoll instance".into())?;
        let (request, number_range) = match settings.distinct {
            true => {
                let (request, number_range) = numbered_request(served);
                (request, Some(number_range))
            }
            false => (request(served), None),
        };
        let count = settings.connections;
        let mut buffer = vec![0; RECEIVE_BYTES];
        let mut framing = None;
        let mut connections = Vec::with_capacity(count);
        for index in 0..count {
            interrupt::check()?;
            let (stream, this) = open_checked(served, &request, &mut buffer)?;
            if *framing.get_or_insert(this) != this {
                return Err(Error::WrongResult(
                    "two responses for one file have heads of different lengths".into(),
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
            connections.push(LoadConnection {
                stream,
                remaining_bytes: this.response_bytes,
            });
        }
        let framing =
            framing.ok_or_else(|| Error::Usage("at least one connection is needed".into()))?;
        let mut load = Self {
            epoll,
            connections,
            request,
            number_range,
            number: 0,
            head_bytes: framing.head_bytes,
            response_bytes: framing.response_bytes,
            buffer,
            received_bytes: 0,
        };
        for index in 0..load.connections.len() {
            load.send_next_request(index)?;
        }
        Ok(load)
    }

    /// Sends the next request on a connection.
    fn send_next_request(&mut self, index: usize) -> Result<(), Error> {
        if let Some(number_range) = &self.number_range {
            self.number += 1;
            let mut rest = self.number;
            for digit in self.request[number_range.clone()].iter_mut().rev() {
                *digit = b'0' + (rest % 10) as u8;
                rest /= 10;
            }
        }
        send_request(&self.connections[index].stream, &self.request)
    }

    /// Keeps the load running until the time `end`.
    fn run_until(&mut self, end: Instant) -> Result<(), Error> {
        let mut events = Vec::with_capacity(self.connections.len());
        let mut last_progress = Instant::now();
        loop {
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&WAIT_LIMIT)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context(|| "cannot wait for responses".into()),
            }
            let now = Instant::now();
            if !events.is_empty() {
                last_progress = now;
            } else if now > last_progress + STALL_LIMIT {
                return Err(Error::WrongResult("the server stopped responding".into()));
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

    /// Receives what has arrived on one connection. Once the response is complete, sends the next
    /// request.
    fn on_readable(&mut self, index: usize) -> Result<(), Error> {
        let connection = &mut self.connections[index];
        let before = connection.remaining_bytes;
        let progress =
            connection.receive_response(&mut self.buffer, self.head_bytes, self.response_bytes)?;
        self.received_bytes += (before - connection.remaining_bytes) as u64;
        if matches!(progress, ReceiveProgress::Complete) {
            connection.remaining_bytes = self.response_bytes;
            self.send_next_request(index)?;
        }
        Ok(())
    }
}

impl LoadConnection {
    /// Receives until the response is complete or the socket is empty.
    fn receive_response(
        &mut self,
        buffer: &mut [u8],
        head_bytes: usize,
        response_bytes: usize,
    ) -> Result<ReceiveProgress, Error> {
        let discards = response_bytes - head_bytes >= MIN_DISCARD_BYTES;
        loop {
            let is_start = self.remaining_bytes == response_bytes;
            let (wanted, flags) = match (discards, is_start) {
                (true, true) => (head_bytes, RecvFlags::empty()),
                (true, false) => (self.remaining_bytes.min(buffer.len()), RecvFlags::TRUNC),
                (false, _) => (self.remaining_bytes.min(buffer.len()), RecvFlags::empty()),
            };
            let got = match rustix::net::recv(&self.stream, &mut buffer[..wanted], flags) {
                Ok((_, 0)) => return Err(closed()),
                Ok((_, got)) => got,
                Err(Errno::AGAIN) => return Ok(ReceiveProgress::Drained),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(connection_error(error.into())),
            };
            if is_start {
                check_head(&buffer[..got], head_bytes)?;
            }
            self.remaining_bytes -= got;
            if self.remaining_bytes == 0 {
                return Ok(ReceiveProgress::Complete);
            }
            // Return without receiving again. The socket had fewer bytes than wanted, so it is
            // empty now, and edge-triggered epoll will report the next bytes when they arrive.
            if got < wanted {
                return Ok(ReceiveProgress::Drained);
            }
        }
    }
}

/// Checks that a response begins with status 200, and that its head is `head_bytes` long, like the
/// head of the first response.
///
/// `bytes` comes from a single `recv`, and may hold only part of the head. The length then goes
/// unchecked, which is harmless. If the head is too long, the next response does not start where
/// expected, and fails its own check. If it is too short, the connection waits for bytes that never
/// arrive and makes no more requests, so a wrong head can never improve the server's figures.
fn check_head(bytes: &[u8], head_bytes: usize) -> Result<(), Error> {
    let status = bytes.len().min(STATUS_OK.len());
    let has_status = bytes[..status] == STATUS_OK[..status];
    let has_end = bytes.len() < head_bytes || bytes[..head_bytes].ends_with(EMPTY_LINE);
    if has_status && has_end {
        Ok(())
    } else {
        Err(Error::WrongResult(
            "a later response is not framed like the first one".into(),
        ))
    }
}

fn send_request(stream: &TcpStream, request: &[u8]) -> Result<(), Error> {
    match rustix::net::send(stream, request, SendFlags::NOSIGNAL) {
        Ok(sent) if sent == request.len() => Ok(()),
        Ok(_) | Err(Errno::AGAIN) => Err(Error::WrongResult(
            "the server reads no requests: its receive queue is full".into(),
        )),
        Err(error) => Err(connection_error(error.into())),
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

    /// Starts a server that accepts one connection, and sends the next one of `responses` for each
    /// request. Returns the server's address and thread.
    fn scripted(responses: Vec<Vec<u8>>) -> (SocketAddr, thread::JoinHandle<()>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 512];
            for response in responses {
                if stream.read(&mut request).unwrap() == 0 {
                    return;
                }
                stream.write_all(&response).unwrap();
            }
        });
        (address, server)
    }

    fn try_load(responses: Vec<Vec<u8>>) -> Result<LoadSample, Error> {
        let (address, server) = scripted(responses);
        let served = ServedFile {
            address,
            pid: std::process::id(),
            path: "/file",
            expected: b"hello",
        };
        let settings = LoadSettings {
            connections: 1,
            warm_up: Duration::ZERO,
            window: Duration::from_millis(200),
            distinct: false,
        };
        let result = run(&served, settings);
        server.join().unwrap();
        result
    }

    fn complete(body: &[u8]) -> Vec<u8> {
        [HEAD, body].concat()
    }

    #[test]
    fn wrong_bytes_and_early_ends_are_errors() {
        let message = |responses| match try_load(responses) {
            Err(Error::WrongResult(message)) => message,
            other => panic!("{other:?}"),
        };
        assert!(message(vec![complete(b"hellO")]).contains("wrong bytes"));
        assert!(message(vec![complete(b"hello!")]).contains("wrong bytes"));
        assert!(message(vec![complete(b"hell")]).contains("closed"));
        let long = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello".to_vec();
        assert!(message(vec![long]).contains("Content-Length 6"));
        let later = b"HTTP/1.1 404 No\r\nContent-Length: 5\r\n\r\nhello".to_vec();
        assert!(message(vec![complete(b"hello"), later]).contains("not framed"));
        assert!(message(vec![complete(b"hello"), complete(b"hello")]).contains("closed"));
    }

    #[test]
    fn responses_are_counted_and_timed() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let body = vec![7; 3 * MIN_DISCARD_BYTES];
        let mut response =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
        response.extend_from_slice(&body);
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 512];
            let mut responses = 0;
            let mut seen = std::collections::HashSet::new();
            while stream.read(&mut request).is_ok_and(|count| count > 0) {
                assert!(
                    responses == 0 || seen.insert(request),
                    "the same request twice"
                );
                if stream.write_all(&response).is_err() {
                    break;
                }
                responses += 1;
            }
            responses
        });
        let served = ServedFile {
            address,
            pid: std::process::id(),
            path: "/file",
            expected: &body,
        };
        let settings = LoadSettings {
            connections: 1,
            warm_up: Duration::ZERO,
            window: Duration::from_millis(200),
            distinct: true,
        };
        let sample = run(&served, settings).unwrap();
        let responses = f64::from(server.join().unwrap());
        assert!(sample.requests > 10.0);
        // Up to three responses are outside the measurement: the one that is compared with the
        // file, one that arrives during the warm-up, and one that arrives after the end.
        let outside = responses - sample.requests;
        assert!((1.0..=3.0).contains(&outside), "{responses} {sample:?}");
        assert!((sample.seconds - 0.2).abs() < 0.15, "{sample:?}");
        assert_eq!(sample.body_bytes, sample.requests * body.len() as f64);
        assert!(sample.load_cpu_seconds > 0.0);
    }
}
