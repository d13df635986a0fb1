//! A minimal server that sends files with `sendfile`. It does hardly anything else, so it shows
//! about how little CPU time serving a file with `sendfile` can take.
//!
//! All files are opened, and all response heads are built, at the start. The server uses only the
//! path of a request, and checks only that the request ends with an empty line. To respond, the
//! server sends the head with `MSG_MORE`, and then calls `sendfile` until the whole file is sent.
//! It has one thread, with edge-triggered epoll.

use std::collections::HashMap;
use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::time::Timespec;

use crate::error::{Context, Error};
use crate::machine;
use crate::serve::contender::{FileServer, Launch, ServerFlags, ServerSetup, own_subcommand};
use crate::serve::response::EMPTY_LINE;

pub(super) const CONTENDER: FileServer = FileServer {
    name: "plain",
    about: "a minimal sendfile loop (epoll, prepared heads, `send(MSG_MORE)` then `sendfile`, no \
            HTTP parsing), which shows about how little serving with sendfile can cost and is not \
            meant to be used",
    ours: false,
    prepare,
};

/// The event data of the listener in epoll. The event data of a connection is its descriptor
/// number.
const LISTENER_EVENT: u64 = u64::MAX;

/// The maximum length of a request. The requests of our load generator are shorter.
const REQUEST_LIMIT_BYTES: usize = 8 * 1024;

/// The time limit for waiting for events while some connections have yielded. It is 0, because
/// these connections must get their next turn without waiting.
const NO_WAIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// The maximum number of body bytes that a connection may send before the other connections have
/// their turn.
///
/// Without such a limit, the server keeps sending on one connection for as long as the client keeps
/// receiving, and wakes the client for every small piece. With turns, the bytes of several
/// connections are waiting at the same time, so the client finds more of them each time it is
/// woken, and the server needs to wake it less often. On loopback this saves about a tenth of the
/// server's CPU time for a file of 16 MiB.
const MAX_TURN_BYTES: u64 = 2 * 1024 * 1024;

fn prepare(setup: &ServerSetup<'_>) -> Result<Launch, Error> {
    Ok(Launch {
        command: own_subcommand("plain-server", setup)?,
        version: machine::own_version(),
        configuration: None,
    })
}

/// Runs the hidden subcommand `plain-server`.
pub(crate) fn serve(flags: &ServerFlags) -> Result<(), Error> {
    let responses = open_all(flags)?;
    let listener = TcpListener::bind(flags.listen)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .context(|| format!("cannot listen on {}", flags.listen))?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
        .context(|| "cannot create an epoll instance".into())?;
    epoll::add(
        &epoll,
        &listener,
        epoll::EventData::new_u64(LISTENER_EVENT),
        epoll::EventFlags::IN,
    )
    .context(|| "cannot watch the listener".into())?;
    EventLoop {
        epoll,
        listener,
        responses,
        connections: Vec::new(),
        yielded: Vec::new(),
        buffer: vec![0; REQUEST_LIMIT_BYTES],
    }
    .run()
}

/// A file, and the response head that is sent before the file.
struct PreparedResponse {
    head: Vec<u8>,
    file: File,
    length: u64,
}

/// Opens every regular file in the directory. The keys of the map are the paths in the requests.
fn open_all(flags: &ServerFlags) -> Result<HashMap<Vec<u8>, PreparedResponse>, Error> {
    let directory = &flags.dir;
    let entries =
        fs::read_dir(directory).context(|| format!("cannot read {}", directory.display()))?;
    let mut responses = HashMap::new();
    for entry in entries {
        let entry = entry.context(|| format!("cannot read {}", directory.display()))?;
        let file = File::open(entry.path())
            .context(|| format!("cannot open {}", entry.path().display()))?;
        let metadata = file
            .metadata()
            .context(|| format!("cannot inspect {}", entry.path().display()))?;
        if !metadata.is_file() {
            continue;
        }
        let length = metadata.len();
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n\
             Content-Length: {length}\r\n\r\n"
        );
        let mut path = b"/".to_vec();
        path.extend_from_slice(entry.file_name().as_encoded_bytes());
        responses.insert(
            path,
            PreparedResponse {
                head: head.into_bytes(),
                file,
                length,
            },
        );
    }
    Ok(responses)
}

/// A connection, and how much of its current response has been sent.
struct PlainConnection {
    stream: TcpStream,
    path: Vec<u8>,
    head_sent: usize,
    body_sent: u64,
    is_responding: bool,
    has_yielded: bool,
}

/// What to do with a connection after its turn.
#[derive(PartialEq, Eq)]
enum NextAction {
    /// Continue when the socket is ready again.
    Wait,
    /// Continue after the other connections have had their turn, without waiting for an event: the
    /// socket may still be ready, and edge-triggered epoll would not report that again.
    Yield,
    /// Close the connection.
    Close,
}

/// The reason why a successful [`PlainConnection::send`] returned.
enum SendEnd {
    /// The response is complete.
    Response,
    /// The turn is over.
    Turn,
}

struct EventLoop {
    epoll: OwnedFd,
    listener: TcpListener,
    responses: HashMap<Vec<u8>, PreparedResponse>,
    connections: Vec<Option<PlainConnection>>,
    yielded: Vec<usize>,
    buffer: Vec<u8>,
}

