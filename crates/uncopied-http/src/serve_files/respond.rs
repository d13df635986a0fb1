//! Method → preconditions → range → response.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, ACCEPT_RANGES, ALLOW, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_TYPE, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_UNMODIFIED_SINCE, LOCATION, RANGE,
    RETRY_AFTER,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri, Version};

use super::cache::entry::Entry;
use super::listing;
use super::multipart::{Multipart, content_range};
use super::request::conditional::{self, Verdict};
use super::request::negotiate;
use super::request::range::{self, Selected};
use super::resolve::root::Stop;
use super::site::{Chosen, Shared, Target};
use crate::body::{Basis, FileBody};
use crate::open_file::Wait;

/// The methods that are answered.
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS");

/// The disk would be needed, and the caller may not wait for it.
pub(super) struct WouldBlock;

/// The parts of a request that an answer depends on.
#[derive(Clone, Copy)]
pub(super) struct Ask<'a> {
    pub(super) method: &'a Method,
    pub(super) uri: &'a Uri,
    pub(super) version: Version,
    pub(super) headers: &'a HeaderMap,
}

impl<'a> Ask<'a> {
    pub(super) fn of(parts: &'a Parts) -> Self {
        let Parts {
            method,
            uri,
            version,
            headers,
            ..
        } = parts;
        Self {
            method,
            uri,
            version: *version,
            headers,
        }
    }
}

/// Which kinds of header fields a request has. One pass over them costs less than a look-up each.
#[derive(Default)]
struct Fields {
    conditional: bool,
    range: bool,
    encoding: bool,
}

impl Fields {
    fn of(headers: &HeaderMap) -> Self {
        let mut fields = Self::default();
        for name in headers.keys() {
            match *name {
                ACCEPT_ENCODING => fields.encoding = true,
                RANGE => fields.range = true,
                IF_MATCH | IF_NONE_MATCH | IF_MODIFIED_SINCE | IF_UNMODIFIED_SINCE => {
                    fields.conditional = true;
                }
                _ => {}
            }
        }
        fields
    }
}

impl Shared {
    /// The file in the cache that a request may be for. Whether that is still true is not known.
    pub(super) fn cached(&self, parts: &Parts) -> Option<Arc<Entry>> {
        let is_for_bytes = matches!(parts.method, Method::GET | Method::HEAD);
        is_for_bytes.then(|| self.cache.peek(parts.uri.path().as_bytes()))?
    }

    /// The answer to a request. `current` is the file that its path leads to, if that is known.
    pub(super) fn answer(
        self: &Arc<Self>,
        ask: Ask<'_>,
        current: Option<Arc<Entry>>,
        wait: Wait,
    ) -> Result<Response<FileBody>, WouldBlock> {
        let head = *ask.method == Method::HEAD;
        let answer = if head || *ask.method == Method::GET {
            self.target(ask, current, head, wait)
        } else if *ask.method == Method::OPTIONS {
            Ok(self.bare(StatusCode::NO_CONTENT, [(ALLOW, METHODS)]))
        } else {
            self.error(
                StatusCode::METHOD_NOT_ALLOWED,
                [(ALLOW, METHODS)],
                head,
                wait,
            )
        };
        let answer = match answer {
            Err(Stop::Status(status)) => {
                let later = status == StatusCode::SERVICE_UNAVAILABLE;
                let later = later.then_some((RETRY_AFTER, HeaderValue::from_static("1")));
                self.error(status, later, head, wait)
            }
            answer => answer,
        };
        // `error` answers with a status itself, so only one thing can have stopped it.
        let answer = answer.map_err(|_| WouldBlock)?;
        // What an HTTP/2 connection does with a body is not this server's promise to make.
        let is_direct = self.config.direct && ask.version <= Version::HTTP_11;
        Ok(match is_direct {
            true => answer.map(FileBody::direct),
            false => answer,
        })
    }

