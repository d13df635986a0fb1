//! The plainest sendfile loop: the limit that a server with real HTTP can come close to.
//!
//! All files are opened and all heads are built beforehand. A request is the bytes up to an empty
//! line, of which only the path is looked at. The answer is the head with `MSG_MORE`, then
//! sendfile until the file is out. One thread, edge-triggered epoll.

use std::collections::HashMap;
use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::time::Timespec;

use super::{Contender, Launch, ServeFlags, Setup};
use crate::answer::EMPTY_LINE;
use crate::error::{Context, Error};

pub(super) const CONTENDER: Contender = Contender {
    name: "plain",
    about: "the plainest sendfile loop (epoll, prepared heads, `send(MSG_MORE)` then `sendfile`, \
            no HTTP parsing): the limit for sendfile, not a server to use",
    ours: false,
    prepare,
};

/// Marks the listener among the events; connections carry their descriptor's number.
const LISTENER: u64 = u64::MAX;

/// A request that is longer is not from our load generator.
const REQUEST_LIMIT_BYTES: usize = 8 * 1024;

/// How long to wait for events while connections have yielded.
const AT_ONCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// What one connection may send before it is the others' turn. One that sends for as long as its
/// peer drains wakes that peer for every bit; in turns, at most this much a turn, the peers find
/// more at once. On loopback it saves about a tenth of the server's CPU at 16 MiB.
const TURN_BYTES: u64 = 2 * 1024 * 1024;

fn prepare(setup: &Setup<'_>) -> Result<Launch, Error> {
    Ok(Launch {
        command: super::own_subcommand("plain-server", setup)?,
        version: format!("compare {}", env!("CARGO_PKG_VERSION")),
        configuration: None,
    })
}

/// The body of the hidden subcommand `plain-server`.
pub(crate) fn serve(flags: &ServeFlags) -> Result<(), Error> {
    let answers = open_all(flags)?;
    let listener = TcpListener::bind(flags.listen)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .context(|| format!("cannot listen on {}", flags.listen))?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
        .context(|| "cannot create an epoll instance".into())?;
    epoll::add(
        &epoll,
        &listener,
        epoll::EventData::new_u64(LISTENER),
        epoll::EventFlags::IN,
    )
    .context(|| "cannot watch the listener".into())?;
    Loop {
        epoll,
        listener,
        answers,
        connections: Vec::new(),
        yielded: Vec::new(),
        buffer: vec![0; REQUEST_LIMIT_BYTES],
    }
    .run()
}

/// A file and the head that goes before it.
struct Answer {
    head: Vec<u8>,
    file: File,
    length: u64,
}

/// Every regular file of the directory, by the path that asks for it.
fn open_all(flags: &ServeFlags) -> Result<HashMap<Vec<u8>, Answer>, Error> {
    let directory = &flags.dir;
    let entries =
        fs::read_dir(directory).context(|| format!("cannot read {}", directory.display()))?;
    let mut answers = HashMap::new();
    for entry in entries {
        let entry = entry.context(|| format!("cannot read {}", directory.display()))?;
        let file = File::open(entry.path())
            .context(|| format!("cannot open {}", entry.path().display()))?;
        let metadata = file
            .metadata()
            .context(|| format!("cannot look at {}", entry.path().display()))?;
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
        answers.insert(
            path,
            Answer {
                head: head.into_bytes(),
                file,
                length,
            },
        );
    }
    Ok(answers)
}

/// A connection, and how far its answer has gone.
struct Connection {
    stream: TcpStream,
    path: Vec<u8>,
    head_sent: usize,
    body_sent: u64,
    answering: bool,
    yielded: bool,
}

/// What is to become of a connection.
#[derive(PartialEq, Eq)]
enum Next {
    /// When the socket is ready again.
    Wait,
    /// It could go on at once, but it is the others' turn.
    Yield,
    Close,
}

/// How an undisturbed [`Connection::send`] ended.
enum Sent {
    /// With the answer.
    All,
    /// With the turn.
    Turn,
}

struct Loop {
    epoll: OwnedFd,
    listener: TcpListener,
    answers: HashMap<Vec<u8>, Answer>,
    connections: Vec<Option<Connection>>,
    yielded: Vec<usize>,
    buffer: Vec<u8>,
}

