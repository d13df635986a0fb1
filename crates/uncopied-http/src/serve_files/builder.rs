//! Raw words → checked configuration.

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
use super::config::{Config, Page};
use super::resolve::path;
use super::resolve::root::{Links, Root};
use super::service::ServeFiles;
use super::site::Shared;
use crate::open_file::{SMALL, Wait};

/// Fields that tell what an answer is: a fixed value would make it a lie.
const NOT_FIXED: [HeaderName; 8] = [
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

    /// Serves `path`, a directory or a regular file, as configured by the methods that follow.
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
    in_memory: u64,
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
            in_memory: SMALL,
        }
    }

    /// The names to look for in a directory, the first that is there wins. None turns the look-up
    /// off. Default: `index.html`.
    pub fn index(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.index = names.into_iter().map(Into::into).collect();
        self
    }

    /// Whether a directory without an index file is answered with a list of its files: as HTML, or
    /// as JSON where `Accept` prefers `application/json`. Otherwise it is 404. Default: false.
    pub fn listing(mut self, on: bool) -> Self {
        self.listing = on;
        self
    }

    /// Whether names with a dot in front are served. Otherwise they are 404, except for
    /// `/.well-known`. Default: false.
    pub fn hidden(mut self, on: bool) -> Self {
        self.hidden = on;
        self
    }

    /// Whether symbolic links are followed out of the root. Those that stay beneath it always are;
    /// others are 404. Default: false.
    pub fn follow_links(mut self, on: bool) -> Self {
        self.follow_links = on;
        self
    }

    /// Whether `name.br`, `name.zst` and `name.gz` are sent in place of `name` to clients that
    /// accept the coding. Formats that are compressed already (images, video, archives) are not
    /// looked up. Default: true.
    pub fn precompressed(mut self, on: bool) -> Self {
        self.precompressed = on;
        self
    }

    /// The file, beneath the root, that answers with 200 where there is none, for single-page
    /// applications: if the request names `text/html` in `Accept`, or if the last name in its path
    /// has no dot, so that a missing script stays 404.
    pub fn fallback(mut self, path: impl Into<PathBuf>) -> Self {
        self.fallback = Some(path.into());
        self
    }

    /// The file, beneath the root, that is the body of answers with `status`, a client or server
    /// error.
    pub fn error_page(mut self, status: StatusCode, path: impl Into<PathBuf>) -> Self {
        self.error_pages.push((status, path.into()));
        self
    }

    /// A field of every answer. May be repeated, also with the same name. It takes the place of a
    /// field that the service would send by that name, except for `Vary`, which is extended.
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.append(name, value);
        self
    }

    /// `Cache-Control` of the answers that are files, 304 included.
    pub fn cache_control(mut self, value: HeaderValue) -> Self {
        self.cache_control = Some(value);
        self
    }

    /// How many files are kept open between requests. Those that responses are sending come on top.
    /// A file that was removed keeps its space on the disk until it leaves the cache: at the next
    /// request for it, or when others need its place. Default: 1024. With 0, none is kept.
    pub fn max_open_files(mut self, count: usize) -> Self {
        self.max_open_files = count;
        self
    }

    /// Promises that bodies go straight to a stream of this crate, nothing between reading their
    /// bytes. Default: false.
    pub fn direct(mut self, on: bool) -> Self {
        self.direct = on;
        self
    }

    /// Up to how many bytes of length a file is kept in memory, so that it leaves in one system call
    /// together with its head; 0 sends every file from the file itself. Together they take up to this
    /// times [`max_open_files`](Self::max_open_files). Default: [`SMALL`].
    pub fn in_memory(mut self, bytes: u64) -> Self {
        self.in_memory = bytes;
        self
    }

    /// Opens the root and checks the configuration.
    ///
    /// The root is opened once: if a symbolic link leads there and is changed, build anew.
    ///
    /// # Errors
    ///
    /// - What opening the path answers: [`NotFound`](io::ErrorKind::NotFound),
    ///   [`PermissionDenied`](io::ErrorKind::PermissionDenied), …; the same for the files of
    ///   [`fallback`](Self::fallback) and [`error_page`](Self::error_page).
    /// - [`InvalidInput`](io::ErrorKind::InvalidInput): the path is neither a directory nor a regular
    ///   file; an index is not a plain name; an error page for a status that is no error; a fixed
    ///   header that tells what an answer is, such as `Content-Length`.
    pub fn build(self) -> io::Result<ServeFiles> {
        let named = |error: io::Error| {
            io::Error::new(
                error.kind(),
                format!("cannot serve {}: {error}", self.path.display()),
            )
        };
        let (dir, single) = self.locate().map_err(named)?;
        // A single file was named by the operator, so it may be a link to anywhere; and only it,
        // its side files and the configured pages can be asked for.
        let links = match self.follow_links || single.is_some() {
            true => Links::Anywhere,
            false => Links::Beneath,
        };
        let root = Arc::new(Root::open_dir(&dir, links).map_err(named)?);
        let config = self.check(&root)?;
        let cache = Cache::new(self.max_open_files);
        Ok(ServeFiles::from(Shared {
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
                return Err(invalid(format!("index {name:?}: give a plain file name")));
            }
        }
        if let Some(name) = NOT_FIXED
            .iter()
            .find(|name| self.headers.contains_key(*name))
        {
            return Err(invalid(format!(
                "header {name}: it differs from answer to answer"
            )));
        }
        let page = |(status, path): &(StatusCode, PathBuf)| {
            if !(status.is_client_error() || status.is_server_error()) {
                return Err(invalid(format!(
                    "error page for {status}: give a status from 400 on"
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
                every: self.headers.clone(),
                cache_control: self
                    .cache_control
                    .clone()
                    .filter(|_| !self.headers.contains_key(CACHE_CONTROL)),
            },
            in_memory: self.in_memory,
            direct: self.direct,
        })
    }
}

/// Checks that a page is a file beneath the root now. It may be replaced later.
fn check_page(root: &Root, path: &Path) -> io::Result<Page> {
    let bytes = path.as_os_str().as_bytes();
    let relative = bytes.strip_prefix(b"/").unwrap_or(bytes);
    let wrong = |why: &str| invalid(format!("page {}: {why}", path.display()));
    let c_path = path::c_path(relative.to_vec()).map_err(|_| wrong("it has a NUL in it"))?;
    match root.open(&c_path, Wait::ForDisk) {
        Ok(file) if file.metadata()?.is_file() => {}
        Ok(_) => return Err(wrong("it is not a regular file")),
        Err(_) => {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!(
                    "page {}: no such file can be read beneath the root",
                    path.display()
                ),
            ));
        }
    }
    Ok(Page {
        key: [b"page:", relative].concat().into(),
        path: c_path,
    })
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}
