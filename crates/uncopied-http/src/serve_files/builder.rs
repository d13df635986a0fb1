//! The builder of a service: checks its settings, and opens its root.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG,
    LOCATION, TRANSFER_ENCODING,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::cache::Cache;
use super::cache::headers::ConfiguredHeaders;
use super::config::{Config, ConfiguredPage};
use super::resolve::path;
use super::resolve::root::{Root, SymlinkPolicy};
use super::service::ServeFiles;
use super::site::Site;
use crate::open_file::{DiskAccess, IN_MEMORY_FILE_MAX_BYTES};

/// Headers that depend on the individual response, so that a fixed value would be wrong.
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
    /// Serves `path`, a directory or a regular file, with the defaults of
    /// [`builder`](Self::builder).
    ///
    /// # Errors
    ///
    /// See [`ServeFilesBuilder::build`].
    pub fn new(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::builder(path.as_ref()).build()
    }

    /// Serves `path`, a directory or a regular file, as the builder is configured.
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
    max_open_files: usize,
    direct: bool,
    in_memory_max_bytes: u64,
}

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
            max_open_files: 1024,
            direct: false,
            in_memory_max_bytes: IN_MEMORY_FILE_MAX_BYTES,
        }
    }

    /// The names of index files to look for in a directory. The first that exists is served. An
    /// empty list turns the look-up off. Default: `index.html`.
    pub fn index(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.index = names.into_iter().map(Into::into).collect();
        self
    }

    /// Whether the response for a directory without an index file is a listing: as HTML, or as JSON
    /// if `Accept` prefers `application/json`. Otherwise it is 404. Default: false.
    pub fn listing(mut self, on: bool) -> Self {
        self.listing = on;
        self
    }

    /// Whether names that begin with a dot are served. Otherwise they are 404, except for
    /// `/.well-known`. Default: false.
    pub fn hidden(mut self, on: bool) -> Self {
        self.hidden = on;
        self
    }

    /// Whether symbolic links that lead out of the root are followed. Otherwise they are 404. Links
    /// that stay beneath the root are always followed. Default: false.
    pub fn follow_links(mut self, on: bool) -> Self {
        self.follow_links = on;
        self
    }

    /// Whether `name.br`, `name.zst` and `name.gz` are sent in place of `name` to clients that
    /// accept the coding. They are not looked up for formats that are already compressed (images,
    /// video, archives). Default: true.
    pub fn precompressed(mut self, on: bool) -> Self {
        self.precompressed = on;
        self
    }

    /// The file, beneath the root, that is served with 200 in place of a missing one, for
    /// single-page applications. It is served if the request names `text/html` in `Accept`, or if
    /// the last name in its path has no dot, so that a missing script remains 404.
    pub fn fallback(mut self, path: impl Into<PathBuf>) -> Self {
        self.fallback = Some(path.into());
        self
    }

    /// The file, beneath the root, that is the body of responses with `status`, a client or server
    /// error.
    pub fn error_page(mut self, status: StatusCode, path: impl Into<PathBuf>) -> Self {
        self.error_pages.push((status, path.into()));
        self
    }

    /// Adds a header to every response. May be repeated, even with the same name. It replaces the
    /// service's own header of that name, except for `Vary`, which is extended.
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.append(name, value);
        self
    }

    /// The `Cache-Control` of responses that are files, including 304.
    pub fn cache_control(mut self, value: HeaderValue) -> Self {
        self.cache_control = Some(value);
        self
    }

    /// How many files are kept open between requests. Files that are being sent are not counted. A
    /// removed file uses disk space until it leaves the cache: at the next request for it, or when
    /// others need its place. With 0, none is kept open. Default: 1024.
    pub fn max_open_files(mut self, count: usize) -> Self {
        self.max_open_files = count;
        self
    }

    /// Promises that bodies go directly to a stream of this crate, and that nothing in between
    /// reads their bytes; see [`FileBody::direct`](crate::FileBody::direct). Default: false.
    pub fn direct(mut self, on: bool) -> Self {
        self.direct = on;
        self
    }

    /// Limit on the length of files that are kept in memory, so that they leave in one system call
    /// together with their head. With 0, every file is sent from the file itself. Together these
    /// files use up to this limit times [`max_open_files`](Self::max_open_files). Default:
    /// [`IN_MEMORY_FILE_MAX_BYTES`].
    pub fn in_memory_max_bytes(mut self, bytes: u64) -> Self {
        self.in_memory_max_bytes = bytes;
        self
    }

    /// Opens the root and checks the configuration.
    ///
    /// The root is opened once. If the path is a symbolic link that is later changed, build the
    /// service anew.
    ///
    /// # Errors
    ///
    /// - Any error from opening the path: [`NotFound`](io::ErrorKind::NotFound),
    ///   [`PermissionDenied`](io::ErrorKind::PermissionDenied), …; the same for the files of
    ///   [`fallback`](Self::fallback) and [`error_page`](Self::error_page).
    /// - [`InvalidInput`](io::ErrorKind::InvalidInput) if the path is neither a directory nor a
    ///   regular file, an index is not a plain name, an error page is given for a status that is
    ///   not an error, or a configured header depends on the individual response, such as
    ///   `Content-Length`.
    pub fn build(self) -> io::Result<ServeFiles> {
        let with_path = |error: io::Error| {
            io::Error::new(
                error.kind(),
                format!("cannot serve {}: {error}", self.path.display()),
            )
        };
        let (dir, single) = self.locate().map_err(with_path)?;
        // The operator named the single file, so it may be a link to anywhere. Requests can reach
        // only that file, its precompressed files and the configured pages.
        let symlinks = match self.follow_links || single.is_some() {
            true => SymlinkPolicy::Anywhere,
            false => SymlinkPolicy::BeneathRoot,
        };
        let root = Arc::new(Root::open_dir(&dir, symlinks).map_err(with_path)?);
        let config = self.check(&root)?;
        let cache = Cache::new(self.max_open_files);
        Ok(ServeFiles::from(Site {
            config,
            root,
            single,
            cache,
        }))
    }

    /// The directory to open, and the name in it if a single file is served.
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
            },
            in_memory_max_bytes: self.in_memory_max_bytes,
            direct: self.direct,
        })
    }
}

/// Checks that a page currently is a file beneath the root. It may be replaced later.
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
