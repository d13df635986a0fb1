//! A connection of the load generator: sends a request, and receives the response.

use std::net::TcpStream;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::check::{HEAD_LIMIT_BYTES, closed, connection_error};
use crate::error::Error;
use crate::serve::response::{EMPTY_LINE, STATUS_OK};

/// The number of bytes that the first receive of a response takes if the body is discarded. It is
/// longer than the heads of all known servers, so that one receive is enough for the head, and so
/// short that copying the beginning of the body costs nothing.
const HEAD_RECEIVE_BYTES: usize = 1024;

/// The maximum size of one receive that copies. It is as large as the buffers of clients that care
/// for speed, and the bytes stay in the cache of a CPU.
const COPY_RECEIVE_BYTES: usize = 256 * 1024;

/// How the bodies of all responses in a measurement are received.
pub(super) struct Reception {
    /// The length of every body in bytes.
    pub(super) body_bytes: usize,
    /// Whether bodies are discarded inside the kernel (`MSG_TRUNC`) instead of being copied to
    /// user space.
    pub(super) discards: bool,
    /// The length of the head of an earlier response. Usually, all heads have the same length, so
    /// this is where the end of the head is looked for first.
    pub(super) usual_head_bytes: usize,
}

/// A keep-alive connection.
pub(super) struct LoadConnection {
    stream: TcpStream,
    phase: Phase,
    /// The first bytes of the file that was requested. Those beyond its end have no meaning.
    body_start: [u8; 8],
    /// The beginning of a head that did not arrive as a whole, which is rare.
    partial_head: Vec<u8>,
}

/// What is to arrive next.
#[derive(Clone, Copy)]
enum Phase {
    /// Nothing: no request is in flight.
    Idle,
    /// The head of the response to the request in flight.
    Head,
    /// The body, of which this many bytes are missing.
    Body(usize),
}

/// The result of [`LoadConnection::receive`].
pub(super) struct Received {
    /// The number of body bytes that were received.
    pub(super) body_bytes: usize,
    /// Whether the response is complete. If not, the socket is empty for now.
    pub(super) is_complete: bool,
}

impl LoadConnection {
    /// Takes over an idle connection.
    pub(super) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            phase: Phase::Idle,
            body_start: [0; 8],
            partial_head: Vec::new(),
        }
    }

    /// Sends a request for a file that begins with `body_start`. No other request may be in flight.
    pub(super) fn send(&mut self, request: &[u8], body_start: [u8; 8]) -> Result<(), Error> {
        match rustix::net::send(&self.stream, request, SendFlags::NOSIGNAL) {
            Ok(sent) if sent == request.len() => {
                self.phase = Phase::Head;
                self.body_start = body_start;
                Ok(())
            }
            Ok(_) | Err(Errno::AGAIN) => Err(Error::WrongResult(
                "the server reads no requests: its receive queue is full".into(),
            )),
            Err(error) => Err(connection_error(error.into())),
        }
    }

    /// Receives until the response is complete or the socket is empty.
    pub(super) fn receive(
        &mut self,
        buffer: &mut [u8],
        reception: &mut Reception,
    ) -> Result<Received, Error> {
        let mut body_bytes = 0;
        loop {
            let (wanted, flags) = match (reception.discards, self.phase) {
                (true, Phase::Head) => (HEAD_RECEIVE_BYTES, RecvFlags::empty()),
                (true, Phase::Body(missing)) => (missing, RecvFlags::TRUNC),
                (false, _) | (true, Phase::Idle) => (COPY_RECEIVE_BYTES, RecvFlags::empty()),
            };
            let wanted = wanted.min(buffer.len());
            let got = match rustix::net::recv(&self.stream, &mut buffer[..wanted], flags) {
                Ok((_, 0)) => return Err(closed()),
                Ok((_, got)) => got,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(connection_error(error.into())),
            };
            body_bytes += self.take(&buffer[..got], reception)?;
            // Return without receiving again. If the socket had fewer bytes than wanted, it is
            // empty now, and edge-triggered epoll will report the next bytes when they arrive.
            if matches!(self.phase, Phase::Idle) || got < wanted {
                break;
            }
        }
        Ok(Received {
            body_bytes,
            is_complete: matches!(self.phase, Phase::Idle),
        })
    }

    /// Takes bytes that have arrived. Returns how many of them belong to the body.
    fn take(&mut self, bytes: &[u8], reception: &mut Reception) -> Result<usize, Error> {
        let (missing, got) = match self.phase {
            Phase::Body(missing) => (missing, bytes.len()),
            Phase::Head => match self.take_head(bytes, reception)? {
                Some(got) => (reception.body_bytes, got),
                None => return Ok(0),
            },
            Phase::Idle => (0, bytes.len()),
        };
        if got > missing {
            return Err(Error::WrongResult(
                "a response is longer than its file".into(),
            ));
        }
        self.phase = match missing - got {
            0 => Phase::Idle,
            missing => Phase::Body(missing),
        };
        Ok(got)
    }

    /// Takes the first bytes of a response. Returns how many bytes of the body they contain, or
    /// `None` if the head is still incomplete.
    fn take_head(
        &mut self,
        bytes: &[u8],
        reception: &mut Reception,
    ) -> Result<Option<usize>, Error> {
        if !self.partial_head.is_empty() {
            self.partial_head.extend_from_slice(bytes);
        }
        let received = match self.partial_head.as_slice() {
            [] => bytes,
            partial => partial,
        };
        match head_length(received, reception.usual_head_bytes)? {
            Some(length) => {
                let body = &received[length..];
                let body_bytes = body.len();
                let compared = body_bytes
                    .min(self.body_start.len())
                    .min(reception.body_bytes);
                if body[..compared] != self.body_start[..compared] {
                    return Err(Error::WrongResult(
                        "a later response has the bytes of another file".into(),
                    ));
                }
                reception.usual_head_bytes = length;
                self.partial_head.clear();
                Ok(Some(body_bytes))
            }
            None => {
                if self.partial_head.is_empty() {
                    self.partial_head.extend_from_slice(bytes);
                }
                Ok(None)
            }
        }
    }
}

