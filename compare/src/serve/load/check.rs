//! Opens the connections of the load generator, and checks the first response on each of them.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;

use super::Served;
use super::request::Request;
use crate::error::{Context, Error};
use crate::load::poller::STALL_LIMIT;
use crate::serve::response;

/// The maximum length of a response head. No reasonable head is longer, so a server that exceeds
/// this limit is considered faulty.
pub(super) const HEAD_LIMIT_BYTES: usize = 16 * 1024;

/// Opens a connection, sends one request, and compares the complete response with the file.
///
/// Returns the connection, which is now idle, and the length of the response's head. `buffer` must
/// have room for more than [`HEAD_LIMIT_BYTES`].
pub(in crate::serve) fn open_checked(
    served: &Served<'_>,
    request: &Request<'_>,
    buffer: &mut [u8],
) -> Result<(TcpStream, usize), Error> {
    let mut stream = TcpStream::connect(served.address)
        .context(|| format!("cannot connect to {}", served.address))?;
    stream
        .set_read_timeout(Some(STALL_LIMIT))
        .and_then(|()| stream.set_nodelay(true))
        .and_then(|()| stream.write_all(request.bytes))
        .context(|| format!("cannot send a request to {}", served.address))?;
    let expected = served.set.bytes(request.file);
    let (head_bytes, mut have) = receive_head(&mut stream, buffer, expected.len())?;
    let mut body = &*expected;
    let mut from = head_bytes;
    loop {
        let got = &buffer[from..have];
        let Some(rest) = body.strip_prefix(got) else {
            return Err(Error::WrongResult(format!(
                "{} has wrong bytes, at or after offset {}",
                served.set.path(request.file),
                expected.len() - body.len()
            )));
        };
        body = rest;
        if body.is_empty() {
            break;
        }
        from = 0;
        have = receive(&mut stream, buffer)?;
    }
    Ok((stream, head_bytes))
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

/// Returns the error for a connection that the server has closed.
pub(super) fn closed() -> Error {
    Error::WrongResult("the server closed a keep-alive connection".into())
}

/// Converts an I/O error of a connection. A reset or a broken pipe means that the server has closed
/// the connection: the kernel resets a connection that is closed while a request is unread.
pub(super) fn connection_error(source: io::Error) -> Error {
    match source.kind() {
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => closed(),
        _ => Error::Io {
            what: "a connection failed".into(),
            source,
        },
    }
}
