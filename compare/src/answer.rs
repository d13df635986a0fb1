//! The little of HTTP that a load generator has to understand: the head of an answer.

use crate::error::Error;

/// What the head of an answer says about its framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    /// Bytes of the head, the empty line included.
    pub(crate) length: usize,
    /// Bytes of the body.
    pub(crate) content_length: u64,
}

/// The end of a head.
pub(crate) const EMPTY_LINE: &[u8] = b"\r\n\r\n";

/// How every good answer begins.
pub(crate) const STATUS_OK: &[u8] = b"HTTP/1.1 200 ";

/// Reads a head; `None` while it is incomplete.
///
/// # Errors
///
/// [`Error::WrongAnswer`] unless it is a 200 of HTTP/1.1 that keeps the connection open and has
/// exactly one Content-Length and no Transfer-Encoding.
pub(crate) fn parse_head(bytes: &[u8]) -> Result<Option<Head>, Error> {
    let Some(end) = bytes
        .windows(EMPTY_LINE.len())
        .position(|window| window == EMPTY_LINE)
    else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&bytes[..end])
        .map_err(|_| Error::WrongAnswer("the head is not text".into()))?;
    let mut lines = text.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if !status.as_bytes().starts_with(STATUS_OK) {
        return Err(Error::WrongAnswer(format!("status line {status:?}")));
    }
    let mut content_length = None;
    for line in lines {
        let Some((name, value)) = line.split_once(':') else {
            return Err(Error::WrongAnswer(format!("header line {line:?}")));
        };
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            let length = value
                .parse::<u64>()
                .map_err(|_| Error::WrongAnswer(format!("Content-Length {value:?}")))?;
            if content_length.replace(length).is_some() {
                return Err(Error::WrongAnswer("two Content-Lengths".into()));
            }
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(Error::WrongAnswer(format!("Transfer-Encoding {value}")));
        } else if name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("close") {
            return Err(Error::WrongAnswer("Connection: close".into()));
        }
    }
    let content_length =
        content_length.ok_or_else(|| Error::WrongAnswer("no Content-Length".into()))?;
    Ok(Some(Head {
        length: end + EMPTY_LINE.len(),
        content_length,
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_head_tells_its_length_and_the_bodys() {
        let bytes = b"HTTP/1.1 200 OK\r\nServer: x\r\ncontent-length:  17 \r\n\r\nbody";
        let head = parse_head(bytes).unwrap().unwrap();
        assert_eq!(head.length, bytes.len() - 4);
        assert_eq!(head.content_length, 17);
    }

    #[test]
    fn every_cut_of_a_head_is_incomplete() {
        let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n";
        for cut in 0..bytes.len() {
            assert_eq!(parse_head(&bytes[..cut]).unwrap(), None, "cut at {cut}");
        }
    }

    #[test]
    fn answers_that_would_spoil_the_count_are_refused() {
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