impl Loop {
    fn run(mut self) -> Result<(), Error> {
        let mut events = Vec::with_capacity(256);
        let mut turns = Vec::new();
        loop {
            let limit = (!self.yielded.is_empty()).then_some(&AT_ONCE);
            match epoll::wait(&self.epoll, spare_capacity(&mut events), limit) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context(|| "cannot wait".into()),
            }
            for event in events.drain(..) {
                let data = event.data.u64();
                if data == LISTENER {
                    self.accept()?;
                } else if !self.has_yielded(data as usize) {
                    self.turn(data as usize);
                }
            }
            std::mem::swap(&mut turns, &mut self.yielded);
            for slot in turns.drain(..) {
                self.turn(slot);
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
            self.connections[slot] = Some(Connection {
                stream,
                path: Vec::new(),
                head_sent: 0,
                body_sent: 0,
                answering: false,
                yielded: false,
            });
        }
    }

    /// Whether its turn is coming anyway.
    fn has_yielded(&self, slot: usize) -> bool {
        let connection = self.connections.get(slot).and_then(Option::as_ref);
        connection.is_some_and(|connection| connection.yielded)
    }

    fn turn(&mut self, slot: usize) {
        let Some(connection) = self.connections.get_mut(slot).and_then(Option::as_mut) else {
            return;
        };
        match connection.turn(&self.answers, &mut self.buffer) {
            Next::Wait => {}
            Next::Yield => {
                connection.yielded = true;
                self.yielded.push(slot);
            }
            Next::Close => self.connections[slot] = None,
        }
    }
}

impl Connection {
    /// Goes on with the answer, or takes the next request, until the socket blocks.
    fn turn(&mut self, answers: &HashMap<Vec<u8>, Answer>, buffer: &mut [u8]) -> Next {
        self.yielded = false;
        if !self.answering {
            match rustix::net::recv(&self.stream, &mut *buffer, RecvFlags::empty()) {
                Ok((_, got)) if got > 0 => match path_of(&buffer[..got]) {
                    Some(path) => {
                        self.path.clear();
                        self.path.extend_from_slice(path);
                    }
                    None => return Next::Close,
                },
                Err(Errno::AGAIN | Errno::INTR) => return Next::Wait,
                Ok(_) | Err(_) => return Next::Close,
            }
            (self.head_sent, self.body_sent) = (0, 0);
            self.answering = true;
        }
        let Some(answer) = answers.get(&self.path) else {
            return Next::Close;
        };
        match self.send(answer) {
            // The next request cannot be there yet: our client waits for this answer's end.
            Ok(Sent::All) => {
                self.answering = false;
                Next::Wait
            }
            Ok(Sent::Turn) => Next::Yield,
            Err(Errno::AGAIN) => Next::Wait,
            Err(_) => Next::Close,
        }
    }

    fn send(&mut self, answer: &Answer) -> Result<Sent, Errno> {
        while self.head_sent < answer.head.len() {
            let rest = &answer.head[self.head_sent..];
            let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
            self.head_sent += rustix::net::send(&self.stream, rest, flags)?;
        }
        let turn_end = answer.length.min(self.body_sent + TURN_BYTES);
        while self.body_sent < turn_end {
            let left = (turn_end - self.body_sent) as usize;
            let offset = Some(&mut self.body_sent);
            if rustix::fs::sendfile(&self.stream, &answer.file, offset, left)? == 0 {
                // The file has become shorter: the answer cannot be finished.
                return Err(Errno::IO);
            }
        }
        if self.body_sent == answer.length {
            Ok(Sent::All)
        } else {
            Ok(Sent::Turn)
        }
    }
}

/// The path of a request that has come whole and alone, as our load generator sends them.
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
    fn the_path_is_the_second_word_of_a_whole_request() {
        let request = b"GET /1k.bin HTTP/1.1\r\nHost: x\r\n\r\n";
        assert_eq!(path_of(request), Some(&b"/1k.bin"[..]));
        let with_query = b"GET /1k.bin?12 HTTP/1.1\r\nHost: x\r\n\r\n";
        assert_eq!(path_of(with_query), Some(&b"/1k.bin"[..]));
        assert_eq!(path_of(&request[..request.len() - 1]), None);
        assert_eq!(path_of(b"\r\n\r\n"), None);
    }
}
