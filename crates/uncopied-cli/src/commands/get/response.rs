//! The head of a response: parsed strictly, because two readings of one head would put bytes of
//! one response into another.

use std::mem::MaybeUninit;
use std::time::{Duration, SystemTime};

use super::error::GetError;

/// The longest head that is read, in bytes.
pub(super) const MAX_HEAD_BYTES: usize = 64 << 10;
/// The largest number of interim (1xx) responses before the final one.
pub(super) const MAX_INTERIM: usize = 16;

const MAX_HEADERS: usize = 256;

/// How the end of a body is found (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
    /// The body ends when the server closes the connection.
    UntilClose,
}

/// What identifies one version of a file, if it is strong enough for `If-Range` (RFC 9110, section
/// 13.1.5).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) enum Validator {
    #[serde(rename = "etag")]
    Etag(String),
    #[serde(rename = "last_modified")]
    LastModified(String),
}

impl Validator {
    pub(super) fn as_str(&self) -> &str {
        let (Self::Etag(value) | Self::LastModified(value)) = self;
        value
    }

    /// Whether it can be the value of a header. One from a file may hold anything.
    pub(super) fn is_header_value(&self) -> bool {
        http::HeaderValue::from_str(self.as_str()).is_ok()
    }
}

/// The part of a file that a 206 response holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ContentRange {
    pub(super) first: u64,
    /// The position after the last byte.
    pub(super) end: u64,
    /// The length of the whole file, if the server says it.
    pub(super) total: Option<u64>,
}

/// The parts of a head that matter for a download.
#[derive(Clone, Debug, Default)]
pub(super) struct Head {
    pub(super) status: u16,
    is_http_1_0: bool,
    content_length: Option<u64>,
    is_chunked: bool,
    has_close: bool,
    has_keep_alive: bool,
    pub(super) location: Option<String>,
    etag: Option<String>,
    pub(super) last_modified: Option<String>,
    date: Option<String>,
    content_range: Option<String>,
    has_parts: bool,
    retry_after: Option<String>,
}