impl EventLoop {
    fn run(mut self) -> Result<(), Error> {
        let mut events = Vec::with_capacity(256);
        let mut turns = Vec::new();
        loop {
            let limit = (!self.yielded.is_empty()).then_some(&NO_WAIT);
            match epoll::wait(&self.epoll, spare_capacity(&mut events), limit) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context(|| "cannot wait".into()),
            }
            for event in events.drain(..) {
                let data = event.data.u64();
                if data == LISTENER_EVENT {
                    self.accept()?;
                } else if !self.has_yielded(data as usize) {
                    self.take_turn(data as usize);
                }
            }
            std::mem::swap(&mut turns, &mut self.yielded);
            for slot in turns.drain(..) {
                self.take_turn(slot);
            }
        }
    }

    fn accept(&mut self) -> Result<(), Error> {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context(|| "cannot accept".into()),
            };
            let slot = stream.as_raw_fd() as usize;
            let all = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
            stream
                .set_nonblocking(true)
                .and_then(|()| stream.set_nodelay(true))
                .and_then(|()| {
                    let data = epoll::EventData::new_u64(slot as u64);
                    Ok(epoll::add(&self.epoll, &stream, data, all)?)
                })
                .context(|| "cannot watch a connection".into())?;
            if self.connections.len() <= slot {
                self.connections.resize_with(slot + 1, || None);
            }
            self.connections[slot] = Some(PlainConnection {
                stream,
                path: Vec::new(),
                head_sent: 0,
                body_sent: 0,
                is_responding: false,
                has_yielded: false,
            });
        }
    }

    /// Whether the connection has yielded, and so will get its next turn even without an event.
    fn has_yielded(&self, slot: usize) -> bool {
        let connection = self.connections.get(slot).and_then(Option::as_ref);
        connection.is_some_and(|connection| connection.has_yielded)
    }

    fn take_turn(&mut self, slot: usize) {
        let Some(connection) = self.connections.get_mut(slot).and_then(Option::as_mut) else {
            return;
        };
        match connection.take_turn(&self.responses, &mut self.buffer) {
            NextAction::Wait => {}
            NextAction::Yield => {
                connection.has_yielded = true;
                self.yielded.push(slot);
            }
            NextAction::Close => self.connections[slot] = None,
        }
    }
}

impl PlainConnection {
    /// Reads the next request, unless a response is in progress. Then sends the response until it
    /// is complete, the socket would block, or the turn ends.
    fn take_turn(
        &mut self,
        responses: &HashMap<Vec<u8>, PreparedResponse>,
        buffer: &mut [u8],
    ) -> NextAction {
        self.has_yielded = false;
        if !self.is_responding {
            match rustix::net::recv(&self.stream, &mut *buffer, RecvFlags::empty()) {
                Ok((_, got)) if got > 0 => match path_of(&buffer[..got]) {
                    Some(path) => {
                        self.path.clear();
                        self.path.extend_from_slice(path);
                    }
                    None => return NextAction::Close,
                },
                Err(Errno::AGAIN | Errno::INTR) => return NextAction::Wait,
                Ok(_) | Err(_) => return NextAction::Close,
            }
            (self.head_sent, self.body_sent) = (0, 0);
            self.is_responding = true;
        }
        let Some(response) = responses.get(&self.path) else {
            return NextAction::Close;
        };
        match self.send(response) {
            // Wait for an event instead of trying to receive again: the attempt would usually fail.
            // Our load generator sends the next request only after it has received this response,
            // and epoll reports the request when it arrives.
            Ok(SendEnd::Response) => {
                self.is_responding = false;
                NextAction::Wait
            }
            Ok(SendEnd::Turn) => NextAction::Yield,
            Err(Errno::AGAIN) => NextAction::Wait,
            Err(_) => NextAction::Close,
        }
    }

    fn send(&mut self, response: &PreparedResponse) -> Result<SendEnd, Errno> {
        while self.head_sent < response.head.len() {
            let rest = &response.head[self.head_sent..];
            let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
            self.head_sent += rustix::net::send(&self.stream, rest, flags)?;
        }
        let turn_end = response.length.min(self.body_sent + MAX_TURN_BYTES);
        while self.body_sent < turn_end {
            let left = (turn_end - self.body_sent) as usize;
            let offset = Some(&mut self.body_sent);
            if rustix::fs::sendfile(&self.stream, &response.file, offset, left)? == 0 {
                // The file has become shorter, so the response cannot be completed.
                return Err(Errno::IO);
            }
        }
        if self.body_sent == response.length {
            Ok(SendEnd::Response)
        } else {
            Ok(SendEnd::Turn)
        }
    }
}

/// Returns the path of a request, without its query. Returns `None` unless `request` ends with an
/// empty line: a request must arrive as a whole and without further requests, which is the case
/// with our load generator.
fn path_of(request: &[u8]) -> Option<&[u8]> {
    if !request.ends_with(EMPTY_LINE) {
        return None;
    }
    let target = request.split(|&byte| byte == b' ').nth(1)?;
    target.split(|&byte| byte == b'?').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_the_second_word_of_a_complete_request() {
        let request = b"GET /1k.bin HTTP/1.1\r\nHost: x\r\n\r\n";
        assert_eq!(path_of(request), Some(&b"/1k.bin"[..]));
        let with_query = b"GET /1k.bin?12 HTTP/1.1\r\nHost: x\r\n\r\n";
        assert_eq!(path_of(with_query), Some(&b"/1k.bin"[..]));
        assert_eq!(path_of(&request[..request.len() - 1]), None);
        assert_eq!(path_of(b"\r\n\r\n"), None);
    }
}
