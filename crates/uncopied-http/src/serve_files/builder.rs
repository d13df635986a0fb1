//! Builds a [`ServeFiles`]: checks its settings, and opens its root.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use http::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG,
    LOCATION, TRANSFER_ENCODING,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::cache::CacheLimits;
use super::cache::headers::ConfiguredHeaders;
use super::cache::media_type::ConfiguredTypes;
use super::config::{Config, ConfiguredPage, EntityTags};
use super::current_site::{CurrentSite, SiteSource};
use super::resolve::path;
use super::resolve::root::{Root, SymlinkPolicy};
use super::service::ServeFiles;
use crate::open_file::{DiskAccess, IN_MEMORY_FILE_MAX_BYTES};

/// Headers whose value depends on the individual response, so that a configured value would be
/// wrong.
const RESPONSE_SPECIFIC_HEADERS: [HeaderName; 8] = [
    ALLOW,
    CONNECTION,
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_RANGE,
    ETAG,
    LOCATION,
    TRANSFER_ENCODING,
];

impl ServeFiles {
    /// Creates a service for `path`, a directory or a regular file, with the defaults of
    /// [`builder`](Self::builder). Blocks the calling thread while it opens the path, so create the
    /// service when the program starts.
    ///
    /// # Errors
    ///
    /// See [`ServeFilesBuilder::build`].
    pub fn new(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::builder(path.as_ref()).build()
    }

    /// Returns a builder for a service that serves `path`, a directory or a regular file.
    pub fn builder(path: impl Into<PathBuf>) -> ServeFilesBuilder {
        ServeFilesBuilder::new(path.into())
    }
}

/// Configures a [`ServeFiles`]; see [`ServeFiles::builder`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct ServeFilesBuilder {
    path: PathBuf,
    index: Vec<String>,
    listing: bool,
    hidden: bool,
    follow_links: bool,
    precompressed: bool,
    fallback: Option<PathBuf>,
    error_pages: Vec<(StatusCode, PathBuf)>,
    headers: HeaderMap,
    cache_control: Option<HeaderValue>,
    entity_tags: EntityTags,
    types: ConfiguredTypes,
    max_open_files: usize,
    in_memory_max_bytes: u64,
    memory_limit: u64,
}

/// The default of [`ServeFilesBuilder::memory_limit`].
const MEMORY_LIMIT_BYTES: u64 = 128 << 20;

