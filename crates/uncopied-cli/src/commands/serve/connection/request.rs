//! Reads and checks request heads.
//!
//! This is the only place where the command reads HTTP. It is stricter than RFC 9112 allows: a head
//! that two programs could read differently is refused, because a proxy in front of this server
//! might be one of them, and an attacker could then smuggle a request past the proxy. Refused are
//! lines that end with a bare LF or contain a bare CR, folded lines, white space before a colon, a
//! Content-Length that is repeated, not a number, or next to a Transfer-Encoding, a transfer coding
//! other than `chunked`, and a Host that is missing, repeated or malformed.

use std::mem::MaybeUninit;
use std::ops::Range;

use http::StatusCode;
use http::uri::Authority;
use httparse::Status;
use uncopied_http::{RequestFields, RequestTarget};

use super::host::is_host;

/// The maximum size of a request head. A larger head gets status 431.
pub(super) const MAX_HEAD_BYTES: usize = 16 * 1024;

/// The maximum number of header fields. A head with more of them gets status 431.
const MAX_FIELDS: usize = 100;

/// Why a head is refused. The connection is closed after the response, because it is unknown where
/// the next request would begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RefusedHead {
    /// 400: the head is malformed or ambiguous.
    BadRequest,
    /// 431: the head is too long or has too many fields.
    TooLarge,
    /// 505: the request uses another major version of HTTP.
    UnsupportedVersion,
}

impl RefusedHead {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::TooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::UnsupportedVersion => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
        }
    }
}

/// Returns the length of the head at the start of `bytes`, including the empty line that ends it
/// and the empty lines before it. Returns `None` if the head is not complete yet.
///
/// A byte that no head may contain is refused as soon as it has arrived.
pub(super) fn head_length(bytes: &[u8]) -> Result<Option<usize>, RefusedHead> {
    let is_text = |byte: &u8| *byte >= b' ' && *byte != 0x7F;
    let (mut at, mut has_request_line) = (0, false);
    while let Some(length) = memchr::memchr(b'\n', &bytes[at..]) {
        let Some(line) = bytes[at..at + length].strip_suffix(b"\r") else {
            return Err(RefusedHead::BadRequest);
        };
        at += length + 1;
        // Empty lines before the request line are ignored (RFC 9112, section 2.2).
        if line.is_empty() && has_request_line {
            return Ok(Some(at));
        }
        has_request_line |= !line.is_empty();
    }
    // Refuse a line that is not text without waiting for its end, such as a TLS handshake.
    let rest = &bytes[at..];
    let rest = rest.strip_suffix(b"\r").unwrap_or(rest);
    match rest.iter().all(|byte| is_text(byte) || *byte == b'\t') {
        true => Ok(None),
        false => Err(RefusedHead::BadRequest),
    }
}

/// A request head that has passed every check. It refers to the bytes of the head by their
/// positions, so that it can be kept together with them.
#[derive(Debug)]
pub(super) struct RequestHead {
    method: Span,
    target: Span,
    path: Option<Span>,
    query: Option<Span>,
    fields: [(Span, Span); MAX_FIELDS],
    field_count: usize,
    is_http_1_0: bool,
    has_body: bool,
    asks_to_close: bool,
    asks_to_keep_alive: bool,
}

/// A range of the bytes of a head. Heads are shorter than 64 KiB.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    start: u16,
    end: u16,
}

impl Span {
    /// Returns the position of `part` within `whole`. `part` must be a slice of `whole`.
    fn of(part: &[u8], whole: &[u8]) -> Self {
        let start = part.as_ptr().addr() - whole.as_ptr().addr();
        Self {
            start: start as u16,
            end: (start + part.len()) as u16,
        }
    }

    fn range(self) -> Range<usize> {
        usize::from(self.start)..usize::from(self.end)
    }
}

impl RequestHead {
    pub(super) const fn empty() -> Self {
        const EMPTY: Span = Span { start: 0, end: 0 };
        Self {
            method: EMPTY,
            target: EMPTY,
            path: None,
            query: None,
            fields: [(EMPTY, EMPTY); MAX_FIELDS],
            field_count: 0,
            is_http_1_0: false,
            has_body: false,
            asks_to_close: false,
            asks_to_keep_alive: false,
        }
    }

