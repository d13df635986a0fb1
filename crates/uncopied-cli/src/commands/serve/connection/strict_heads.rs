//! Refuses request heads that two programs could parse differently, before hyper sees them.
//!
//! hyper accepts some heads that a stricter parser rejects or reads differently: lines that end
//! with a bare LF, a Content-Length next to a Transfer-Encoding, the same Content-Length twice, a
//! missing Host. If a proxy in front of this server parses such a head differently, the two may
//! disagree on where a request ends, and an attacker could smuggle a request past the proxy. So
//! each of these heads gets status 400, and the connection is closed.
//!
//! [`StrictHeads`] inspects the bytes on their way to hyper. It overwrites the line feed of a bad
//! line with a NUL byte, which no head may contain. Every later read returns nothing but empty
//! lines, which end the head. hyper then sends 400 and closes the connection, as for any malformed
//! request. Bodies are not inspected: a request with a body is the last one of its connection (see
//! [`FileService`]), so none of the bytes after its head is parsed as a request.
//!
//! [`FileService`]: super::service::FileService

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::observer::ConnectionObserver;
use super::state::ConnectionState;

/// The number of bytes of each line that are kept: enough for the name of every header that is
/// checked, and for the value of a Content-Length.
const MAX_LINE_PREFIX_BYTES: usize = 40;
/// The bytes that hyper reads after a refused head.
const EMPTY_LINES: &[u8] = b"\n\n";

/// A stream that checks request heads.
pub(crate) struct StrictHeads<S, O> {
    stream: S,
    heads: HeadScanner,
    /// Is told after each read whether a head is incomplete. The control thread needs this, because
    /// the header timeout applies only until the head is complete, not while the response is being
    /// prepared.
    connection: Arc<ConnectionState>,
    /// Is told the size and the outcome of each write.
    observer: O,
}

impl<S, O> StrictHeads<S, O> {
    pub(crate) fn new(stream: S, connection: Arc<ConnectionState>, observer: O) -> Self {
        Self {
            stream,
            heads: HeadScanner::default(),
            connection,
            observer,
        }
    }

    /// Returns the stream below, for requests that bypass hyper.
    pub(crate) fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }
}

impl<S: AsyncRead + Unpin, O: ConnectionObserver> AsyncRead for StrictHeads<S, O> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.heads.next == NextBytes::Discarded {
            // Give hyper empty lines, so that it parses, and rejects, the corrupted head. Without
            // them, hyper might wait for more bytes: it parses a head that arrives in several reads
            // only once an empty line has arrived.
            let count = buf.remaining().min(EMPTY_LINES.len());
            buf.put_slice(&EMPTY_LINES[..count]);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.heads.check(&mut buf.filled_mut()[before..]);
        self.connection.set_reading_head(self.heads.is_incomplete());
        Poll::Ready(Ok(()))
    }
}

impl<S, O> AsyncWrite for StrictHeads<S, O>
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

/// Scans the request heads of one connection. A head may arrive in several reads.
struct HeadScanner {
    line: PartialLine,
    head: HeadFields,
    next: NextBytes,
}

/// The part of the stream that the next bytes belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NextBytes {
    /// A head, or the rest of one.
    Head,
    /// The body of the connection's last request.
    Body,
    /// Nothing: a head was refused, and everything after it is discarded.
    Discarded,
}

/// The current line, which may arrive in several reads.
struct PartialLine {
    prefix: [u8; MAX_LINE_PREFIX_BYTES],
    len: usize,
    /// The last two bytes of the line so far.
    tail: [u8; 2],
}

/// Facts about the current head, gathered from its lines so far.
#[derive(Clone, Copy, Default)]
struct HeadFields {
    has_request_line: bool,
    needs_host: bool,
    host_count: u8,
    has_length: bool,
    has_coding: bool,
    has_body: bool,
}

/// The error for a head that can be parsed in more than one way.
#[derive(Debug)]
struct AmbiguousHead;

impl Default for HeadScanner {
    fn default() -> Self {
        let line = PartialLine {
            prefix: [0; MAX_LINE_PREFIX_BYTES],
            len: 0,
            tail: [0; 2],
        };
        Self {
            line,
            head: HeadFields::default(),
            next: NextBytes::Head,
        }
    }
}

