//! Builds the response to a request: checks the method, then the preconditions, then the range.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, ACCEPT_RANGES, ALLOW, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_TYPE, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_UNMODIFIED_SINCE, LOCATION, RANGE,
    RETRY_AFTER,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};

use super::cache::entry::Entry;
use super::listing;
use super::multipart::{Multipart, content_range};
use super::request::conditional::{self, PreconditionOutcome};
use super::request::negotiate;
use super::request::range::{self, RangeSelection};
use super::resolve::root::ResolveError;
use super::site::{Negotiation, ResolvedTarget, Site};
use crate::body::{Basis, FileBody};
use crate::open_file::DiskAccess;

/// The value of `Allow`.
const ALLOWED_METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS");

/// The error for a response that cannot be made without reading from disk, although the caller must
/// not wait for the disk ([`DiskAccess::CachedOnly`]).
pub(super) struct NeedsDisk;

/// Returns the response to a request. `current` is the cache entry of the requested file, if the
/// caller has already found the entry and checked that it is current.
pub(super) fn respond(
    site: &Site,
    request: &Parts,
    current: Option<Arc<Entry>>,
    access: DiskAccess,
) -> Result<Response<FileBody>, NeedsDisk> {
    let responder = Responder {
        site,
        request,
        is_head: request.method == Method::HEAD,
        access,
    };
    responder.respond(current)
}

/// Makes the response to one request.
struct Responder<'a> {
    site: &'a Site,
    request: &'a Parts,
    is_head: bool,
    access: DiskAccess,
}

/// The presence of the header fields that affect the response for a file. Determined in a single
/// pass over all fields, which is cheaper than looking up each field by name.
#[derive(Default)]
struct FieldKinds {
    conditional: bool,
    range: bool,
    encoding: bool,
}

impl FieldKinds {
    fn of(headers: &HeaderMap) -> Self {
        let mut kinds = Self::default();
        for name in headers.keys() {
            match *name {
                ACCEPT_ENCODING => kinds.encoding = true,
                RANGE => kinds.range = true,
                IF_MATCH | IF_NONE_MATCH | IF_MODIFIED_SINCE | IF_UNMODIFIED_SINCE => {
                    kinds.conditional = true;
                }
                _ => {}
            }
        }
        kinds
    }
}