impl Head {
    /// Parses the head at the start of `bytes`. Returns it with its length, or `None` if its end
    /// has not arrived yet.
    ///
    /// # Errors
    ///
    /// The bytes are not the head of an HTTP/1.x response, or its headers contradict each other.
    pub(super) fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, GetError> {
        let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut []);
        let parser = httparse::ParserConfig::default();
        let parsed = parser.parse_response_with_uninit_headers(&mut response, bytes, &mut headers);
        let len = match parsed {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(httparse::Error::TooManyHeaders) => {
                return Err(GetError::BadHead("it has more than 256 headers"));
            }
            Err(_) => return Err(GetError::BadHead("it is not HTTP/1.1")),
        };
        let mut head = Self {
            status: response.code.unwrap_or_default(),
            is_http_1_0: response.version == Some(0),
            ..Self::default()
        };
        if !(100..600).contains(&head.status) {
            return Err(GetError::BadHead("its status is not from 100 to 599"));
        }
        for header in response.headers.iter() {
            head.take(header)?;
        }
        if head.is_chunked && (head.content_length.is_some() || head.is_http_1_0) {
            return Err(GetError::BadHead(
                "it has both a Transfer-Encoding and a Content-Length, or is HTTP/1.0",
            ));
        }
        Ok(Some((head, len)))
    }

    /// Takes over a header, if it matters.
    fn take(&mut self, header: &httparse::Header<'_>) -> Result<(), GetError> {
        let text = || std::str::from_utf8(header.value).ok().map(str::to_owned);
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if is("content-length") {
            if self.content_length.is_some() {
                return Err(GetError::BadHead("it has two Content-Lengths"));
            }
            let length = decimal(header.value);
            let wrong = GetError::BadHead("its Content-Length is not a number");
            self.content_length = Some(length.ok_or(wrong)?);
        } else if is("transfer-encoding") {
            if self.is_chunked || !header.value.eq_ignore_ascii_case(b"chunked") {
                return Err(GetError::BadHead("its Transfer-Encoding is not chunked"));
            }
            self.is_chunked = true;
        } else if is("connection") {
            for word in header.value.split(|byte| *byte == b',') {
                let word = word.trim_ascii();
                self.has_close |= word.eq_ignore_ascii_case(b"close");
                self.has_keep_alive |= word.eq_ignore_ascii_case(b"keep-alive");
            }
        } else if is("location") {
            self.location = text();
        } else if is("etag") {
            self.etag = text();
        } else if is("last-modified") {
            self.last_modified = text();
        } else if is("date") {
            self.date = text();
        } else if is("content-range") {
            self.content_range = text();
        } else if is("content-type") {
            let prefix = header.value.get(..b"multipart/byteranges".len());
            self.has_parts =
                prefix.is_some_and(|kind| kind.eq_ignore_ascii_case(b"multipart/byteranges"));
        } else if is("retry-after") {
            self.retry_after = text();
        }
        Ok(())
    }

    /// Returns how the body ends, for a response to GET.
    pub(super) fn framing(&self) -> Framing {
        match self.content_length {
            _ if matches!(self.status, 100..200 | 204 | 304) => Framing::Length(0),
            _ if self.is_chunked => Framing::Chunked,
            Some(length) => Framing::Length(length),
            None => Framing::UntilClose,
        }
    }

    /// Returns the `Content-Length`, which a response to HEAD has without a body.
    pub(super) fn content_length(&self) -> Option<u64> {
        self.content_length
    }

    /// Whether the server keeps the connection open after this response.
    pub(super) fn keeps_alive(&self) -> bool {
        !self.has_close && (!self.is_http_1_0 || self.has_keep_alive)
    }

    /// Returns what identifies this version of the file, if it identifies each byte of it: a strong
    /// entity tag, or a modification time at least one second before the response, since the file
    /// may have changed twice within a second (RFC 9110, section 8.8.2.2).
    pub(super) fn validator(&self) -> Option<Validator> {
        let is_tag = |tag: &&String| tag.len() >= 2 && tag.starts_with('"') && tag.ends_with('"');
        if let Some(tag) = self.etag.as_ref().filter(is_tag) {
            return Some(Validator::Etag(tag.clone()));
        }
        let modified = self.last_modified.as_ref()?;
        let age = date(self.date.as_ref()?)?
            .duration_since(date(modified)?)
            .ok()?;
        (age >= Duration::from_secs(1)).then(|| Validator::LastModified(modified.clone()))
    }

    /// Whether this response is of the version that `validator` identifies. Each response has the
    /// entity tag of its version (RFC 9110, section 15.3.7). The modification time may be missing
    /// from a response to `If-Range`.
    pub(super) fn matches(&self, validator: &Validator) -> bool {
        match validator {
            Validator::Etag(tag) => self.etag.as_ref() == Some(tag),
            Validator::LastModified(time) => {
                self.last_modified.as_ref().is_none_or(|own| own == time)
            }
        }
    }

    /// Returns the modification time of the file.
    pub(super) fn modified(&self) -> Option<SystemTime> {
        self.last_modified.as_ref().and_then(|text| date(text))
    }

    /// Returns the part of the file that a 206 response holds.
    ///
    /// # Errors
    ///
    /// The header is missing or invalid, or contradicts the `Content-Length`.
    pub(super) fn content_range(&self) -> Result<ContentRange, GetError> {
        let text = self.content_range.as_deref().unwrap_or("none");
        let wrong = || GetError::WrongRange(text.to_owned());
        if self.has_parts {
            return Err(GetError::WrongRange("several parts".to_owned()));
        }
        let range = parse_range(text).ok_or_else(wrong)?;
        let length = range.end - range.first;
        match self.content_length {
            Some(announced) if announced != length => Err(wrong()),
            _ => Ok(range),
        }
    }

    /// Returns how long the server asks to wait before a retry.
    pub(super) fn retry_after(&self, now: SystemTime) -> Option<Duration> {
        let text = self.retry_after.as_deref()?;
        match decimal(text.as_bytes()) {
            Some(seconds) => Some(Duration::from_secs(seconds)),
            None => Some(date(text)?.duration_since(now).unwrap_or_default()),
        }
    }
}

fn date(text: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(text).ok()
}

/// Parses digits only: `u64::from_str` would accept a sign.
fn decimal(digits: &[u8]) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(digits).ok().filter(|_| is_number)?;
    text.parse().ok()
}

