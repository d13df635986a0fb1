//! The load that shows how many bytes per second a relay can move: each source sends as much as its
//! socket accepts, and each sink discards what arrives.
//!
//! Copying would cost this thread more than moving the bytes costs a relay that does not copy. So
//! the sources send a file from the page cache with `sendfile`, and the sinks discard the bytes
//! inside the kernel (`MSG_TRUNC`).

use std::fs::{self, File};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::{Pair, closed_early};
use crate::error::{Context, Error};
use crate::load::Load;
use crate::load::poller::Poller;
use crate::pattern;
use crate::relay::case::Direction;

/// Size of the file that is sent over and over. It is larger than the cache of one core, and
/// smaller than the cache that cores share, where a network interface may put what it receives.
const FILE_BYTES: u64 = 1024 * 1024;

/// Maximum size of one send.
const SEND_BYTES: u64 = 256 * 1024;

/// Maximum size of one receive.
const RECEIVE_BYTES: usize = 1024 * 1024;

/// The file that the sources send.
pub(in crate::relay) struct SourceFile(File);

impl SourceFile {
    /// Writes the file into the directory `scratch`. It is then in the page cache.
    pub(in crate::relay) fn create(scratch: &Path) -> Result<Self, Error> {
        let path = scratch.join("bulk.bin");
        fs::write(&path, pattern::bytes(FILE_BYTES))
            .and_then(|()| File::open(&path))
            .map(Self)
            .context(|| format!("cannot write {}", path.display()))
    }
}

/// Connections on which bytes are sent in one direction.
pub(in crate::relay) struct Bulk<'a> {
    poller: Poller,
    file: &'a SourceFile,
    connections: Vec<BulkConnection>,
    /// The ends that are ready: for each source, the number of its connection times two, and for
    /// each sink, one more.
    ready: Vec<usize>,
    buffer: Vec<u8>,
    received_bytes: u64,
}

/// A connection, with the socket that sends and the socket that receives.
pub(super) struct BulkConnection {
    pub(super) source: TcpStream,
    pub(super) sink: TcpStream,
    /// The number of bytes that were sent.
    sent: u64,
}

impl BulkConnection {
    pub(super) fn new(pair: Pair, direction: Direction) -> Self {
        let (source, sink) = match direction {
            Direction::ToServer => (pair.client, pair.server),
            Direction::ToClient => (pair.server, pair.client),
        };
        Self {
            source,
            sink,
            sent: 0,
        }
    }
}

impl<'a> Bulk<'a> {
    /// Prepares to send on these connections.
    pub(in crate::relay) fn new(
        pairs: Vec<Pair>,
        direction: Direction,
        file: &'a SourceFile,
    ) -> Result<Self, Error> {
        let poller = Poller::new(pairs.len() * 2)?;
        let of = |pair| BulkConnection::new(pair, direction);
        let connections: Vec<BulkConnection> = pairs.into_iter().map(of).collect();
        for (number, connection) in connections.iter().enumerate() {
            poller.add_sender(&connection.source, number * 2)?;
            poller.add(&connection.sink, number * 2 + 1)?;
        }
        Ok(Self {
            poller,
            file,
            connections,
            ready: Vec::new(),
            buffer: vec![0; RECEIVE_BYTES],
            received_bytes: 0,
        })
    }

    /// Sends or receives once at one end. Returns whether the end may still be ready.
    fn take_turn(&mut self, end: usize) -> Result<bool, Error> {
        let connection = &mut self.connections[end / 2];
        let result = if end.is_multiple_of(2) {
            let mut offset = connection.sent % FILE_BYTES;
            let wanted = SEND_BYTES.min(FILE_BYTES - offset) as usize;
            let file = &self.file.0;
            let sent = rustix::fs::sendfile(&connection.source, file, Some(&mut offset), wanted);
            sent.map(|sent| {
                connection.sent += sent as u64;
                sent == wanted
            })
        } else {
            match rustix::net::recv(&connection.sink, &mut *self.buffer, RecvFlags::TRUNC) {
                Ok((_, 0)) => return Err(closed_early()),
                Ok((_, got)) => {
                    self.received_bytes += got as u64;
                    Ok(got == RECEIVE_BYTES)
                }
                Err(error) => Err(error),
            }
        };
        match result {
            Ok(is_ready) => Ok(is_ready),
            Err(Errno::AGAIN) => Ok(false),
            Err(Errno::INTR) => Ok(true),
            Err(error) => Err(error).context(|| "a connection failed".into()),
        }
    }
}

impl Load for Bulk<'_> {
    fn run_until(&mut self, end: Instant) -> Result<(), Error> {
        let mut turns = Vec::new();
        loop {
            let now = self.poller.poll(&mut self.ready)?;
            std::mem::swap(&mut turns, &mut self.ready);
            turns.sort_unstable();
            turns.dedup();
            for end in turns.drain(..) {
                if self.take_turn(end)? {
                    self.ready.push(end);
                }
            }
            if now >= end {
                return Ok(());
            }
        }
    }

    fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    fn idle(&self) -> Duration {
        self.poller.idle()
    }
}
