//! One connection to a server or a proxy, with the bytes that were received and not yet used.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::super::error::GetError;
use super::super::response::{Head, MAX_HEAD_BYTES, MAX_INTERIM};
use crate::flags::TimeSpan;

/// How many bytes are asked for with the head of a response. What arrives with the head has to be
/// written from memory. The head and a file of a few KiB together take one system call.
const HEAD_BUFFER_BYTES: usize = 8 << 10;
/// The size of the buffer between a socket and a file.
pub(crate) const PIECE_BYTES: usize = 256 << 10;

/// What a timeout has interrupted.
const WAITING: &str = "waiting for the server";

pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// An open connection.
pub(crate) struct Connection {
    stream: Stream,
    /// Received bytes. Those before `start` have been used.
    buffer: Vec<u8>,
    start: usize,
    /// The buffer of [`Connection::receive_piece`], allocated when it is first needed.
    piece: Vec<u8>,
    read_timeout: TimeSpan,
    /// The origin that requests on this connection go to.
    pub(super) key: String,
    /// Whether a response was received on it before.
    pub(super) is_reused: bool,
}

impl Connection {
    pub(super) fn new(stream: Stream, key: String, read_timeout: TimeSpan) -> Self {
        Self {
            stream,
            buffer: Vec::with_capacity(HEAD_BUFFER_BYTES),
            start: 0,
            piece: Vec::new(),
            read_timeout,
            key,
            is_reused: false,
        }
    }

    /// Returns the plain socket, to put TLS on it. `None` if there is TLS already, or if bytes
    /// have been received that TLS would miss.
    pub(super) fn into_plain(self) -> Option<TcpStream> {
        match self.stream {
            Stream::Plain(socket) if self.start == self.buffer.len() => Some(socket),
            _ => None,
        }
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), GetError> {
        let limit = self.read_timeout;
        let sent = within(limit, "sending the request", async {
            match &mut self.stream {
                Stream::Plain(stream) => stream.write_all(bytes).await,
                Stream::Tls(stream) => {
                    stream.write_all(bytes).await?;
                    stream.flush().await
                }
            }
        });
        sent.await?.map_err(GetError::Send)
    }

    /// Receives the head of the final response. The bytes that arrive with it stay in the buffer.
    pub(super) async fn receive_head(&mut self) -> Result<Head, GetError> {
        for _ in 0..=MAX_INTERIM {
            let head = self.receive_one_head().await?;
            match head.status {
                101 => return Err(GetError::BadHead("it switches to another protocol")),
                100..200 => {}
                _ => return Ok(head),
            }
        }
        Err(GetError::BadHead("it has more than 16 interim responses"))
    }

    async fn receive_one_head(&mut self) -> Result<Head, GetError> {
        let mut searched = 0;
        loop {
            let bytes = self.buffered();
            // Parsing starts from the beginning each time. So a head that arrives in many pieces is
            // parsed only when a piece has brought an empty line, or is the first.
            let has_empty_line = {
                let new = &bytes[searched..];
                memchr::memmem::find(new, b"\n\r\n").is_some()
                    || memchr::memmem::find(new, b"\n\n").is_some()
            };
            if !bytes.is_empty()
                && (has_empty_line || searched == 0)
                && let Some((head, len)) = Head::parse(bytes)?
            {
                self.consume(len);
                return Ok(head);
            }
            searched = bytes.len().saturating_sub(2);
            if bytes.len() >= MAX_HEAD_BYTES {
                return Err(GetError::BadHead("its head is longer than 64 KiB"));
            }
            if self.fill(HEAD_BUFFER_BYTES).await? == 0 {
                return Err(GetError::NoResponse);
            }
        }
    }

    /// Returns the bytes that were received and not yet used.
    pub(crate) fn buffered(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// Marks bytes of the buffer as used.
    pub(crate) fn consume(&mut self, len: usize) {
        self.start += len;
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        }
    }

    /// Receives up to `max` bytes into the buffer. Returns their number, 0 at the end of the
    /// stream.
    pub(crate) async fn fill(&mut self, max: usize) -> Result<usize, GetError> {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        let len = self.buffer.len();
        self.buffer.resize(len + max, 0);
        let received = read(&mut self.stream, self.read_timeout, &mut self.buffer[len..]).await;
        let count = received.as_ref().map_or(0, |count| *count);
        self.buffer.truncate(len + count);
        received
    }

    /// Receives up to `max` bytes, at most [`PIECE_BYTES`], past the buffer, which must be empty.
    /// Returns an empty slice at the end of the stream.
    pub(crate) async fn receive_piece(&mut self, max: usize) -> Result<&[u8], GetError> {
        debug_assert!(self.buffered().is_empty());
        if self.piece.is_empty() {
            self.piece = vec![0; PIECE_BYTES];
        }
        let max = max.min(PIECE_BYTES);
        let count = read(&mut self.stream, self.read_timeout, &mut self.piece[..max]).await?;
        Ok(&self.piece[..count])
    }

    /// Returns the socket, if the bytes of the stream can be taken from it as they are: there is no
    /// TLS, and the buffer is empty.
    pub(crate) fn plain_socket(&self) -> Option<&TcpStream> {
        match &self.stream {
            Stream::Plain(socket) if self.buffered().is_empty() => Some(socket),
            _ => None,
        }
    }

    /// Waits until the [plain socket](Self::plain_socket) has bytes or has ended.
    pub(crate) async fn readable(&self) -> Result<(), GetError> {
        let Stream::Plain(socket) = &self.stream else {
            return Ok(());
        };
        within(self.read_timeout, WAITING, socket.readable())
            .await?
            .map_err(GetError::Receive)
    }

    /// Whether the peer has sent anything, or has closed the connection, although it owes nothing.
    /// Never waits.
    pub(crate) fn unexpected_input(&mut self) -> UnexpectedInput {
        if !self.buffered().is_empty() {
            return UnexpectedInput::Bytes;
        }
        // On a TLS connection, the peer may send messages of the protocol at any time. Whatever
        // else arrives is found in front of the next response, where it is an error.
        let Stream::Plain(socket) = &self.stream else {
            return UnexpectedInput::None;
        };
        match socket.try_read(&mut [0]) {
            Ok(0) => UnexpectedInput::End,
            Ok(_) => UnexpectedInput::Bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => UnexpectedInput::None,
            Err(_) => UnexpectedInput::End,
        }
    }
}

/// What [`Connection::unexpected_input`] has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnexpectedInput {
    None,
    Bytes,
    End,
}

async fn read(stream: &mut Stream, limit: TimeSpan, bytes: &mut [u8]) -> Result<usize, GetError> {
    let reading = async {
        match stream {
            Stream::Plain(stream) => stream.read(bytes).await,
            Stream::Tls(stream) => stream.read(bytes).await,
        }
    };
    within(limit, WAITING, reading)
        .await?
        .map_err(GetError::Receive)
}

/// Waits for a future, for at most `limit`.
async fn within<T>(
    limit: TimeSpan,
    what: &'static str,
    future: impl Future<Output = T>,
) -> Result<T, GetError> {
    let time: Option<Duration> = limit.limit();
    match time {
        None => Ok(future.await),
        Some(time) => timeout(time, future).await.map_err(|_| GetError::Timeout {
            what,
            limit,
            flag: "--read-timeout",
        }),
    }
}
