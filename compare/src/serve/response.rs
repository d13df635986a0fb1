//! Parses the only part of HTTP that the load generator has to understand: the head of a response.

use crate::error::Error;

/// The lengths of the head and of the body of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ResponseHead {
    /// Length of the head in bytes, including the empty line.
    pub(super) length: usize,
    /// Length of the body in bytes.
    pub(super) content_length: u64,
}

/// The bytes at the end of a head: the end of its last line, and an empty line.
pub(super) const EMPTY_LINE: &[u8] = b"\r\n\r\n";

/// The beginning of every successful response.
pub(super) const STATUS_OK: &[u8] = b"HTTP/1.1 200 ";

/// Parses a head. Returns `None` while it is incomplete.
///
/// # Errors
///
/// [`Error::WrongResult`] unless the response is HTTP/1.1 with the status 200, keeps the connection
/// open, and has exactly one Content-Length and no Transfer-Encoding.
pub(super) fn parse_head(bytes: &[u8]) -> Result<Option<ResponseHead>, Error> {
    let Some(end) = bytes
        .windows(EMPTY_LINE.len())
        .position(|window| window == EMPTY_LINE)
    else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&bytes[..end])
        .map_err(|_| Error::WrongResult("the head is not text".into()))?;
    let mut lines = text.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if !status.as_bytes().starts_with(STATUS_OK) {
        return Err(Error::WrongResult(format!("status line {status:?}")));
    }
    let mut content_length = None;
    for line in lines {
        let Some((name, value)) = line.split_once(':') else {
            return Err(Error::WrongResult(format!("header line {line:?}")));
        };
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            let length = value
                .parse::<u64>()
                .map_err(|_| Error::WrongResult(format!("Content-Length {value:?}")))?;
            if content_length.replace(length).is_some() {
                return Err(Error::WrongResult("two Content-Lengths".into()));
            }
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(Error::WrongResult(format!("Transfer-Encoding {value}")));
        } else if name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("close") {
            return Err(Error::WrongResult("Connection: close".into()));
        }
    }
    let content_length =
        content_length.ok_or_else(|| Error::WrongResult("no Content-Length".into()))?;
    Ok(Some(ResponseHead {
        length: end + EMPTY_LINE.len(),
        content_length,
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_complete_head_yields_the_lengths_of_head_and_body() {
        let bytes = b"HTTP/1.1 200 OK\r\nServer: x\r\ncontent-length:  17 \r\n\r\nbody";
        let head = parse_head(bytes).unwrap().unwrap();
        assert_eq!(head.length, bytes.len() - 4);
        assert_eq!(head.content_length, 17);
    }

    #[test]
    fn every_prefix_of_a_head_is_incomplete() {
        let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n";
        for cut in 0..bytes.len() {
            assert_eq!(parse_head(&bytes[..cut]).unwrap(), None, "cut at {cut}");
        }
    }

    #[test]
    fn unexpected_responses_are_errors() {
        for bad in [
            "HTTP/1.1 404 Not Found\r\nContent-Length: 1\r\n\r\n",
            "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        ] {
            assert!(parse_head(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