impl ServeFilesBuilder {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            index: vec!["index.html".to_owned()],
            listing: false,
            hidden: false,
            follow_links: false,
            precompressed: true,
            fallback: None,
            error_pages: Vec::new(),
            headers: HeaderMap::new(),
            cache_control: None,
            entity_tags: EntityTags::default(),
            types: ConfiguredTypes::default(),
            max_open_files: 1024,
            in_memory_max_bytes: IN_MEMORY_FILE_MAX_BYTES,
            memory_limit: MEMORY_LIMIT_BYTES,
        }
    }

    /// Sets the names of the index files to look for in a directory. The first one that exists is
    /// served. An empty list turns index files off. Default: `index.html`.
    pub fn index(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.index = names.into_iter().map(Into::into).collect();
        self
    }

    /// Sets whether a directory without an index file is listed: as HTML, or as JSON if `Accept`
    /// prefers `application/json`. If not, the response is 404. Default: false.
    pub fn listing(mut self, on: bool) -> Self {
        self.listing = on;
        self
    }

    /// Sets whether names that begin with a dot are served. If not, the response is 404, except for
    /// `/.well-known`. Default: false.
    pub fn hidden(mut self, on: bool) -> Self {
        self.hidden = on;
        self
    }

    /// Sets whether symbolic links that lead out of the root are followed. If not, the response for
    /// such a link is 404. Links that stay beneath the root are followed in any case, unless `on`
    /// is false and `openat2(2)` is not available. Default: false.
    pub fn follow_links(mut self, on: bool) -> Self {
        self.follow_links = on;
        self
    }

    /// Sets whether `name.br`, `name.zst` and `name.gz` are sent in place of `name` to clients that
    /// accept the coding, unless they are older than `name`. They are not looked for if the format
    /// of `name` is already compressed
    /// (images, video, archives). Default: true.
    pub fn precompressed(mut self, on: bool) -> Self {
        self.precompressed = on;
        self
    }

    /// Sets the file, beneath the root, that is served with status 200 in place of a missing file.
    /// This is meant for single-page applications. The fallback is served only if the request names
    /// `text/html` in `Accept`, or if the last name in the request path has no dot, so that a
    /// missing script is still 404. Because of that, the page and 404 responses have
    /// `Vary: accept`.
    ///
    /// Wherever the page is served, even under its own name or as an index file, its
    /// `Cache-Control` is `no-cache` instead of the value set with
    /// [`cache_control`](Self::cache_control), so that browsers see a new version of the
    /// application at once. Only a `Cache-Control` set with [`header`](Self::header), for every
    /// response, takes precedence.
    pub fn fallback(mut self, path: impl Into<PathBuf>) -> Self {
        self.fallback = Some(path.into());
        self
    }

    /// Sets the file, beneath the root, that is the body of responses with `status`, which must be
    /// a client or server error.
    pub fn error_page(mut self, status: StatusCode, path: impl Into<PathBuf>) -> Self {
        self.error_pages.push((status, path.into()));
        self
    }

    /// Adds a header to every response. May be called several times, even with the same name. The
    /// header replaces the service's own header of that name, except for `Vary`, which it extends.
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.append(name, value);
        self
    }

    /// Sets the `Cache-Control` header of responses that send a file, and of 304 responses. Does
    /// not apply to the [`fallback`](Self::fallback) page.
    pub fn cache_control(mut self, value: HeaderValue) -> Self {
        self.cache_control = Some(value);
        self
    }

    /// Sets the `Content-Type` of files whose name ends with a dot and `extension`, such as `wasm`
    /// or `tar.gz`, in upper or lower case. May be called several times. The value is sent as it
    /// is, so include the `charset` of a text type. Replaces the built-in type, and for `svgz`
    /// also the built-in `Content-Encoding`.
    pub fn media_type(mut self, extension: &str, value: HeaderValue) -> Self {
        self.types.add(extension, value);
        self
    }

    /// Sets what the `ETag` of a file is made from. This affects only what clients see: whether a
    /// file has changed since it was opened is always decided with all of its metadata. Default:
    /// [`EntityTags::Mtime`].
    pub fn entity_tags(mut self, kind: EntityTags) -> Self {
        self.entity_tags = kind;
        self
    }

    /// Sets how many files are kept open between requests. Files that are being sent may stay open
    /// beyond this limit. A removed file takes up disk space until it leaves the cache, which
    /// happens at the next request for it, or when other files need its place. With 0, no file is
    /// kept open. Default: 1024.
    pub fn max_open_files(mut self, count: usize) -> Self {
        self.max_open_files = count;
        self
    }

    /// Sets the maximum length of files that are kept in memory. Such a file is sent together with
    /// the response head in one system call. With 0, no file is kept in memory. Default:
    /// [`IN_MEMORY_FILE_MAX_BYTES`].
    pub fn in_memory_max_bytes(mut self, bytes: u64) -> Self {
        self.in_memory_max_bytes = bytes;
        self
    }

    /// Sets how many bytes the files that are kept in memory may take up in total. The limit and
    /// [`max_open_files`](Self::max_open_files) are shares of one cache: if half of it is used by
    /// open files, half of the memory is available. Default: 128 MiB.
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.memory_limit = bytes;
        self
    }

    /// Opens the root and checks the configuration. Blocks the calling thread meanwhile.
    ///
    /// The path is resolved here. If it may later lead to another directory, for example because it
    /// is a symbolic link to the current release, call [`ServeFiles::follow_root`] regularly.
    ///
    /// # Errors
    ///
    /// - Any error from opening the path, such as [`NotFound`](io::ErrorKind::NotFound) or
    ///   [`PermissionDenied`](io::ErrorKind::PermissionDenied).
    /// - [`NotFound`](io::ErrorKind::NotFound) if the file of a [`fallback`](Self::fallback) or
    ///   [`error_page`](Self::error_page) cannot be opened.
    /// - [`InvalidInput`](io::ErrorKind::InvalidInput) if the path is neither a directory nor a
    ///   regular file, a fallback or error page is not a regular file, an index is not a plain
    ///   name, an error page is given for a status that is not an error, a media type has no slash
    ///   or no extension, or a configured header depends on the individual response, such as
    ///   `Content-Length`.
    pub fn build(self) -> io::Result<ServeFiles> {
        let with_path = |error: io::Error| {
            io::Error::new(
                error.kind(),
                format!("cannot serve {}: {error}", self.path.display()),
            )
        };
        let (dir, single) = self.locate().map_err(with_path)?;
        // A single file may be a link to anywhere, because the operator named it. Following every
        // link is safe here: requests can reach only that file, its precompressed files and the
        // configured pages.
        let symlinks = match self.follow_links || single.is_some() {
            true => SymlinkPolicy::Anywhere,
            false => SymlinkPolicy::BeneathRoot,
        };
        let root = Root::open_dir(&dir, symlinks).map_err(with_path)?;
        let config = self.check(&root)?;
        let limits = CacheLimits {
            open_files: self.max_open_files,
            memory: self.memory_limit,
        };
        let source = SiteSource::new(&dir, &root, config, single, limits);
        Ok(ServeFiles::from(CurrentSite::new(source, root)))
    }

    /// Returns the directory to open. If a single file is served, also returns its name in that
    /// directory.
    fn locate(&self) -> io::Result<(PathBuf, Option<CString>)> {
        let kind = std::fs::metadata(&self.path)?.file_type();
        if kind.is_dir() {
            return Ok((self.path.clone(), None));
        }
        if !kind.is_file() {
            return Err(invalid(
                "it is neither a directory nor a regular file".to_owned(),
            ));
        }
        let name = self.path.file_name().ok_or(io::ErrorKind::NotFound)?;
        let parent = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        Ok((parent.to_owned(), Some(CString::new(name.as_bytes())?)))
    }

    fn check(&self, root: &Root) -> io::Result<Config> {
        for name in &self.index {
            if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
                return Err(invalid(format!("index {name:?}: not a plain file name")));
            }
        }
        if let Some(name) = RESPONSE_SPECIFIC_HEADERS
            .iter()
            .find(|name| self.headers.contains_key(*name))
        {
            return Err(invalid(format!(
                "header {name}: its value depends on the response"
            )));
        }
        if let Some(malformed) = self.types.malformed() {
            return Err(invalid(format!(
                "media type {malformed}: not an extension and a type"
            )));
        }
        let page = |(status, path): &(StatusCode, PathBuf)| {
            if !(status.is_client_error() || status.is_server_error()) {
                return Err(invalid(format!(
                    "error page for {status}: the status must be 400 or above"
                )));
            }
            Ok((*status, check_page(root, path)?))
        };
        Ok(Config {
            index: self
                .index
                .iter()
                .map(|name| name.clone().into_bytes())
                .collect(),
            listing: self.listing,
            hidden: self.hidden,
            precompressed: self.precompressed,
            fallback: self
                .fallback
                .as_ref()
                .map(|path| check_page(root, path))
                .transpose()?,
            error_pages: self
                .error_pages
                .iter()
                .map(page)
                .collect::<io::Result<_>>()?,
            headers: ConfiguredHeaders {
                common: self.headers.clone(),
                cache_control: self
                    .cache_control
                    .clone()
                    .filter(|_| !self.headers.contains_key(CACHE_CONTROL)),
                entity_tags: self.entity_tags,
                types: self.types.clone(),
            },
            in_memory_max_bytes: self.in_memory_max_bytes,
        })
    }
}

/// Checks that `path` is currently a readable, regular file beneath the root. The file may be
/// replaced later.
fn check_page(root: &Root, path: &Path) -> io::Result<ConfiguredPage> {
    let bytes = path.as_os_str().as_bytes();
    let relative = bytes.strip_prefix(b"/").unwrap_or(bytes);
    let invalid_page = |why: &str| invalid(format!("page {}: {why}", path.display()));
    let c_path =
        path::to_c_path(relative.to_vec()).map_err(|_| invalid_page("the path contains a NUL"))?;
    match root.open(&c_path, DiskAccess::MayBlock) {
        Ok(file) if file.metadata()?.is_file() => {}
        Ok(_) => return Err(invalid_page("it is not a regular file")),
        Err(_) => {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!(
                    "page {}: no readable file at this path beneath the root",
                    path.display()
                ),
            ));
        }
    }
    Ok(ConfiguredPage {
        key: [b"page:", relative].concat().into(),
        path: c_path,
    })
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}
