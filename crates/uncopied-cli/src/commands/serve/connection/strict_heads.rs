//! Request heads that two programs could read in two ways are refused before hyper sees them.
//!
//! hyper takes what a lenient reader of RFC 9112 may: lines that end with a bare LF, a Content-Length
//! next to a Transfer-Encoding, the same Content-Length twice, no Host. A proxy in front of this server
//! may read the same bytes otherwise, and then a request can be smuggled past it. So each of these gets
//! 400 and the connection is closed.
//!
//! [`Guarded`] looks at the bytes on their way to hyper and overwrites the line feed of a bad line with a
//! NUL byte, which no head may hold, and ends the head there: hyper then answers 400 and closes, by its own
//! path for malformed requests. It follows heads only. What follows a head with a body is not looked at any more, because
//! such a request is the last of its connection (see [`Answers`]).
//!
//! [`Answers`]: super::service::Answers

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::observer::ConnectionObserver;
use super::state::Seat;

/// As many bytes of a line are kept as tell its name and, for a length, its value.
const KEPT: usize = 40;
/// What hyper is given after a head that was refused.
const EMPTY_LINE: &[u8] = b"\n\n";

/// A stream whose request heads are checked.
pub(crate) struct Guarded<S, O> {
    stream: S,
    heads: Heads,
    /// Is told whether a head is still coming in: only that has a deadline, not the work on its answer.
    seat: Arc<Seat>,
    /// Is told what the socket takes.
    observer: O,
}

impl<S, O> Guarded<S, O> {
    pub(crate) fn new(stream: S, seat: Arc<Seat>, observer: O) -> Self {
        Self {
            stream,
            heads: Heads::default(),
            seat,
            observer,
        }
    }
}

impl<S, O> Guarded<S, O> {
    /// The stream, for bytes that are no request of hyper's.
    pub(crate) fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }
}

impl<S: AsyncRead + Unpin, O: ConnectionObserver> AsyncRead for Guarded<S, O> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.heads.follows == Follows::Nothing {
            // hyper looks at a head that came in pieces when an empty line has come, so here it is.
            let count = buf.remaining().min(EMPTY_LINE.len());
            buf.put_slice(&EMPTY_LINE[..count]);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.heads.check(&mut buf.filled_mut()[before..]);
        self.seat.set_awaits_head(self.heads.is_within());
        Poll::Ready(Ok(()))
    }
}