impl HeadScanner {
    /// Scans the bytes of the next read. Corrupts a head that must be refused, so that hyper
    /// rejects it.
    fn check(&mut self, mut bytes: &mut [u8]) {
        while self.next == NextBytes::Head && !bytes.is_empty() {
            let Some(at) = bytes.iter().position(|&byte| byte == b'\n') else {
                self.line.extend(bytes);
                return;
            };
            let (line, rest) = bytes.split_at_mut(at + 1);
            self.line.extend(&line[..at]);
            if self.end_line().is_err() {
                line[at] = 0;
                self.next = NextBytes::Discarded;
            }
            self.line.len = 0;
            self.line.tail = [0; 2];
            bytes = rest;
        }
    }

    /// Whether a head is incomplete: part of it has arrived, but not all.
    fn is_incomplete(&self) -> bool {
        self.next == NextBytes::Head && (self.head.has_request_line || self.line.len > 0)
    }

    fn end_line(&mut self) -> Result<(), AmbiguousHead> {
        let [before, last] = self.line.tail;
        if last != b'\r' {
            return Err(AmbiguousHead);
        }
        let head = &mut self.head;
        if self.line.len > 1 {
            if head.has_request_line {
                return head.add_line(&self.line);
            }
            head.has_request_line = true;
            // Require a Host unless the request line ends with the 0 of `HTTP/1.0`, because
            // HTTP/1.0 does not require one.
            head.needs_host = before != b'0';
            return Ok(());
        }
        // This line is empty. It ends the current head, or is ignored if no head has begun (RFC
        // 9112, section 2.2).
        if head.has_request_line {
            if head.host_count > 1 || head.needs_host && head.host_count == 0 {
                return Err(AmbiguousHead);
            }
            if head.has_body {
                self.next = NextBytes::Body;
            }
            *head = HeadFields::default();
        }
        Ok(())
    }
}

impl PartialLine {
    fn extend(&mut self, bytes: &[u8]) {
        if self.len < MAX_LINE_PREFIX_BYTES {
            let count = bytes.len().min(MAX_LINE_PREFIX_BYTES - self.len);
            self.prefix[self.len..][..count].copy_from_slice(&bytes[..count]);
        }
        self.len = self.len.saturating_add(bytes.len());
        self.tail = match *bytes {
            [] => self.tail,
            [last] => [self.tail[1], last],
            [.., before, last] => [before, last],
        };
    }
}

impl HeadFields {
    /// Processes one header line.
    fn add_line(&mut self, line: &PartialLine) -> Result<(), AmbiguousHead> {
        // Skip most lines early, because all names that are checked begin with one of three
        // letters.
        if !matches!(line.prefix[0] | 0x20, b'c' | b't' | b'h') {
            return Ok(());
        }
        let prefix = &line.prefix[..line.len.min(MAX_LINE_PREFIX_BYTES)];
        let Some(colon) = prefix.iter().position(|&byte| byte == b':') else {
            return Ok(());
        };
        let (name, value) = (&prefix[..colon], &prefix[colon + 1..]);
        if name.eq_ignore_ascii_case(b"host") {
            self.host_count = self.host_count.saturating_add(1);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.has_coding = true;
            self.has_body = true;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            // Refuse a second Content-Length, and a value that does not fit into the prefix and
            // therefore cannot be checked completely.
            if self.has_length || line.len > MAX_LINE_PREFIX_BYTES {
                return Err(AmbiguousHead);
            }
            self.has_length = true;
            self.has_body |= value.iter().any(|byte| (b'1'..=b'9').contains(byte));
        }
        match self.has_coding && self.has_length {
            true => Err(AmbiguousHead),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a scanner leaves the bytes unchanged. Scans them in pieces of every size, and
    /// asserts that the size makes no difference.
    fn passes(bytes: &[u8]) -> bool {
        let mut outcomes = (1..=bytes.len()).map(|size| {
            let mut seen = bytes.to_vec();
            let mut heads = HeadScanner::default();
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
    fn unambiguous_heads_pass() {
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
    fn a_head_is_incomplete_from_its_first_byte_to_its_last() {
        let mut heads = HeadScanner::default();
        for (piece, is_incomplete) in [
            ("\r\n", false),
            ("G", true),
            ("ET / HTTP/1.1\r\n", true),
            ("Host: a\r\n\r", true),
            ("\n", false),
            ("GET / HTTP/1.0\r\n\r\nG", true),
        ] {
            heads.check(&mut piece.as_bytes().to_vec());
            assert_eq!(heads.is_incomplete(), is_incomplete, "{piece:?}");
        }
    }

    #[test]
    fn ambiguous_heads_are_corrupted() {
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
