//! Builds the response to a request: checks the method, then the preconditions, then the range.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, ACCEPT_RANGES, ALLOW, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_TYPE, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_UNMODIFIED_SINCE, LOCATION, RANGE,
    RETRY_AFTER, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::cache::entry::Entry;
use super::file_response::FileResponse;
use super::listing;
use super::multipart::{Multipart, content_range};
use super::request::conditional::{self, PreconditionOutcome};
use super::request::fields::RequestFields;
use super::request::negotiate;
use super::request::range::{self, RangeSelection};
use super::resolve::path::RequestPath;
use super::resolve::root::ResolveError;
use super::site::{ResolvedTarget, Site};
use crate::body::FileBody;
use crate::open_file::DiskAccess;

/// The value of `Allow`.
const ALLOWED_METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS");

/// The value of `Vary` if the response depends on `Accept`.
const ACCEPT_IN_VARY: HeaderValue = HeaderValue::from_static("accept");

/// The error for a response that cannot be made without waiting for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeedsDisk;

/// What a request asks for: its method, and the path and the query of its target.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RequestTarget<'a> {
    /// The method, such as `GET`.
    pub method: &'a str,
    /// The path as it was received, with its percent escapes.
    pub path: &'a str,
    /// The part after the `?`.
    pub query: Option<&'a str>,
}

impl<'a> RequestTarget<'a> {
    /// Creates a target from its parts.
    #[must_use]
    pub fn new(method: &'a str, path: &'a str, query: Option<&'a str>) -> Self {
        Self {
            method,
            path,
            query,
        }
    }
}

/// Returns the response to a request. `current` is the cache entry of the requested file, if the
/// caller has already found the entry and checked that it is current. `mount` is the place at which
/// a router has mounted the service, if the request must be redirected from there.
pub(super) fn respond(
    site: &Site,
    target: RequestTarget<'_>,
    fields: &impl RequestFields,
    mount: Option<RequestPath>,
    current: Option<Arc<Entry>>,
    access: DiskAccess,
) -> Result<FileResponse, NeedsDisk> {
    let responder = Responder {
        site,
        target,
        fields,
        mount,
        is_head: target.method == "HEAD",
        access,
    };
    responder.respond(current)
}

/// Returns the response to a request that could not be parsed.
pub(super) fn error_response(site: &Site, status: StatusCode) -> FileResponse {
    let responder = Responder {
        site,
        target: RequestTarget::new("GET", "", None),
        fields: &HeaderMap::new(),
        mount: None,
        is_head: false,
        access: DiskAccess::CachedOnly,
    };
    let response = responder.error(status, None);
    response.unwrap_or_else(|_| responder.error_text(status, None))
}

/// Makes the response to one request.
struct Responder<'a, F> {
    site: &'a Site,
    target: RequestTarget<'a>,
    fields: &'a F,
    /// See [`mounted::path_without_slash`](super::mounted::path_without_slash).
    mount: Option<RequestPath>,
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
    fn of(fields: &impl RequestFields) -> Self {
        let mut kinds = Self::default();
        for (name, _) in fields.iter() {
            // Comparing the lengths first rules out most names.
            let is = |other: HeaderName| name.eq_ignore_ascii_case(other.as_str());
            match name.len() {
                5 => kinds.range |= is(RANGE),
                15 => kinds.encoding |= is(ACCEPT_ENCODING),
                8 => kinds.conditional |= is(IF_MATCH),
                13 => kinds.conditional |= is(IF_NONE_MATCH),
                17 => kinds.conditional |= is(IF_MODIFIED_SINCE),
                19 => kinds.conditional |= is(IF_UNMODIFIED_SINCE),
                _ => {}
            }
        }
        kinds
    }
}