    fn target(
        self: &Arc<Self>,
        ask: Ask<'_>,
        current: Option<Arc<Entry>>,
        head: bool,
        wait: Wait,
    ) -> Result<Response<FileBody>, Stop> {
        let target = match current {
            Some(entry) => Ok(Target::File(entry)),
            None => self.find(ask.uri.path(), wait),
        };
        match target {
            Ok(Target::File(entry)) => self.file(entry, ask.headers, head, wait),
            Ok(Target::NoSlash(asked)) => {
                let location = HeaderValue::try_from(asked.with_slash(ask.uri.query()))
                    .map_err(|_| StatusCode::BAD_REQUEST)?;
                let headers = [(LOCATION, location), (CONTENT_LENGTH, 0.into())];
                Ok(self.bare(StatusCode::MOVED_PERMANENTLY, headers))
            }
            Ok(Target::Listing(asked, dir)) => {
                let json = negotiate::prefers_json(ask.headers.get_all(ACCEPT));
                let listing = listing::make(&self.root, &asked, dir, self.config.hidden, json)
                    .map_err(|error| Stop::of(&error, wait))?;
                let (headers, text) = listing.into_parts();
                Ok(self.text(StatusCode::OK, headers, text.into(), head))
            }
            Err(Stop::NOT_FOUND) => match &self.config.fallback {
                Some(page) if wants_page(ask) => {
                    let entry = self.page(page, wait)?;
                    let answer = self.file(entry, ask.headers, head, wait)?;
                    // It stands on a file that is not there.
                    Ok(answer.map(|body| body.on_basis(None)))
                }
                _ => Err(Stop::NOT_FOUND),
            },
            Err(stop) => Err(stop),
        }
    }

    /// Answers with a file, or with what the preconditions and the range make of it.
    fn file(
        self: &Arc<Self>,
        entry: Arc<Entry>,
        headers: &HeaderMap,
        head: bool,
        wait: Wait,
    ) -> Result<Response<FileBody>, Stop> {
        let fields = Fields::of(headers);
        let (entry, chosen) = if fields.encoding {
            self.negotiated(entry, headers, wait)?
        } else {
            (entry, Chosen::Itself)
        };
        if fields.conditional {
            match conditional::check(headers, entry.validators()) {
                Verdict::Send => {}
                Verdict::NotModified => return Ok(not_modified(&entry)),
                Verdict::Failed => return Err(StatusCode::PRECONDITION_FAILED.into()),
            }
        }
        if fields.range && !head && conditional::range_counts(headers, entry.validators()) {
            let mut lines = headers.get_all(RANGE).iter();
            if let (Some(line), None) = (lines.next(), lines.next()) {
                match range::select(line.as_bytes(), entry.len()) {
                    Selected::Whole => {}
                    Selected::One(range) => return Ok(self.one_range(&entry, range)),
                    Selected::Several(ranges) => return Ok(self.several_ranges(&entry, ranges)),
                    Selected::Unsatisfiable => return self.unsatisfiable(&entry, wait),
                }
            }
        }
        let body = if head {
            FileBody::empty()
        } else {
            let basis = Basis::of(&entry, chosen);
            body(&entry, 0..entry.len()).on_basis(basis)
        };
        Ok(response(StatusCode::OK, entry.headers.clone(), body))
    }

    fn one_range(&self, entry: &Entry, range: Range<u64>) -> Response<FileBody> {
        let mut headers = entry.headers.clone();
        headers.insert(CONTENT_LENGTH, (range.end - range.start).into());
        set(
            &mut headers,
            CONTENT_RANGE,
            content_range(&range, entry.len()),
        );
        response(StatusCode::PARTIAL_CONTENT, headers, body(entry, range))
    }

    fn several_ranges(&self, entry: &Entry, ranges: Vec<Range<u64>>) -> Response<FileBody> {
        let multipart = Multipart::new(&entry.file, ranges, &entry.media);
        let mut headers = entry.headers.clone();
        headers.insert(CONTENT_LENGTH, multipart.len.into());
        set(&mut headers, CONTENT_TYPE, multipart.media());
        response(StatusCode::PARTIAL_CONTENT, headers, multipart.body)
    }