/// Checks that a response has status 200, and returns the length of its head, or `None` if the head
/// is incomplete. Looks first for a head of `usual` bytes.
///
/// Nothing else is checked in every response, because that would take too long. If a body has the
/// wrong length, the next response does not start where expected and fails this check, or the
/// connection waits for bytes that never arrive and makes no more requests. So a wrong length can
/// never improve the server's figures.
fn head_length(bytes: &[u8], usual: usize) -> Result<Option<usize>, Error> {
    let status = bytes.len().min(STATUS_OK.len());
    let has_usual_length = || bytes.get(..usual)?.ends_with(EMPTY_LINE).then_some(usual);
    let found = || {
        let mut windows = bytes.windows(EMPTY_LINE.len());
        Some(windows.position(|window| window == EMPTY_LINE)? + EMPTY_LINE.len())
    };
    let is_wrong = bytes[..status] != STATUS_OK[..status];
    match has_usual_length().or_else(found) {
        Some(length) if !is_wrong => Ok(Some(length)),
        None if !is_wrong && bytes.len() <= HEAD_LIMIT_BYTES => Ok(None),
        Some(_) | None => Err(Error::WrongResult(
            "a later response does not begin with a head of status 200".into(),
        )),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;

    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";

    #[test]
    fn the_end_of_a_head_is_found_at_the_usual_length_and_elsewhere() {
        let response = [HEAD, b"hello"].concat();
        for usual in [0, HEAD.len() - 1, HEAD.len(), HEAD.len() + 1, 1000] {
            assert_eq!(head_length(&response, usual).unwrap(), Some(HEAD.len()));
        }
        for cut in 0..HEAD.len() {
            assert_eq!(head_length(&HEAD[..cut], HEAD.len()).unwrap(), None);
        }
        assert!(head_length(b"hello HTTP/1.1 200 OK\r\n\r\n", 25).is_err());
        assert!(head_length(&[HEAD[..20].to_vec(), vec![b'x'; 20_000]].concat(), 40).is_err());
    }

    #[test]
    fn a_response_may_arrive_in_pieces_of_any_size() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut server = listener.accept().unwrap().0;
        let mut connection = LoadConnection::new(stream);
        let response = [HEAD, b"hello"].concat();
        for (discards, piece) in [(false, 1), (false, 40), (true, 7), (true, 100)] {
            let mut reception = Reception {
                body_bytes: 5,
                discards,
                usual_head_bytes: HEAD.len(),
            };
            connection
                .send(b"GET / HTTP/1.1\r\n\r\n", *b"hello...")
                .unwrap();
            let mut body_bytes = 0;
            for (index, bytes) in response.chunks(piece).enumerate() {
                server.write_all(bytes).unwrap();
                let received = connection.receive(&mut [0; 4096], &mut reception).unwrap();
                body_bytes += received.body_bytes;
                let is_last = (index + 1) * piece >= response.len();
                assert_eq!(received.is_complete, is_last);
            }
            assert_eq!(body_bytes, 5);
        }
    }
}
