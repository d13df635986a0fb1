//! The checked configuration of a service.

use std::ffi::CString;

use http::StatusCode;

use super::cache::headers::ConfiguredHeaders;

/// What responses depend on besides the files and the request.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) index: Vec<Vec<u8>>,
    pub(super) listing: bool,
    pub(super) hidden: bool,
    pub(super) precompressed: bool,
    pub(super) fallback: Option<ConfiguredPage>,
    pub(super) error_pages: Vec<(StatusCode, ConfiguredPage)>,
    pub(super) headers: ConfiguredHeaders,
    pub(super) direct: bool,
    pub(super) in_memory_max_bytes: u64,
}

/// A file that is served in place of others.
#[derive(Debug)]
pub(super) struct ConfiguredPage {
    /// Its key in the cache. No request path begins like it.
    pub(super) key: Box<[u8]>,
    /// Its path beneath the root.
    pub(super) path: CString,
}