/// Parses `bytes FIRST-LAST/TOTAL`, where the total may be `*`.
fn parse_range(text: &str) -> Option<ContentRange> {
    let (unit, rest) = text.split_once(' ')?;
    let (range, total) = rest.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let first = decimal(first.as_bytes())?;
    let end = decimal(last.as_bytes())?.checked_add(1)?;
    let total = match total {
        "*" => None,
        total => Some(decimal(total.as_bytes())?),
    };
    let is_sound =
        unit.eq_ignore_ascii_case("bytes") && first < end && total.is_none_or(|total| end <= total);
    is_sound.then_some(ContentRange { first, end, total })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn parse(headers: &str) -> Result<Head, GetError> {
        let text = format!("HTTP/1.1 200 OK\r\n{headers}\r\n");
        let (head, len) = Head::parse(text.as_bytes())?.unwrap();
        assert_eq!(len, text.len());
        Ok(head)
    }

    #[test]
    fn contradictory_heads_are_refused() {
        for headers in [
            "Content-Length: 1\r\nContent-Length: 1\r\n",
            "Content-Length: 1\r\nContent-Length: 2\r\n",
            "Content-Length: +1\r\n",
            "Content-Length: 1, 1\r\n",
            "Content-Length: \r\n",
            "Content-Length: 18446744073709551616\r\n",
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "A : b\r\n",
            "A: b\r\n c\r\n",
        ] {
            assert!(parse(headers).is_err(), "{headers}");
        }
        for text in [
            "HTTP/2.0 200 OK\r\n\r\n",
            "SSH-2.0-x\r\n\r\n",
            "HTTP/1.1 999 X\r\n\r\n",
        ] {
            assert!(Head::parse(text.as_bytes()).is_err(), "{text}");
        }
        let old = "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert!(Head::parse(old.as_bytes()).is_err());
    }

    #[test]
    fn the_framing_follows_the_headers() {
        for (headers, framing) in [
            ("Content-Length: 7\r\n", Framing::Length(7)),
            ("Transfer-Encoding: Chunked\r\n", Framing::Chunked),
            ("", Framing::UntilClose),
        ] {
            assert_eq!(parse(headers).unwrap().framing(), framing, "{headers}");
        }
        assert!(parse("").unwrap().keeps_alive());
        assert!(!parse("Connection: x, Close\r\n").unwrap().keeps_alive());
        let old = Head::parse(b"HTTP/1.0 200 OK\r\n\r\n").unwrap().unwrap().0;
        assert!(!old.keeps_alive());
    }

    #[test]
    fn only_strong_validators_identify_a_version() {
        let dates = |modified: &str| {
            format!("Last-Modified: {modified}\r\nDate: Thu, 01 Jan 2026 00:00:10 GMT\r\n")
        };
        let older = dates("Thu, 01 Jan 2026 00:00:09 GMT");
        let same = dates("Thu, 01 Jan 2026 00:00:10 GMT");
        let of = |headers: &str| parse(headers).unwrap().validator();
        assert_eq!(of("ETag: \"a\"\r\n"), Some(Validator::Etag("\"a\"".into())));
        assert!(matches!(of(&older), Some(Validator::LastModified(_))));
        assert!(matches!(
            of(&format!("ETag: W/\"a\"\r\n{older}")),
            Some(Validator::LastModified(_))
        ));
        for headers in [
            "",
            "ETag: W/\"a\"\r\n",
            "ETag: a\r\n",
            same.as_str(),
            "Last-Modified: x\r\nDate: y\r\n",
        ] {
            assert_eq!(of(headers), None, "{headers}");
        }
    }

    #[test]
    fn ranges_must_be_sound() {
        let of = |range: &str| {
            parse(&format!("Content-Range: {range}\r\n"))
                .unwrap()
                .content_range()
        };
        let range = |first, end, total| ContentRange { first, end, total };
        assert_eq!(of("bytes 0-0/1").unwrap(), range(0, 1, Some(1)));
        assert_eq!(of("bytes 5-9/*").unwrap(), range(5, 10, None));
        for text in [
            "bytes 1-0/5",
            "bytes 0-5/5",
            "bytes */5",
            "items 0-0/1",
            "bytes 0-0",
            "bytes -1/5",
            "bytes 0-18446744073709551615/*",
            "bytes +0-1/5",
        ] {
            assert!(of(text).is_err(), "{text}");
        }
        let short = "Content-Range: bytes 0-9/10\r\nContent-Length: 9\r\n";
        assert!(parse(short).unwrap().content_range().is_err());
        let parts =
            "Content-Type: multipart/byteranges; boundary=x\r\nContent-Range: bytes 0-9/10\r\n";
        assert!(parse(parts).unwrap().content_range().is_err());
    }

    #[test]
    fn a_pause_is_in_seconds_or_until_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        let of = |text: &str| {
            parse(&format!("Retry-After: {text}\r\n"))
                .unwrap()
                .retry_after(now)
        };
        assert_eq!(of("7"), Some(Duration::from_secs(7)));
        assert_eq!(
            of("Thu, 01 Jan 1970 00:01:50 GMT"),
            Some(Duration::from_secs(10))
        );
        assert_eq!(of("Thu, 01 Jan 1970 00:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(of("soon"), None);
    }
}
