//! The checked configuration of a service.

use std::ffi::CString;

use http::StatusCode;

use super::cache::headers::ConfiguredHeaders;

/// The settings that affect responses. For the meaning of each setting, see
/// [`ServeFilesBuilder`](super::ServeFilesBuilder).
#[derive(Debug)]
pub(super) struct Config {
    pub(super) index: Vec<Vec<u8>>,
    pub(super) listing: bool,
    pub(super) hidden: bool,
    pub(super) precompressed: bool,
    pub(super) fallback: Option<ConfiguredPage>,
    pub(super) error_pages: Vec<(StatusCode, ConfiguredPage)>,
    pub(super) headers: ConfiguredHeaders,
    pub(super) in_memory_max_bytes: u64,
}

/// A fallback or error page: a file that is served in place of the requested one.
#[derive(Debug)]
pub(super) struct ConfiguredPage {
    /// The page's key in the cache. The key does not begin with a slash, so it cannot equal a
    /// request path.
    pub(super) key: Box<[u8]>,
    /// The page's path beneath the root.
    pub(super) path: CString,
}