    /// Parses and checks a complete head, for which [`head_length`] has returned the length.
    pub(super) fn parse(&mut self, head: &[u8]) -> Result<(), RefusedHead> {
        let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut request = httparse::Request::new(&mut []);
        match request.parse_with_uninit_headers(head, &mut fields) {
            Ok(Status::Complete(length)) if length == head.len() => {}
            Ok(_) => return Err(RefusedHead::BadRequest),
            Err(httparse::Error::TooManyHeaders) => return Err(RefusedHead::TooLarge),
            Err(httparse::Error::Version) => return Err(version_error(head)),
            Err(_) => return Err(RefusedHead::BadRequest),
        }
        let (method, target) = (
            request.method.unwrap_or_default(),
            request.path.unwrap_or_default(),
        );
        self.method = Span::of(method.as_bytes(), head);
        self.target = Span::of(target.as_bytes(), head);
        self.is_http_1_0 = request.version == Some(0);
        self.split_target(method, target, head)?;
        self.field_count = request.headers.len();
        for (span, field) in self.fields.iter_mut().zip(request.headers.iter()) {
            *span = (
                Span::of(field.name.as_bytes(), head),
                Span::of(field.value, head),
            );
        }
        self.check_fields(request.headers)
    }

    /// Splits the target into its path and its query (RFC 9112, section 3.2). Only `OPTIONS *` and
    /// CONNECT have a target without a path.
    fn split_target(&mut self, method: &str, target: &str, head: &[u8]) -> Result<(), RefusedHead> {
        (self.path, self.query) = (None, None);
        let after_authority = match target {
            "*" if method == "OPTIONS" => return Ok(()),
            _ if method == "CONNECT" => {
                return match is_authority(target) {
                    true => Ok(()),
                    false => Err(RefusedHead::BadRequest),
                };
            }
            _ if target.starts_with('/') => target,
            _ => split_authority(target).ok_or(RefusedHead::BadRequest)?,
        };
        let (path, query) = match after_authority.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (after_authority, None),
        };
        if !path.bytes().all(is_path_byte) || !query.unwrap_or_default().bytes().all(is_query_byte)
        {
            return Err(RefusedHead::BadRequest);
        }
        self.path = Some(Span::of(path.as_bytes(), head));
        self.query = query.map(|query| Span::of(query.as_bytes(), head));
        Ok(())
    }

    fn check_fields(&mut self, fields: &[httparse::Header<'_>]) -> Result<(), RefusedHead> {
        let (mut hosts, mut has_length, mut has_coding) = (0, false, false);
        (self.has_body, self.asks_to_close, self.asks_to_keep_alive) = (false, false, false);
        for field in fields {
            let is = |name: &str| field.name.eq_ignore_ascii_case(name);
            match field.name.len() {
                4 if is("host") => {
                    hosts += 1;
                    if !is_host(field.value) {
                        return Err(RefusedHead::BadRequest);
                    }
                }
                14 if is("content-length") => {
                    if has_length {
                        return Err(RefusedHead::BadRequest);
                    }
                    has_length = true;
                    self.has_body |= content_length(field.value)? > 0;
                }
                17 if is("transfer-encoding") => {
                    if has_coding || !field.value.eq_ignore_ascii_case(b"chunked") {
                        return Err(RefusedHead::BadRequest);
                    }
                    (has_coding, self.has_body) = (true, true);
                }
                10 if is("connection") => {
                    for option in field.value.split(|byte| *byte == b',') {
                        let option = option.trim_ascii();
                        self.asks_to_close |= option.eq_ignore_ascii_case(b"close");
                        self.asks_to_keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                    }
                }
                _ => {}
            }
        }
        let is_host_missing = hosts == 0 && !self.is_http_1_0;
        let is_coding_unclear = has_coding && (has_length || self.is_http_1_0);
        match hosts > 1 || is_host_missing || is_coding_unclear {
            true => Err(RefusedHead::BadRequest),
            false => Ok(()),
        }
    }

    pub(super) fn version(&self) -> &'static str {
        match self.is_http_1_0 {
            true => "HTTP/1.0",
            false => "HTTP/1.1",
        }
    }

    pub(super) fn is_http_1_0(&self) -> bool {
        self.is_http_1_0
    }

    /// Whether the client is prepared to send another request on the connection.
    ///
    /// The body of a request is never read, because no response depends on it. A request with a
    /// body is therefore the last one of its connection, so that the body is not mistaken for the
    /// next request.
    pub(super) fn is_last(&self) -> bool {
        let closes = self.asks_to_close || self.is_http_1_0 && !self.asks_to_keep_alive;
        closes || self.has_body
    }
}

/// Parses a Content-Length: nothing but digits, of a number that other programs can represent, too.
fn content_length(value: &[u8]) -> Result<i64, RefusedHead> {
    let digits = str::from_utf8(value).ok();
    let digits = digits.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let length = digits.and_then(|text| text.parse().ok());
    length.ok_or(RefusedHead::BadRequest)
}

/// Whether a path may contain this byte. The same bytes are accepted as by hyper and the `http`
/// crate: those that need no escape, bytes of UTF-8, and some that clients send although they
/// should escape them. A `#` begins a fragment, which clients do not send.
fn is_path_byte(byte: u8) -> bool {
    matches!(
        byte,
        0x21..=0x22 | 0x24..=0x3B | 0x3D | 0x40..=0x5F | 0x61..=0x7E | 0x80..
    )
}

