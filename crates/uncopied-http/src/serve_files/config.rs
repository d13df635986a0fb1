//! The checked configuration of a service.

use std::ffi::CString;

use http::StatusCode;

use super::cache::headers::ConfiguredHeaders;

/// What the `ETag` of a file is made from; see [`ServeFilesBuilder::entity_tags`].
///
/// [`ServeFilesBuilder::entity_tags`]: super::ServeFilesBuilder::entity_tags
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum EntityTags {
    /// The modification time, in nanoseconds, and the length. Servers that have copies of the same
    /// files with the same modification times send the same tags, so clients can revalidate and
    /// resume at any of them. If a program changes a file without changing its length, and then
    /// sets the modification time back, the tag stays the same, as that of nginx does.
    #[default]
    Mtime,
    /// In addition, the time of the last status change, which programs cannot set. The tag changes
    /// with every change to the file, but also with its permissions, and differs between copies.
    Strict,
    /// Responses have no `ETag`. `Last-Modified` is the only validator.
    Off,
}

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