impl<F: RequestFields> Responder<'_, F> {
    fn respond(&self, current: Option<Arc<Entry>>) -> Result<FileResponse, NeedsDisk> {
        let response = if self.is_head || self.target.method == "GET" {
            self.get(current)
        } else if self.target.method == "OPTIONS" {
            Ok(self.without_body(StatusCode::NO_CONTENT, [(ALLOW, ALLOWED_METHODS)]))
        } else {
            self.error(StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, ALLOWED_METHODS)])
        };
        let response = match response {
            Err(ResolveError::Status(status)) => {
                let is_temporary = status == StatusCode::SERVICE_UNAVAILABLE;
                let retry = is_temporary.then_some((RETRY_AFTER, HeaderValue::from_static("1")));
                // With another `Accept`, the response could have been the fallback page.
                let has_fallback = self.site.config.fallback.is_some();
                let vary = has_fallback && status == StatusCode::NOT_FOUND;
                let vary = vary.then_some((VARY, ACCEPT_IN_VARY));
                self.error(status, retry.into_iter().chain(vary))
            }
            response => response,
        };
        // The only remaining error is `NeedsDisk`, because `self.error` has turned every `Status`
        // into a response.
        response.map_err(|_| NeedsDisk)
    }

    fn get(&self, current: Option<Arc<Entry>>) -> Result<FileResponse, ResolveError> {
        let target = match current {
            Some(entry) => Ok(ResolvedTarget::File(entry)),
            None => self.site.find(self.target.path, self.access),
        };
        let mount = self.mount.as_ref().filter(|_| self.site.single.is_none());
        let is_served = matches!(
            target,
            Ok(ResolvedTarget::File(_) | ResolvedTarget::Listing(..))
        );
        if let Some(path) = mount.filter(|_| is_served) {
            return self.redirect(path);
        }
        match target {
            Ok(ResolvedTarget::File(entry)) => self.file(entry),
            Ok(ResolvedTarget::MissingSlash(path)) => self.redirect(&path),
            Ok(ResolvedTarget::Listing(path, dir)) => {
                let json = negotiate::prefers_json(self.fields.values(&ACCEPT));
                let Site { root, config, .. } = self.site;
                let listing = listing::list(root, &path, dir, config.hidden, json)
                    .map_err(|error| ResolveError::from_io(&error, self.access))?;
                let (headers, text) = listing.into_parts();
                Ok(self.text(StatusCode::OK, headers, text.into()))
            }
            Err(ResolveError::NOT_FOUND) => match &self.site.config.fallback {
                Some(page) if self.wants_fallback() => {
                    let entry = self.site.page(page, self.access)?;
                    let mut response = self.file(entry)?;
                    response.append(VARY, ACCEPT_IN_VARY);
                    Ok(response)
                }
                _ => Err(ResolveError::NOT_FOUND),
            },
            Err(error) => Err(error),
        }
    }

    /// Redirects to `path` with a slash at its end.
    fn redirect(&self, path: &RequestPath) -> Result<FileResponse, ResolveError> {
        let location = HeaderValue::try_from(path.with_slash(self.target.query))
            .map_err(|_| StatusCode::BAD_REQUEST)?;
        let headers = [(LOCATION, location), (CONTENT_LENGTH, 0.into())];
        Ok(self.without_body(StatusCode::MOVED_PERMANENTLY, headers))
    }

    /// Whether this request for a missing file gets the fallback page instead of a 404. It does if
    /// the path looks like a page rather than a file, because its last name has no dot, or if the
    /// client asks for HTML by name. So a missing script or image still gets a 404.
    fn wants_fallback(&self) -> bool {
        let path = self.target.path;
        let name = path.rsplit('/').next().unwrap_or_default();
        !name.contains('.') || negotiate::names_html(self.fields.values(&ACCEPT))
    }

    /// Returns the response for a file: chooses a precompressed file, checks the preconditions, and
    /// applies the range.
    fn file(&self, entry: Arc<Entry>) -> Result<FileResponse, ResolveError> {
        let fields = self.fields;
        let kinds = FieldKinds::of(fields);
        let entry = if kinds.encoding {
            self.site.negotiate(entry, fields, self.access)?
        } else {
            entry
        };
        if kinds.conditional {
            match conditional::check(fields, entry.validators()) {
                PreconditionOutcome::Proceed => {}
                PreconditionOutcome::NotModified => return Ok(not_modified(&entry)),
                PreconditionOutcome::Failed => return Err(StatusCode::PRECONDITION_FAILED.into()),
            }
        }
        let validators = entry.validators();
        if kinds.range && !self.is_head && conditional::range_applies(fields, validators) {
            let mut lines = fields.values(&RANGE);
            if let (Some(line), None) = (lines.next(), lines.next()) {
                match range::select(line, entry.len()) {
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
            file_body(&entry, 0..entry.len())
        };
        Ok(FileResponse::whole(entry, body))
    }

    fn unsatisfiable(&self, entry: &Entry) -> Result<FileResponse, ResolveError> {
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
    ) -> Result<FileResponse, ResolveError> {
        let pages = &self.site.config.error_pages;
        let page = pages.iter().find(|(for_status, _)| *for_status == status);
        let entry = match page.map(|(_, page)| self.site.page(page, self.access)) {
            Some(Ok(entry)) => entry,
            Some(Err(ResolveError::NeedsDisk)) => return Err(ResolveError::NeedsDisk),
            // If the page cannot be opened, report the original error as plain text.
            Some(Err(ResolveError::Status(_))) | None => {
                return Ok(self.error_text(status, headers));
            }
        };
        let of_page = [
            (CONTENT_TYPE, entry.media_type.clone()),
            (CONTENT_LENGTH, entry.len().into()),
        ];
        let mut response = self.without_body(status, headers.into_iter().chain(of_page));
        if !self.is_head {
            response.body = file_body(&entry, 0..entry.len());
        }
        Ok(response)
    }

    fn error_text(
        &self,
        status: StatusCode,
        headers: impl IntoIterator<Item = (HeaderName, HeaderValue)>,
    ) -> FileResponse {
        let media_type = HeaderValue::from_static("text/plain; charset=utf-8");
        let headers = headers.into_iter().chain([(CONTENT_TYPE, media_type)]);
        self.text(status, headers, format!("{status}\n").into())
    }

    fn text(
        &self,
        status: StatusCode,
        headers: impl IntoIterator<Item = (HeaderName, HeaderValue)>,
        text: Bytes,
    ) -> FileResponse {
        let length = (CONTENT_LENGTH, text.len().into());
        let mut response = self.without_body(status, headers.into_iter().chain([length]));
        if !self.is_head {
            response.body = FileBody::from_bytes(text);
        }
        response
    }

    /// Returns a response with no body. Its headers are the given ones and those configured for all
    /// responses.
    fn without_body(
        &self,
        status: StatusCode,
        headers: impl IntoIterator<Item = (HeaderName, HeaderValue)>,
    ) -> FileResponse {
        let mut headers: HeaderMap = headers.into_iter().collect();
        self.site.config.headers.apply(&mut headers);
        FileResponse::new(status, headers, FileBody::empty())
    }
}

fn one_range(entry: &Entry, range: Range<u64>) -> FileResponse {
    let mut headers = entry.headers.clone();
    headers.insert(CONTENT_LENGTH, (range.end - range.start).into());
    set(
        &mut headers,
        CONTENT_RANGE,
        content_range(&range, entry.len()),
    );
    let body = file_body(entry, range);
    FileResponse::new(StatusCode::PARTIAL_CONTENT, headers, body)
}

fn several_ranges(entry: &Entry, ranges: Vec<Range<u64>>) -> FileResponse {
    let multipart = Multipart::new(&entry.file, ranges, &entry.media_type);
    let mut headers = entry.headers.clone();
    headers.insert(CONTENT_LENGTH, multipart.len.into());
    set(&mut headers, CONTENT_TYPE, multipart.content_type());
    FileResponse::new(StatusCode::PARTIAL_CONTENT, headers, multipart.body)
}

/// Returns a 304 response with the headers that a 200 would have (RFC 9110 §15.4.5), except for
/// those that describe the body.
fn not_modified(entry: &Entry) -> FileResponse {
    let mut headers = entry.headers.clone();
    for name in [
        CONTENT_TYPE,
        CONTENT_LENGTH,
        CONTENT_ENCODING,
        ACCEPT_RANGES,
    ] {
        headers.remove(name);
    }
    FileResponse::new(StatusCode::NOT_MODIFIED, headers, FileBody::empty())
}

fn file_body(entry: &Entry, range: Range<u64>) -> FileBody {
    FileBody::from_file(Arc::clone(&entry.file), range)
}

/// Sets a header to `text`, which is always a valid header value, because this module composes it
/// from fixed text, numbers and media types.
fn set(headers: &mut HeaderMap, name: HeaderName, text: String) {
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(name, value);
    }
}
