//! A response of the service, before it becomes an [`http::Response`] or bytes of HTTP/1.1.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use super::cache::entry::Entry;
use crate::body::FileBody;

/// A response of [`ServeFiles`](crate::ServeFiles), for a server that writes HTTP/1.1 itself.
#[derive(Debug)]
pub struct FileResponse {
    status: StatusCode,
    headers: Headers,
    pub(super) body: FileBody,
}

#[derive(Debug)]
enum Headers {
    /// Those of a response that sends this whole file.
    OfFile(Arc<Entry>),
    Other(HeaderMap),
}

impl FileResponse {
    pub(super) fn new(status: StatusCode, headers: HeaderMap, body: FileBody) -> Self {
        Self {
            status,
            headers: Headers::Other(headers),
            body,
        }
    }

    /// Creates a 200 response with the headers of a whole file.
    pub(super) fn whole(entry: Arc<Entry>, body: FileBody) -> Self {
        Self {
            status: StatusCode::OK,
            headers: Headers::OfFile(entry),
            body,
        }
    }

    /// Adds a header to those that the response has.
    pub(super) fn append(&mut self, name: HeaderName, value: HeaderValue) {
        if let Headers::OfFile(entry) = &self.headers {
            self.headers = Headers::Other(entry.headers.clone());
        }
        if let Headers::Other(headers) = &mut self.headers {
            headers.append(name, value);
        }
    }

    /// The status code.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Appends the header fields to `head`, each as a line that ends with CR LF. They include
    /// `Content-Length`, unless the status allows no body, but not `Date` or `Connection`, unless
    /// these are [configured](crate::ServeFilesBuilder::header).
    pub fn write_fields(&self, head: &mut Vec<u8>) {
        match &self.headers {
            Headers::OfFile(entry) => head.extend_from_slice(&entry.header_lines),
            Headers::Other(headers) => write_lines(headers, head),
        }
    }

    /// Returns the body. The response to HEAD has an empty one.
    #[must_use]
    pub fn into_body(self) -> FileBody {
        self.body
    }
}

impl From<FileResponse> for Response<FileBody> {
    fn from(response: FileResponse) -> Self {
        let mut http = Self::new(response.body);
        *http.status_mut() = response.status;
        *http.headers_mut() = match response.headers {
            Headers::OfFile(entry) => entry.headers.clone(),
            Headers::Other(headers) => headers,
        };
        http
    }
}

impl From<Response<FileBody>> for FileResponse {
    fn from(response: Response<FileBody>) -> Self {
        let (parts, body) = response.into_parts();
        Self::new(parts.status, parts.headers, body)
    }
}

/// Appends the headers as lines of HTTP/1.1.
pub(super) fn write_lines(headers: &HeaderMap<HeaderValue>, out: &mut Vec<u8>) {
    for (name, value) in headers {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}