    fn unsatisfiable(&self, entry: &Entry, wait: Wait) -> Result<Response<FileBody>, Stop> {
        let mut headers = HeaderMap::new();
        set(
            &mut headers,
            CONTENT_RANGE,
            format!("bytes */{}", entry.len()),
        );
        let headers = headers
            .remove(CONTENT_RANGE)
            .map(|value| (CONTENT_RANGE, value));
        self.error(StatusCode::RANGE_NOT_SATISFIABLE, headers, false, wait)
    }

    /// An error: with the body of its page if there is one, else with one line of text.
    fn error(
        &self,
        status: StatusCode,
        headers: impl IntoIterator<Item = (HeaderName, HeaderValue)>,
        head: bool,
        wait: Wait,
    ) -> Result<Response<FileBody>, Stop> {
        let page = self
            .config
            .error_pages
            .iter()
            .find(|(for_status, _)| *for_status == status);
        let entry = match page.map(|(_, page)| self.page(page, wait)) {
            Some(Ok(entry)) => entry,
            Some(Err(Stop::WouldBlock)) => return Err(Stop::WouldBlock),
            // A page that cannot be had must not hide the error that it is for.
            Some(Err(Stop::Status(_))) | None => {
                let media = HeaderValue::from_static("text/plain; charset=utf-8");
                let headers = headers.into_iter().chain([(CONTENT_TYPE, media)]);
                return Ok(self.text(status, headers, format!("{status}\n").into(), head));
            }
        };
        let of_page = [
            (CONTENT_TYPE, entry.media.clone()),
            (CONTENT_LENGTH, entry.len().into()),
        ];
        let mut answer = self.bare(status, headers.into_iter().chain(of_page));
        if !head {
            *answer.body_mut() = body(&entry, 0..entry.len());
        }
        Ok(answer)
    }

    fn text(
        &self,
        status: StatusCode,
        headers: impl IntoIterator<Item = (HeaderName, HeaderValue)>,
        text: Bytes,
        head: bool,
    ) -> Response<FileBody> {
        let mut answer = self.bare(status, headers);
        answer
            .headers_mut()
            .insert(CONTENT_LENGTH, text.len().into());
        if !head {
            *answer.body_mut() = FileBody::from_bytes(text);
        }
        answer
    }

    /// An answer without a body, with the headers that all answers have.
    fn bare(
        &self,
        status: StatusCode,
        headers: impl IntoIterator<Item = (HeaderName, HeaderValue)>,
    ) -> Response<FileBody> {
        let mut headers: HeaderMap = headers.into_iter().collect();
        self.config.headers.decorate(&mut headers);
        response(status, headers, FileBody::empty())
    }
}

fn body(entry: &Entry, range: Range<u64>) -> FileBody {
    FileBody::from_file(Arc::clone(&entry.file), range)
}

/// 304, with what a 200 would say about caching (RFC 9110 §15.4.5) and nothing about a body.
fn not_modified(entry: &Entry) -> Response<FileBody> {
    let mut headers = entry.headers.clone();
    for name in [
        CONTENT_TYPE,
        CONTENT_LENGTH,
        CONTENT_ENCODING,
        ACCEPT_RANGES,
    ] {
        headers.remove(name);
    }
    response(StatusCode::NOT_MODIFIED, headers, FileBody::empty())
}

fn response(status: StatusCode, headers: HeaderMap, body: FileBody) -> Response<FileBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// Sets a field to text that this module has put together from digits and media types.
fn set(headers: &mut HeaderMap, name: HeaderName, text: String) {
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(name, value);
    }
}

/// Whether a missing file should be answered with the page of a single-page application.
fn wants_page(ask: Ask<'_>) -> bool {
    let name = ask.uri.path().rsplit('/').next().unwrap_or_default();
    !name.contains('.') || negotiate::names_html(ask.headers.get_all(ACCEPT))
}
