//! A minimal server that sends files with `sendfile`. It does hardly anything else, so it shows
//! about how little CPU time serving a file with `sendfile` can take.
//!
//! A file is opened, and its response head is built, when the file is first requested. Later
//! requests use both without looking at the file system again. The server uses only the path of a
//! request, and checks only that the request ends with an empty line. To respond, the server sends
//! the head with `MSG_MORE`, and then calls `sendfile` until the whole file is sent.
//! It has one thread, with edge-triggered epoll.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::time::Timespec;

use crate::error::{Context, Error};
use crate::machine;
use crate::process::Launch;
use crate::serve::contender::{self, FileServer, ServerFlags, ServerSetup, own_subcommand};
use crate::serve::response::EMPTY_LINE;

pub(super) const CONTENDER: FileServer = FileServer {
    name: "plain",
    about: "a minimal sendfile loop (epoll, prepared heads, `send(MSG_MORE)` then `sendfile`, no \
            HTTP parsing), which shows about how little serving with sendfile can cost and is not \
            meant to be used",
    ours: false,
    variant_of: None,
    takes_part: contender::always,
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
        output: None,
    })
}

/// Runs the hidden subcommand `plain-server`.
pub(crate) fn serve(flags: &ServerFlags) -> Result<(), Error> {
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
        responses: PreparedResponses::new(flags.dir.clone()),
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

/// The open files, by the path in the request.
struct PreparedResponses {
    directory: PathBuf,
    by_path: HashMap<Vec<u8>, Rc<PreparedResponse>>,
    /// The paths in the order in which their files were opened.
    opened: VecDeque<Vec<u8>>,
}

impl PreparedResponses {
    fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            by_path: HashMap::new(),
            opened: VecDeque::new(),
        }
    }

    /// Returns the response to a request for `path`, which begins with a slash. Returns `None` if
    /// there is no such file.
    fn get(&mut self, path: &[u8]) -> Option<Rc<PreparedResponse>> {
        if let Some(response) = self.by_path.get(path) {
            return Some(Rc::clone(response));
        }
        let response = Rc::new(self.open(path)?);
        // Close the file that was opened first if there are too many. A file that is often
        // requested is soon opened again, so the simplest order costs little.
        if self.opened.len() >= contender::OPEN_FILES as usize
            && let Some(oldest) = self.opened.pop_front()
        {
            self.by_path.remove(&oldest);
        }
        self.opened.push_back(path.to_vec());
        self.by_path.insert(path.to_vec(), Rc::clone(&response));
        Some(response)
    }

    fn open(&self, path: &[u8]) -> Option<PreparedResponse> {
        let relative = Path::new(OsStr::from_bytes(path.strip_prefix(b"/")?));
        let is_beneath = |component| matches!(component, Component::Normal(_));
        if !relative.components().all(is_beneath) {
            return None;
        }
        let file = File::open(self.directory.join(relative)).ok()?;
        let metadata = file.metadata().ok().filter(|metadata| metadata.is_file())?;
        let length = metadata.len();
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n\
             Content-Length: {length}\r\n\r\n"
        );
        Some(PreparedResponse {
            head: head.into_bytes(),
            file,
            length,
        })
    }
}

/// A connection, and how much of its current response has been sent.
struct PlainConnection {
    stream: TcpStream,
    /// The response in progress.
    response: Option<Rc<PreparedResponse>>,
    head_sent: usize,
    body_sent: u64,
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
    responses: PreparedResponses,
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
                response: None,
                head_sent: 0,
                body_sent: 0,
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
        match connection.take_turn(&mut self.responses, &mut self.buffer) {
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
    fn take_turn(&mut self, responses: &mut PreparedResponses, buffer: &mut [u8]) -> NextAction {
        self.has_yielded = false;
        let response = match self.response.take() {
            Some(response) => response,
            None => {
                let path = match rustix::net::recv(&self.stream, &mut *buffer, RecvFlags::empty()) {
                    Ok((_, got)) if got > 0 => path_of(&buffer[..got]),
                    Err(Errno::AGAIN | Errno::INTR) => return NextAction::Wait,
                    Ok(_) | Err(_) => None,
                };
                let Some(response) = path.and_then(|path| responses.get(path)) else {
                    return NextAction::Close;
                };
                (self.head_sent, self.body_sent) = (0, 0);
                response
            }
        };
        let action = match self.send(&response) {
            // Wait for an event instead of trying to receive again: the attempt would usually fail.
            // Our load generator sends the next request only after it has received this response,
            // and epoll reports the request when it arrives.
            Ok(SendEnd::Response) => return NextAction::Wait,
            Ok(SendEnd::Turn) => NextAction::Yield,
            Err(Errno::AGAIN) => NextAction::Wait,
            Err(_) => return NextAction::Close,
        };
        self.response = Some(response);
        action
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
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_a_limited_number_of_files_is_open() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("a")).unwrap();
        std::fs::write(directory.path().join("a/b.bin"), b"hello").unwrap();
        let mut responses = PreparedResponses::new(directory.path().to_owned());
        responses.opened = (0..contender::OPEN_FILES)
            .map(|number| number.to_string().into_bytes())
            .collect();
        let response = responses.get(b"/a/b.bin").unwrap();
        assert_eq!(response.length, 5);
        assert_eq!(responses.opened.len(), contender::OPEN_FILES as usize);
        assert_eq!(responses.opened[0], b"1");
        assert!(Rc::ptr_eq(&response, &responses.get(b"/a/b.bin").unwrap()));
        for path in [
            &b"/a"[..],
            b"/a/c",
            b"a/b.bin",
            b"/../a/b.bin",
            b"//etc/passwd",
        ] {
            assert!(responses.get(path).is_none());
        }
    }

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
