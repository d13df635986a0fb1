//! The headers of responses that are files.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG,
    LAST_MODIFIED, VARY,
};
use http::{HeaderMap, HeaderValue};

use crate::file_stat::Facts;
use crate::serve_files::request::negotiate::Coding;

/// 9999-12-31 23:59:59, the last second that an HTTP date can name.
pub(crate) const LAST_SECOND: u64 = 253_402_300_799;

/// The headers that the configuration adds.
#[derive(Debug)]
pub(crate) struct ConfiguredHeaders {
    /// Those of every answer.
    pub(crate) every: HeaderMap,
    pub(crate) cache_control: Option<HeaderValue>,
}

impl ConfiguredHeaders {
    /// Puts the headers that every answer has over those that it has already.
    pub(crate) fn decorate(&self, headers: &mut HeaderMap) {
        for name in self.every.keys().filter(|name| **name != VARY) {
            headers.remove(name);
        }
        for (name, value) in &self.every {
            headers.append(name, value.clone());
        }
    }
}

pub(super) struct FileHeaders<'a> {
    pub(super) media: &'a HeaderValue,
    pub(super) len: u64,
    pub(super) etag: &'a HeaderValue,
    pub(super) modified: Option<u64>,
    pub(super) negotiable: bool,
    pub(super) coding: Option<Coding>,
    pub(super) configured: &'a ConfiguredHeaders,
}

/// The headers of a 200, complete.
pub(super) fn of_file(file: &FileHeaders<'_>) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(8 + file.configured.every.len());
    headers.insert(CONTENT_TYPE, file.media.clone());
    headers.insert(CONTENT_LENGTH, file.len.into());
    headers.insert(ETAG, file.etag.clone());
    if let Some(seconds) = file.modified {
        let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds));
        headers.extend(HeaderValue::try_from(date).map(|date| (LAST_MODIFIED, date)));
    }
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if file.negotiable {
        headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
    }
    if let Some(coding) = file.coding {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.token()));
    }
    if let Some(value) = &file.configured.cache_control {
        headers.insert(CACHE_CONTROL, value.clone());
    }
    file.configured.decorate(&mut headers);
    headers
}

/// The entity tag, from all that a change of the bytes changes. The time of the last status change
/// is part of it, because the other time can be set back.
///
/// A tag is strong only if it will never name other bytes. A weak one is spelt differently, so that
/// it stops matching once the file has settled: what a client got while the file was being written
/// is then asked for again.
pub(super) fn etag(facts: &Facts, settled: bool, coding: Option<Coding>) -> HeaderValue {
    let ((modified, modified_nanos), (changed, changed_nanos)) =
        (facts.modified(), facts.changed());
    let (weak, moving) = if settled { ("", "") } else { ("W/", "-m") };
    let suffix = coding.map_or("", Coding::suffix);
    let len = facts.len();
    let tag = format!(
        "{weak}\"{modified:x}.{modified_nanos:x}-{len:x}-{changed:x}.{changed_nanos:x}{moving}{suffix}\""
    );
    HeaderValue::try_from(tag).unwrap_or(HeaderValue::from_static("W/\"\""))
}

/// `Last-Modified` in seconds since 1970: not in the future (RFC 9110 §8.8.2.1), and a date that
/// HTTP can write.
pub(super) fn modified(facts: &Facts, now: SystemTime) -> Option<u64> {
    let now = now.duration_since(UNIX_EPOCH).ok()?.as_secs();
    let seconds = u64::try_from(facts.modified().0).ok()?;
    (seconds <= now.min(LAST_SECOND)).then_some(seconds)
}