impl Responder<'_> {
    fn respond(&self, current: Option<Arc<Entry>>) -> Result<Response<FileBody>, NeedsDisk> {
        let response = if self.is_head || self.request.method == Method::GET {
            self.target(current)
        } else if self.request.method == Method::OPTIONS {
            Ok(self.without_body(StatusCode::NO_CONTENT, [(ALLOW, ALLOWED_METHODS)]))
        } else {
            self.error(StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, ALLOWED_METHODS)])
        };
        let response = match response {
            Err(ResolveError::Status(status)) => {
                let is_temporary = status == StatusCode::SERVICE_UNAVAILABLE;
                let retry = is_temporary.then_some((RETRY_AFTER, HeaderValue::from_static("1")));
                self.error(status, retry)
            }
            response => response,
        };
        // The only remaining error is `NeedsDisk`, because `self.error` has turned every `Status`
        // into a response.
        let response = response.map_err(|_| NeedsDisk)?;
        Ok(response)
    }

    fn target(&self, current: Option<Arc<Entry>>) -> Result<Response<FileBody>, ResolveError> {
        let uri = &self.request.uri;
        let target = match current {
            Some(entry) => Ok(ResolvedTarget::File(entry)),
            None => self.site.find(uri.path(), self.access),
        };
        match target {
            Ok(ResolvedTarget::File(entry)) => self.file(entry),
            Ok(ResolvedTarget::MissingSlash(path)) => {
                let location = HeaderValue::try_from(path.with_slash(uri.query()))
                    .map_err(|_| StatusCode::BAD_REQUEST)?;
                let headers = [(LOCATION, location), (CONTENT_LENGTH, 0.into())];
                Ok(self.without_body(StatusCode::MOVED_PERMANENTLY, headers))
            }
            Ok(ResolvedTarget::Listing(path, dir)) => {
                let json = negotiate::prefers_json(self.request.headers.get_all(ACCEPT));
                let Site { root, config, .. } = self.site;
                let listing = listing::list(root, &path, dir, config.hidden, json)
                    .map_err(|error| ResolveError::from_io(&error, self.access))?;
                let (headers, text) = listing.into_parts();
                Ok(self.text(StatusCode::OK, headers, text.into()))
            }
            Err(ResolveError::NOT_FOUND) => match &self.site.config.fallback {
                Some(page) if self.wants_fallback() => {
                    let entry = self.site.page(page, self.access)?;
                    let response = self.file(entry)?;
                    // Remove the basis, because `Basis::check` would not detect that the requested
                    // file has been created since. A server could then repeat the fallback page
                    // although it should send the file.
                    Ok(response.map(|body| body.with_basis(None)))
                }
                _ => Err(ResolveError::NOT_FOUND),
            },
            Err(error) => Err(error),
        }
    }

    /// Whether this request for a missing file gets the fallback page instead of a 404. It does if
    /// the path looks like a page rather than a file, because its last name has no dot, or if the
    /// client asks for HTML by name. So a missing script or image still gets a 404.
    fn wants_fallback(&self) -> bool {
        let path = self.request.uri.path();
        let name = path.rsplit('/').next().unwrap_or_default();
        !name.contains('.') || negotiate::names_html(self.request.headers.get_all(ACCEPT))
    }

    /// Returns the response for a file: chooses a precompressed file, checks the preconditions, and
    /// applies the range.
    fn file(&self, entry: Arc<Entry>) -> Result<Response<FileBody>, ResolveError> {
        let headers = &self.request.headers;
        let kinds = FieldKinds::of(headers);
        let (entry, negotiation) = if kinds.encoding {
            self.site.negotiate(entry, headers, self.access)?
        } else {
            (entry, Negotiation::NotNeeded)
        };
        if kinds.conditional {
            match conditional::check(headers, entry.validators()) {
                PreconditionOutcome::Proceed => {}
                PreconditionOutcome::NotModified => return Ok(not_modified(&entry)),
                PreconditionOutcome::Failed => return Err(StatusCode::PRECONDITION_FAILED.into()),
            }
        }
        let validators = entry.validators();
        if kinds.range && !self.is_head && conditional::range_applies(headers, validators) {
            let mut lines = headers.get_all(RANGE).iter();
            if let (Some(line), None) = (lines.next(), lines.next()) {
                match range::select(line.as_bytes(), entry.len()) {
                    RangeSelection::Whole => {}
                    RangeSelection::One(range) => return Ok(one_range(&entry, range)),
                    RangeSelection::Several(ranges) => return Ok(several_ranges(&entry, ranges)),
                    RangeSelection::Unsatisfiable => return self.unsatisfiable(&entry),
                }
            }
        }
        let body = if self.is_head {
            FileBody::empty()
        } else {
            let basis = Basis::of(&entry, negotiation);
            file_body(&entry, 0..entry.len()).with_basis(basis)
        };
        Ok(response(StatusCode::OK, entry.headers.clone(), body))
    }

    fn unsatisfiable(&self, entry: &Entry) -> Result<Response<FileBody>, ResolveError> {
        let mut headers = HeaderMap::new();
        set(
            &mut headers,
            CONTENT_RANGE,
            format!("bytes */{}", entry.len()),
        );
        let headers = headers
            .remove(CONTENT_RANGE)
            .map(|value| (CONTENT_RANGE, value));
        self.error(StatusCode::RANGE_NOT_SATISFIABLE, headers)
    }

    /// Returns an error response. Its body is the page configured for `status`, or one line of text
    /// if there is no such page.
    fn error(
        &self,
        status: StatusCode,
        headers: impl IntoIterator<Item = (HeaderName, HeaderValue)>,
    ) -> Result<Response<FileBody>, ResolveError> {
        let pages = &self.site.config.error_pages;
        let page = pages.iter().find(|(for_status, _)| *for_status == status);
        let entry = match page.map(|(_, page)| self.site.page(page, self.access)) {
            Some(Ok(entry)) => entry,
            Some(Err(ResolveError::NeedsDisk)) => return Err(ResolveError::NeedsDisk),
            // If the page cannot be opened, report the original error as plain text.
            Some(Err(ResolveError::Status(_))) | None => {
                let media_type = HeaderValue::from_static("text/plain; charset=utf-8");
                let headers = headers.into_iter().chain([(CONTENT_TYPE, media_type)]);
                return Ok(self.text(status, headers, format!("{status}\n").into()));
            }
        };
        let of_page = [
            (CONTENT_TYPE, entry.media_type.clone()),
            (CONTENT_LENGTH, entry.len().into()),
        ];
        let mut response = self.without_body(status, headers.into_iter().chain(of_page));
        if !self.is_head {
            *response.body_mut() = file_body(&entry, 0..entry.len());
        }
        Ok(response)
    }

    fn text(
        &self,
        status: StatusCode,
        headers: impl IntoIterator<Item = (HeaderName, HeaderValue)>,
        text: Bytes,
    ) -> Response<FileBody> {
        let mut response = self.without_body(status, headers);
        response
            .headers_mut()
            .insert(CONTENT_LENGTH, text.len().into());
        if !self.is_head {
            *response.body_mut() = FileBody::from_bytes(text);
        }
        response
    }

    /// Returns a response with no body. Its headers are the given ones and those configured for all
    /// responses.
    fn without_body(
        &self,
        status: StatusCode,
        headers: impl IntoIterator<Item = (HeaderName, HeaderValue)>,
    ) -> Response<FileBody> {
        let mut headers: HeaderMap = headers.into_iter().collect();
        self.site.config.headers.apply(&mut headers);
        response(status, headers, FileBody::empty())
    }
}

fn one_range(entry: &Entry, range: Range<u64>) -> Response<FileBody> {
    let mut headers = entry.headers.clone();
    headers.insert(CONTENT_LENGTH, (range.end - range.start).into());
    set(
        &mut headers,
        CONTENT_RANGE,
        content_range(&range, entry.len()),
    );
    let body = file_body(entry, range);
    response(StatusCode::PARTIAL_CONTENT, headers, body)
}

fn several_ranges(entry: &Entry, ranges: Vec<Range<u64>>) -> Response<FileBody> {
    let multipart = Multipart::new(&entry.file, ranges, &entry.media_type);
    let mut headers = entry.headers.clone();
    headers.insert(CONTENT_LENGTH, multipart.len.into());
    set(&mut headers, CONTENT_TYPE, multipart.content_type());
    response(StatusCode::PARTIAL_CONTENT, headers, multipart.body)
}

/// Returns a 304 response with the headers that a 200 would have (RFC 9110 §15.4.5), except for
/// those that describe the body.
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

fn file_body(entry: &Entry, range: Range<u64>) -> FileBody {
    FileBody::from_file(Arc::clone(&entry.file), range)
}

fn response(status: StatusCode, headers: HeaderMap, body: FileBody) -> Response<FileBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// Sets a header to `text`, which is always a valid header value, because this module composes it
/// from fixed text, numbers and media types.
fn set(headers: &mut HeaderMap, name: HeaderName, text: String) {
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(name, value);
    }
}
