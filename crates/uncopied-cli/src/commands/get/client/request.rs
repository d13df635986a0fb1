//! The bytes of a request.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue, header};
use percent_encoding::percent_decode_str;
use url::{Position, Url};

use super::Wanted;

/// Headers that are not sent to another origin if a server redirects there.
const SECRETS: [HeaderName; 2] = [header::AUTHORIZATION, header::COOKIE];

/// How a request reaches its server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Route<'a> {
    /// The proxy that passes plain requests on. Within a tunnel there is none.
    pub(super) proxy: Option<&'a Url>,
    /// Whether the server is not the one that the user named.
    pub(super) is_foreign: bool,
}

/// Returns the head of a GET or HEAD request.
pub(super) fn request(
    url: &Url,
    wanted: &Wanted<'_>,
    headers: &[(HeaderName, HeaderValue)],
    route: Route<'_>,
) -> Vec<u8> {
    let mut lines = Lines(Vec::with_capacity(512));
    let method = if wanted.only_head { "HEAD" } else { "GET" };
    let target = &url[Position::BeforePath..Position::AfterQuery];
    let origin = match route.proxy {
        Some(_) => format!("http://{}", authority(url)),
        None => String::new(),
    };
    lines.add(&[method, " ", &origin, target, " HTTP/1.1"]);
    let is_given = |name: &HeaderName| headers.iter().any(|(given, _)| given == name);
    if !is_given(&header::HOST) || route.is_foreign {
        lines.add(&["Host: ", authority(url)]);
    }
    let agent = concat!("uncopied/", env!("CARGO_PKG_VERSION"));
    for (name, value) in [
        (header::USER_AGENT, agent),
        (header::ACCEPT, "*/*"),
        // The bytes are saved as they are: a coding would be part of the file.
        (header::ACCEPT_ENCODING, "identity"),
    ] {
        if !is_given(&name) {
            lines.add(&[name.as_str(), ": ", value]);
        }
    }
    if let Some(credentials) = basic(url)
        && !is_given(&header::AUTHORIZATION)
    {
        lines.add(&["Authorization: ", &credentials]);
    }
    if let Some(credentials) = route.proxy.and_then(basic) {
        lines.add(&["Proxy-Authorization: ", &credentials]);
    }
    if let Some((first, end)) = wanted.range {
        let last = end.map_or_else(String::new, |end| (end - 1).to_string());
        lines.add(&["Range: bytes=", &first.to_string(), "-", &last]);
        if let Some(validator) = wanted.if_range {
            lines.add(&["If-Range: ", validator.as_str()]);
        }
    }
    for (name, value) in headers {
        let is_withheld = SECRETS.contains(name) || *name == header::HOST;
        if !(route.is_foreign && is_withheld) {
            lines.0.extend_from_slice(name.as_str().as_bytes());
            lines.0.extend_from_slice(b": ");
            lines.0.extend_from_slice(value.as_bytes());
            lines.0.extend_from_slice(b"\r\n");
        }
    }
    lines.add(&[]);
    lines.0
}

/// Returns the head of a request that makes a proxy open a tunnel.
pub(super) fn tunnel(url: &Url, proxy: &Url) -> Vec<u8> {
    let mut lines = Lines(Vec::new());
    let host = url.host_str().unwrap_or_default();
    let port = url.port_or_known_default().unwrap_or_default().to_string();
    lines.add(&["CONNECT ", host, ":", &port, " HTTP/1.1"]);
    lines.add(&["Host: ", host, ":", &port]);
    if let Some(credentials) = basic(proxy) {
        lines.add(&["Proxy-Authorization: ", &credentials]);
    }
    lines.add(&[]);
    lines.0
}

/// The lines of a head.
struct Lines(Vec<u8>);

impl Lines {
    fn add(&mut self, parts: &[&str]) {
        for part in parts {
            self.0.extend_from_slice(part.as_bytes());
        }
        self.0.extend_from_slice(b"\r\n");
    }
}

/// Returns the host and the port, if it is not the usual one of the scheme.
pub(super) fn authority(url: &Url) -> &str {
    &url[Position::BeforeHost..Position::AfterPort]
}

/// Returns the credentials of a URL as the value of an `Authorization` header (RFC 7617).
fn basic(url: &Url) -> Option<String> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let mut pair: Vec<u8> = percent_decode_str(url.username()).collect();
    pair.push(b':');
    pair.extend(percent_decode_str(url.password().unwrap_or_default()));
    Some(format!("Basic {}", STANDARD.encode(pair)))
}