/// Like [`is_path_byte`], for a query.
fn is_query_byte(byte: u8) -> bool {
    matches!(byte, 0x21 | 0x24..=0x3B | 0x3D | 0x3F..=0x7E | 0x80..)
}

/// Returns the part of an absolute target that follows the authority: a path and perhaps a query,
/// or `/` if there is neither. Returns `None` if the target is malformed.
fn split_authority(target: &str) -> Option<&str> {
    let (scheme, rest) = target.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return None;
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    (is_authority(authority) && path.starts_with('/')).then_some(path)
}

/// Whether a target may have this authority. The `http` crate, and with it hyper, accepts less than
/// the grammar.
fn is_authority(text: &str) -> bool {
    is_host(text.as_bytes()) && Authority::try_from(text).is_ok()
}

/// Returns the error for a head whose version is not HTTP/1.0 or HTTP/1.1.
fn version_error(head: &[u8]) -> RefusedHead {
    let line = head.trim_ascii_start();
    let line = &line[..memchr::memchr(b'\r', line).unwrap_or(line.len())];
    let version = line.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
    match version {
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() && *major != b'1' =>
        {
            RefusedHead::UnsupportedVersion
        }
        _ => RefusedHead::BadRequest,
    }
}

/// A request head together with its bytes.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) head: &'a RequestHead,
    pub(super) bytes: &'a [u8],
}

impl<'a> Request<'a> {
    fn text(self, span: Span) -> &'a str {
        // Always valid: httparse has returned these bytes as a `str`.
        str::from_utf8(&self.bytes[span.range()]).unwrap_or_default()
    }

    pub(super) fn method(self) -> &'a [u8] {
        &self.bytes[self.head.method.range()]
    }

    /// Returns the target as it was received.
    pub(super) fn raw_target(self) -> &'a [u8] {
        &self.bytes[self.head.target.range()]
    }

    pub(super) fn target(self) -> RequestTarget<'a> {
        let path = self.head.path.map_or("*", |path| self.text(path));
        let query = self.head.query.map(|query| self.text(query));
        RequestTarget::new(self.text(self.head.method), path, query)
    }

    /// Returns the value of the first field with this name.
    pub(super) fn field(self, name: &str) -> Option<&'a [u8]> {
        let mut fields = self.fields();
        fields.find_map(|(other, value)| other.eq_ignore_ascii_case(name).then_some(value))
    }

    fn fields(self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let fields = &self.head.fields[..self.head.field_count];
        fields
            .iter()
            .map(move |(name, value)| (self.text(*name), &self.bytes[value.range()]))
    }

    /// Converts the request for [`ServeFiles::respond`](uncopied_http::ServeFiles::respond).
    pub(super) fn to_http(self) -> Option<http::Request<()>> {
        let target = self.target();
        let uri = match target.query {
            Some(query) => format!("{}?{query}", target.path),
            None => target.path.to_owned(),
        };
        let request = http::Request::builder().method(target.method).uri(uri);
        self.fields()
            .fold(request, |request, (name, value)| {
                request.header(name, value)
            })
            .body(())
            .ok()
    }
}

impl RequestFields for Request<'_> {
    fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.fields()
    }
}

/// A request head as this server reads it, for comparison with another parser.
#[doc(hidden)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedHead {
    /// The length of the head in bytes.
    pub length: usize,
    pub method: String,
    /// The path, or `*`.
    pub path: String,
    pub query: Option<String>,
    pub is_http_1_0: bool,
    /// Whether a body follows.
    pub has_body: bool,
    pub fields: Vec<(String, Vec<u8>)>,
}

/// Parses the head at the start of `bytes`. Returns `Ok(None)` if it is not complete, and the
/// status with which it is refused as the error.
#[doc(hidden)]
pub fn parse_head(bytes: &[u8]) -> Result<Option<ParsedHead>, u16> {
    let bytes = &bytes[..bytes.len().min(MAX_HEAD_BYTES)];
    let mut buffer = super::buffers::RequestBuffer::take(bytes);
    let parsed = buffer.parse();
    let outcome = match parsed {
        Err(refused) => Err(refused.status().as_u16()),
        Ok(false) => Ok(None),
        Ok(true) => Ok(buffer.request().map(|request| {
            let target = request.target();
            ParsedHead {
                length: request.bytes.len(),
                method: target.method.to_owned(),
                path: target.path.to_owned(),
                query: target.query.map(str::to_owned),
                is_http_1_0: request.head.is_http_1_0(),
                has_body: request.head.has_body,
                fields: request
                    .fields()
                    .map(|(name, value)| (name.to_owned(), value.to_vec()))
                    .collect(),
            }
        })),
    };
    buffer.give_back();
    outcome
}
