//! What a service is configured to do, checked.

use std::ffi::CString;

use http::StatusCode;

use super::cache::headers::ConfiguredHeaders;

/// What the answers depend on beside the files.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) index: Vec<Vec<u8>>,
    pub(super) listing: bool,
    pub(super) hidden: bool,
    pub(super) precompressed: bool,
    pub(super) fallback: Option<Page>,
    pub(super) error_pages: Vec<(StatusCode, Page)>,
    pub(super) headers: ConfiguredHeaders,
    pub(super) direct: bool,
    pub(super) in_memory: u64,
}

/// A file that answers for others.
#[derive(Debug)]
pub(super) struct Page {
    /// Its key in the cache. No request path begins like it.
    pub(super) key: Box<[u8]>,
    /// Its path beneath the root.
    pub(super) path: CString,
}