impl<S, O> AsyncWrite for Guarded<S, O>
where
    S: AsyncWrite + Unpin,
    O: ConnectionObserver,
{
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.observer
            .wrote(slices.iter().map(|slice| slice.len()).sum(), &written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Where in the heads of a connection its reader is.
struct Heads {
    line: Line,
    head: Head,
    follows: Follows,
}

/// What the next bytes belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Follows {
    /// A head, or the rest of one.
    Head,
    /// The body of the connection's last request.
    Body,
    /// Nothing: a head was refused.
    Nothing,
}

/// The line that is coming in. It may come in several reads.
struct Line {
    start: [u8; KEPT],
    len: usize,
    /// The last two bytes so far.
    tail: [u8; 2],
}

/// What the lines of the head have said so far.
#[derive(Clone, Copy, Default)]
struct Head {
    has_request_line: bool,
    needs_host: bool,
    hosts: u8,
    has_length: bool,
    has_coding: bool,
    has_body: bool,
}

/// The head cannot be trusted.
#[derive(Debug)]
struct Refused;

impl Default for Heads {
    fn default() -> Self {
        let line = Line {
            start: [0; KEPT],
            len: 0,
            tail: [0; 2],
        };
        Self {
            line,
            head: Head::default(),
            follows: Follows::Head,
        }
    }
}

impl Heads {
    /// Follows the bytes of the next read, and spoils a head that is to be refused.
    fn check(&mut self, mut bytes: &mut [u8]) {
        while self.follows == Follows::Head && !bytes.is_empty() {
            let Some(at) = bytes.iter().position(|&byte| byte == b'\n') else {
                self.line.extend(bytes);
                return;
            };
            let (line, rest) = bytes.split_at_mut(at + 1);
            self.line.extend(&line[..at]);
            if self.end_line().is_err() {
                line[at] = 0;
                self.follows = Follows::Nothing;
            }
            self.line.len = 0;
            self.line.tail = [0; 2];
            bytes = rest;
        }
    }

    /// Whether a part of a head has come, and not the whole.
    fn is_within(&self) -> bool {
        self.follows == Follows::Head && (self.head.has_request_line || self.line.len > 0)
    }

    fn end_line(&mut self) -> Result<(), Refused> {
        let [before, last] = self.line.tail;
        if last != b'\r' {
            return Err(Refused);
        }
        let head = &mut self.head;
        if self.line.len > 1 {
            if head.has_request_line {
                return head.note(&self.line);
            }
            head.has_request_line = true;
            head.needs_host = before != b'0';
            return Ok(());
        }
        // An empty line ends a head. Before a head it is ignored (RFC 9112, 2.2).
        if head.has_request_line {
            if head.hosts > 1 || head.needs_host && head.hosts == 0 {
                return Err(Refused);
            }
            if head.has_body {
                self.follows = Follows::Body;
            }
            *head = Head::default();
        }
        Ok(())
    }
}

impl Line {
    fn extend(&mut self, bytes: &[u8]) {
        if self.len < KEPT {
            let count = bytes.len().min(KEPT - self.len);
            self.start[self.len..][..count].copy_from_slice(&bytes[..count]);
        }
        self.len = self.len.saturating_add(bytes.len());
        self.tail = match *bytes {
            [] => self.tail,
            [last] => [self.tail[1], last],
            [.., before, last] => [before, last],
        };
    }
}

impl Head {
    /// Takes in one header line.
    fn note(&mut self, line: &Line) -> Result<(), Refused> {
        // The names that matter are told apart by their first letter, which spares most lines more.
        if !matches!(line.start[0] | 0x20, b'c' | b't' | b'h') {
            return Ok(());
        }
        let kept = &line.start[..line.len.min(KEPT)];
        let Some(colon) = kept.iter().position(|&byte| byte == b':') else {
            return Ok(());
        };
        let (name, value) = (&kept[..colon], &kept[colon + 1..]);
        if name.eq_ignore_ascii_case(b"host") {
            self.hosts = self.hosts.saturating_add(1);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.has_coding = true;
            self.has_body = true;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            // A length whose end is not in sight cannot be compared with what hyper makes of it.
            if self.has_length || line.len > KEPT {
                return Err(Refused);
            }
            self.has_length = true;
            self.has_body |= value.iter().any(|byte| (b'1'..=b'9').contains(byte));
        }
        match self.has_coding && self.has_length {
            true => Err(Refused),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the bytes pass, read in pieces of each size: the outcome must not depend on it.
    fn passes(bytes: &[u8]) -> bool {
        let mut outcomes = (1..=bytes.len()).map(|size| {
            let mut seen = bytes.to_vec();
            let mut heads = Heads::default();
            seen.chunks_mut(size).for_each(|piece| heads.check(piece));
            seen == bytes
        });
        let first = outcomes.next().expect("there are bytes");
        assert!(
            outcomes.all(|outcome| outcome == first),
            "{}",
            bytes.escape_ascii()
        );
        first
    }

    #[test]
    fn ordinary_heads_pass() {
        for head in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n",
            "GET / HTTP/1.0\r\n\r\n",
            "GET / HTTP/1.1\r\nhost:a\r\n\r\nGET / HTTP/1.1\r\nHOST: a\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n\n\n\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\n\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            assert!(passes(head.as_bytes()), "{head:?}");
        }
    }

    #[test]
    fn a_head_is_awaited_from_its_first_byte_to_its_last() {
        let mut heads = Heads::default();
        for (piece, is_within) in [
            ("\r\n", false),
            ("G", true),
            ("ET / HTTP/1.1\r\n", true),
            ("Host: a\r\n\r", true),
            ("\n", false),
            ("GET / HTTP/1.0\r\n\r\nG", true),
        ] {
            heads.check(&mut piece.as_bytes().to_vec());
            assert_eq!(heads.is_within(), is_within, "{piece:?}");
        }
    }

    #[test]
    fn heads_that_can_be_read_in_two_ways_are_spoilt() {
        for head in [
            "GET / HTTP/1.1\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\n",
            "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: x\r\ncontent-length: 0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:                               0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\nGET / HTTP/1.1\nHost: a\r\n\r\n",
        ] {
            assert!(!passes(head.as_bytes()), "{head:?}");
        }
    }
}
