//! The headers of responses that send a file.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG,
    LAST_MODIFIED, VARY,
};
use http::{HeaderMap, HeaderValue};

use super::media_type::ConfiguredTypes;
use crate::file_stat::FileStat;
use crate::serve_files::config::EntityTags;
use crate::serve_files::request::negotiate::Coding;

/// 9999-12-31 23:59:59, the last second that an HTTP date can express, in seconds since the Unix
/// epoch.
pub(crate) const MAX_HTTP_DATE_SECONDS: u64 = 253_402_300_799;

/// The headers that the configuration adds.
#[derive(Debug)]
pub(crate) struct ConfiguredHeaders {
    /// The headers that are added to every response.
    pub(crate) common: HeaderMap,
    /// The `Cache-Control` header of responses that send a file.
    pub(crate) cache_control: Option<HeaderValue>,
    pub(crate) entity_tags: EntityTags,
    /// The media types that take precedence over the built-in ones.
    pub(crate) types: ConfiguredTypes,
}

impl ConfiguredHeaders {
    /// Adds the [`common`](Self::common) headers to `headers`. Each of them replaces any existing
    /// header of the same name, except for `Vary`, whose existing values are kept.
    pub(crate) fn apply(&self, headers: &mut HeaderMap) {
        for name in self.common.keys().filter(|name| **name != VARY) {
            headers.remove(name);
        }
        for (name, value) in &self.common {
            headers.append(name, value.clone());
        }
    }
}

/// The values that determine the headers of a response that sends a file.
pub(super) struct FileHeaders<'a> {
    pub(super) media_type: &'a HeaderValue,
    pub(super) len: u64,
    pub(super) etag: Option<&'a HeaderValue>,
    pub(super) last_modified: Option<u64>,
    /// Whether the response depends on `Accept-Encoding`.
    pub(super) is_negotiable: bool,
    pub(super) coding: Option<Coding>,
    /// Whether this is the page that is sent in place of missing files.
    pub(super) is_fallback: bool,
    pub(super) configured: &'a ConfiguredHeaders,
}

/// Returns the complete headers of a 200 response that sends the file.
pub(super) fn of_file(file: &FileHeaders<'_>) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(8 + file.configured.common.len());
    headers.insert(CONTENT_TYPE, file.media_type.clone());
    headers.insert(CONTENT_LENGTH, file.len.into());
    if let Some(etag) = file.etag {
        headers.insert(ETAG, etag.clone());
    }
    if let Some(seconds) = file.last_modified {
        let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds));
        headers.extend(HeaderValue::try_from(date).map(|date| (LAST_MODIFIED, date)));
    }
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if file.is_negotiable {
        headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
    }
    if let Some(coding) = file.coding {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.token()));
    }
    // The fallback page is the response for any path, and each new version of it names new scripts.
    // If a client kept it as long as the files, it would not see a deployment.
    if file.is_fallback {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    } else if let Some(value) = &file.configured.cache_control {
        headers.insert(CACHE_CONTROL, value.clone());
    }
    file.configured.apply(&mut headers);
    headers
}

/// Returns the entity tag of a file, made from the values that `kind` names. It contains nothing
/// that differs between two servers with the same files, such as the inode number, unless strict
/// tags are asked for.
///
/// The tag is strong only if the file is stable, because otherwise the same tag could later denote
/// different content. `If-None-Match` ignores the `W/` of a weak tag, so a weak tag also contains
/// `-m`. Because of the `-m`, it no longer matches once the file is stable and has a strong tag. So
/// a client that received the file while it was being written downloads the file again.
pub(super) fn etag(
    kind: EntityTags,
    stat: &FileStat,
    is_stable: bool,
    coding: Option<Coding>,
) -> Option<HeaderValue> {
    let ((modified, modified_nanos), (changed, changed_nanos)) = (stat.modified(), stat.changed());
    let (weak, moving) = if is_stable { ("", "") } else { ("W/", "-m") };
    let suffix = coding.map_or("", Coding::suffix);
    let len = stat.len();
    let changed = match kind {
        EntityTags::Off => return None,
        EntityTags::Mtime => String::new(),
        EntityTags::Strict => format!("-{changed:x}.{changed_nanos:x}"),
    };
    let tag = format!("{weak}\"{modified:x}.{modified_nanos:x}-{len:x}{changed}{moving}{suffix}\"");
    HeaderValue::try_from(tag).ok()
}

/// Returns the value of `Last-Modified`, in seconds since the Unix epoch. Returns `None` if the
/// time is in the future (RFC 9110 §8.8.2.1) or cannot be written as an HTTP date.
pub(super) fn last_modified(stat: &FileStat, now: SystemTime) -> Option<u64> {
    let now = now.duration_since(UNIX_EPOCH).ok()?.as_secs();
    let seconds = u64::try_from(stat.modified().0).ok()?;
    (seconds <= now.min(MAX_HTTP_DATE_SECONDS)).then_some(seconds)
}
