//! The plainest relay: a loop of `epoll_wait`, `recv` and `send` with one buffer. It is the hidden
//! subcommand `loop-relay`.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::error::{Context, Error};
use crate::machine;
use crate::relay::contender::{RelayFlags, RelayProgram, own_subcommand};

pub(super) const CONTENDER: RelayProgram = RelayProgram {
    name: "loop",
    about: "a plain loop of `recv` and `send` with a buffer of 64 KiB, on level-triggered epoll: \
            what relaying costs without anything else, and not meant to be used",
    ours: false,
    prepare: |setup| own_subcommand("loop-relay", machine::own_version(), setup),
};

/// The size of the buffer in bytes.
const BUFFER_BYTES: usize = 64 * 1024;

/// The event data of the listener in epoll. That of a socket is the number of its pair times two,
/// plus its side.
const LISTENER_EVENT: u64 = u64::MAX;

/// Runs the hidden subcommand `loop-relay`.
pub(crate) fn run(flags: &RelayFlags) -> Result<(), Error> {
    let listener = TcpListener::bind(flags.listen)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .context(|| format!("cannot listen on {}", flags.listen))?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
        .context(|| "cannot create an epoll instance".into())?;
    let data = epoll::EventData::new_u64(LISTENER_EVENT);
    epoll::add(&epoll, &listener, data, EventFlags::IN)
        .context(|| "cannot watch the listener".into())?;
    EventLoop {
        epoll,
        listener,
        target: flags.target,
        pairs: Vec::new(),
        free: Vec::new(),
        buffer: vec![0; BUFFER_BYTES],
    }
    .run()
}

/// One of the two sockets of a pair.
struct Side {
    stream: TcpStream,
    /// What epoll watches the socket for.
    watched: EventFlags,
    /// Bytes from the other side that the socket did not accept yet. While there are any, nothing
    /// is received from the other side.
    unsent: Vec<u8>,
    /// Whether the stream from this side has ended.
    has_ended: bool,
}

/// A relayed connection: the client's side and the target's.
struct Pair([Side; 2]);

struct EventLoop {
    epoll: OwnedFd,
    listener: TcpListener,
    target: SocketAddr,
    pairs: Vec<Option<Pair>>,
    /// Numbers of pairs that are not in use.
    free: Vec<usize>,
    buffer: Vec<u8>,
}

impl EventLoop {
    fn run(mut self) -> Result<(), Error> {
        let mut events = Vec::with_capacity(256);
        loop {
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context(|| "cannot wait".into()),
            }
            let mut closed = Vec::new();
            for event in events.drain(..) {
                let data = event.data.u64();
                if data == LISTENER_EVENT {
                    self.accept()?;
                    continue;
                }
                let (number, side) = (data as usize / 2, data as usize % 2);
                let Some(pair) = self.pairs[number].as_mut() else {
                    continue;
                };
                let is_open = pair
                    .handle(side, event.flags, &mut self.buffer)
                    .and_then(|is_open| pair.watch(&self.epoll, number).map(|()| is_open));
                if is_open != Ok(true) {
                    self.pairs[number] = None;
                    closed.push(number);
                }
            }
            // Further events of a pair may have been in the same list, so its number becomes free
            // only now.
            self.free.append(&mut closed);
        }
    }

    fn accept(&mut self) -> Result<(), Error> {
        loop {
            let client = match self.listener.accept() {
                Ok((client, _)) => client,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context(|| "cannot accept".into()),
            };
            let server = self.connect()?;
            let sides = [client, server].map(|stream| {
                stream
                    .set_nonblocking(true)
                    .and_then(|()| stream.set_nodelay(true))
                    .map(|()| Side {
                        stream,
                        watched: EventFlags::empty(),
                        unsent: Vec::new(),
                        has_ended: false,
                    })
            });
            let [Ok(client), Ok(server)] = sides else {
                continue;
            };
            let number = self.free.pop().unwrap_or_else(|| {
                self.pairs.push(None);
                self.pairs.len() - 1
            });
            self.pairs[number]
                .insert(Pair([client, server]))
                .watch(&self.epoll, number)
                .context(|| "cannot watch a connection".into())?;
        }
    }

    /// Starts to connect to the target. Until the connection is established, the socket accepts no
    /// bytes.
    fn connect(&self) -> Result<TcpStream, Error> {
        let family = match self.target {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)
            .context(|| "cannot create a socket".into())?;
        match rustix::net::connect(&socket, &self.target) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(socket.into()),
            Err(error) => Err(error).context(|| format!("cannot connect to {}", self.target)),
        }
    }
}

impl Pair {
    /// Does what an event of one side allows. Returns whether the pair is still open.
    fn handle(&mut self, side: usize, flags: EventFlags, buffer: &mut [u8]) -> Result<bool, Errno> {
        if flags.contains(EventFlags::ERR) {
            return Ok(false);
        }
        if flags.contains(EventFlags::OUT) {
            let bytes = std::mem::take(&mut self.0[side].unsent);
            self.send(side, &bytes)?;
        }
        let other = 1 - side;
        if flags.intersects(EventFlags::IN | EventFlags::HUP)
            && !self.0[side].has_ended
            && self.0[other].unsent.is_empty()
        {
            match rustix::net::recv(&self.0[side].stream, &mut *buffer, RecvFlags::empty()) {
                Ok((_, 0)) => {
                    self.0[side].has_ended = true;
                    self.send(other, &[])?;
                }
                Ok((_, got)) => self.send(other, &buffer[..got])?,
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        let is_open = |side: &Side| !side.has_ended || !side.unsent.is_empty();
        Ok(self.0.iter().any(is_open))
    }

    /// Sends to one side, which must have no unsent bytes. Keeps what it does not accept. After the
    /// last byte of a stream that has ended, passes on the end.
    fn send(&mut self, side: usize, bytes: &[u8]) -> Result<(), Errno> {
        let has_other_ended = self.0[1 - side].has_ended;
        let side = &mut self.0[side];
        let mut sent = 0;
        while sent < bytes.len() {
            match rustix::net::send(&side.stream, &bytes[sent..], SendFlags::NOSIGNAL) {
                Ok(count) => sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error),
            }
        }
        side.unsent.extend_from_slice(&bytes[sent..]);
        if has_other_ended && side.unsent.is_empty() {
            rustix::net::shutdown(&side.stream, rustix::net::Shutdown::Write)?;
        }
        Ok(())
    }

    /// Makes epoll watch both sockets for what can be done next.
    fn watch(&mut self, epoll: &OwnedFd, number: usize) -> Result<(), Errno> {
        for index in 0..2 {
            let mut wanted = EventFlags::empty();
            if !self.0[index].has_ended && self.0[1 - index].unsent.is_empty() {
                wanted |= EventFlags::IN;
            }
            let side = &mut self.0[index];
            if !side.unsent.is_empty() {
                wanted |= EventFlags::OUT;
            }
            if wanted == side.watched {
                continue;
            }
            let data = epoll::EventData::new_u64((number * 2 + index) as u64);
            // A socket that is watched for nothing would still report that both directions have
            // ended, again and again.
            if wanted.is_empty() {
                epoll::delete(epoll, &side.stream)?;
            } else if side.watched.is_empty() {
                epoll::add(epoll, &side.stream, data, wanted)?;
            } else {
                epoll::modify(epoll, &side.stream, data, wanted)?;
            }
            side.watched = wanted;
        }
        Ok(())
    }
}
