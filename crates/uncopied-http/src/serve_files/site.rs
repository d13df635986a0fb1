//! The directory or file that a service serves, and the look-up of request paths in it.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use http::StatusCode;
use http::header::{ACCEPT_ENCODING, HeaderValue};
use rustix::io::Errno;

use super::cache::Cache;
use super::cache::entry::{Entry, EntrySource};
use super::config::{Config, ConfiguredPage};
use super::generated;
use super::request::fields::RequestFields;
use super::request::negotiate::{self, Coding};
use super::resolve::path::RequestPath;
use super::resolve::root::{ResolveError, Root};
use crate::file_stat::FileStat;
use crate::open_file::{DiskAccess, OpenFile};

/// The directory or single file that a service serves, with the configuration and the cache of open
/// files.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) config: Arc<Config>,
    pub(super) root: Arc<Root>,
    /// The name of the file in `root`, if a single file is served.
    pub(super) single: Option<CString>,
    pub(super) cache: Cache,
}

/// The target of a request path.
pub(super) enum ResolvedTarget {
    /// A file: the requested one, or the index file of the requested directory.
    File(Arc<Entry>),
    /// A directory that would be served if the path ended with a slash.
    MissingSlash(RequestPath),
    /// A directory to list.
    Listing(RequestPath, File),
}

/// The result of opening a path successfully.
enum Opened {
    File(Arc<Entry>),
    Directory,
}

/// Options for making a cache entry from an opened file.
#[derive(Default)]
struct EntryOptions {
    /// The paths of the index files that take precedence over this file. If any of them exists, the
    /// entry is out of date.
    earlier_index: Vec<CString>,
    /// For a precompressed file: its coding, and the media type of the original.
    coding: Option<(Coding, HeaderValue)>,
    /// Whether this is a precompressed version of the fallback page.
    is_fallback: bool,
}

impl Site {
    /// Finds what the request path `path` leads to. Uses the cached entry if it is still current.
    pub(super) fn find(
        &self,
        path: &str,
        access: DiskAccess,
    ) -> Result<ResolvedTarget, ResolveError> {
        // Reject paths that do not begin with a slash, because they could equal the cache key of a
        // page or of a precompressed file. Those keys never begin with a slash.
        if !path.starts_with('/') {
            return Err(StatusCode::BAD_REQUEST.into());
        }
        if let Some(entry) = self.cache.get(path.as_bytes()) {
            return Ok(ResolvedTarget::File(entry));
        }
        if let Some(name) = &self.single {
            return self.find_single(path, name, access);
        }
        let request_path = RequestPath::parse(path, self.config.hidden)?;
        if request_path.is_directory {
            return match self.index(path.as_bytes(), &request_path, access)? {
                Some(entry) => Ok(ResolvedTarget::File(entry)),
                None => self.listing(request_path, access),
            };
        }
        let c_path = request_path.to_c_path()?;
        match self.open(path.as_bytes(), c_path, EntryOptions::default(), access)? {
            Opened::File(entry) => Ok(ResolvedTarget::File(entry)),
            Opened::Directory => {
                let key = [path.as_bytes(), b"/"].concat();
                if self.config.listing || self.index(&key, &request_path, access)?.is_some() {
                    return Ok(ResolvedTarget::MissingSlash(request_path));
                }
                Err(ResolveError::NOT_FOUND)
            }
        }
    }

    /// Returns the entry of a fallback or error page.
    pub(super) fn page(
        &self,
        page: &ConfiguredPage,
        access: DiskAccess,
    ) -> Result<Arc<Entry>, ResolveError> {
        self.get_or_open(&page.key, &page.path, EntryOptions::default(), access)
    }

    /// Returns the best precompressed version of a file that the client accepts, or the file itself
    /// if there is none.
    pub(super) fn negotiate(
        &self,
        entry: Arc<Entry>,
        fields: &impl RequestFields,
        access: DiskAccess,
    ) -> Result<Arc<Entry>, ResolveError> {
        let Some(precompressed) = entry.precompressed.as_ref() else {
            return Ok(entry);
        };
        let mut codings = negotiate::codings(fields.values(&ACCEPT_ENCODING)).peekable();
        if codings.peek().is_none() {
            return Ok(entry);
        }
        if precompressed.is_known_absent(&self.root) {
            return Ok(entry);
        }
        for coding in codings {
            let mut files = precompressed.files.iter();
            let Some(file) = files.find(|file| file.coding == coding) else {
                continue;
            };
            let options = EntryOptions {
                coding: Some((coding, entry.media_type.clone())),
                is_fallback: entry.is_fallback,
                ..EntryOptions::default()
            };
            match self.get_or_open(&file.key, &file.path, options, access) {
                Ok(file) if file.is_older_than(&entry) => {}
                Ok(file) => return Ok(file),
                Err(ResolveError::NeedsDisk) => return Err(ResolveError::NeedsDisk),
                // A precompressed file that cannot be opened is treated as absent.
                Err(ResolveError::Status(_)) => {}
            }
        }
        precompressed.record_if_absent(&self.root);
        Ok(entry)
    }

    /// Returns the single file that this site serves if `path` is `/` or the file's name. Fails
    /// with 404 for any other path.
    fn find_single(
        &self,
        path: &str,
        name: &CStr,
        access: DiskAccess,
    ) -> Result<ResolvedTarget, ResolveError> {
        let request_path = RequestPath::parse(path, true)?;
        let is_other = request_path.is_directory || request_path.relative() != name.to_bytes();
        if !request_path.is_root() && is_other {
            return Err(ResolveError::NOT_FOUND);
        }
        self.get_or_open(path.as_bytes(), name, EntryOptions::default(), access)
            .map(ResolvedTarget::File)
    }

    /// Returns the index file of `directory`, if there is one, and caches it under `key`: the
    /// request path of the directory, with a trailing slash.
    fn index(
        &self,
        key: &[u8],
        directory: &RequestPath,
        access: DiskAccess,
    ) -> Result<Option<Arc<Entry>>, ResolveError> {
        let mut earlier_index = Vec::new();
        for name in &self.config.index {
            let path = directory.child(name)?;
            let options = EntryOptions {
                earlier_index: earlier_index.clone(),
                ..EntryOptions::default()
            };
            match self.open(key, path.clone(), options, access) {
                Ok(Opened::File(entry)) => return Ok(Some(entry)),
                Ok(Opened::Directory) | Err(ResolveError::NOT_FOUND) => earlier_index.push(path),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    fn listing(
        &self,
        directory: RequestPath,
        access: DiskAccess,
    ) -> Result<ResolvedTarget, ResolveError> {
        if !self.config.listing {
            return Err(ResolveError::NOT_FOUND);
        }
        // Never build a listing on an event loop, because building one queries the metadata of
        // every file in the directory, which would delay other connections.
        if access == DiskAccess::CachedOnly {
            return Err(ResolveError::NeedsDisk);
        }
        let dir = self.root.open(&directory.to_c_path()?, access)?;
        let stat = FileStat::of(&dir).map_err(|error| ResolveError::from_io(&error, access))?;
        if !stat.is_directory() {
            return Err(ResolveError::NOT_FOUND);
        }
        Ok(ResolvedTarget::Listing(directory, dir))
    }

    /// Returns the file at `path`. Uses the cache entry under `key` if it is still current, and
    /// otherwise opens the file.
    fn get_or_open(
        &self,
        key: &[u8],
        path: &CStr,
        options: EntryOptions,
        access: DiskAccess,
    ) -> Result<Arc<Entry>, ResolveError> {
        if let Some(entry) = self.cache.get(key) {
            return Ok(entry);
        }
        match self.open(key, path.to_owned(), options, access)? {
            Opened::File(entry) => Ok(entry),
            Opened::Directory => Err(ResolveError::NOT_FOUND),
        }
    }

    /// Opens `path`. If it leads to a regular file, caches the file under `key`. Fails with 404 if
    /// it leads to neither a regular file nor a directory, or to a file without a known length.
    fn open(
        &self,
        key: &[u8],
        path: CString,
        options: EntryOptions,
        access: DiskAccess,
    ) -> Result<Opened, ResolveError> {
        let to_error = |error: io::Error| ResolveError::from_io(&error, access);
        let file = self.root.open(&path, access)?;
        let before_stat = SystemTime::now();
        let stat = FileStat::of(&file).map_err(to_error)?;
        if stat.is_directory() {
            return Ok(Opened::Directory);
        }
        if !stat.is_regular() {
            return Err(ResolveError::NOT_FOUND);
        }
        let is_generated = |file: &File| generated::is_generated(file, &stat, access);
        if generated::is_suspicious(&stat) && is_generated(&file).map_err(to_error)? {
            return Err(ResolveError::NOT_FOUND);
        }
        let limit = self.config.in_memory_max_bytes;
        let file = Arc::new(file);
        let opened = OpenFile::with_memory_limit(limit, Arc::clone(&file), stat, access);
        let file = match opened {
            Ok(file) => file,
            // Each attempt at reading the whole file has failed: either it keeps changing, or it is
            // shorter than its metadata says.
            Err(error)
                if Errno::from_io_error(&error) == Some(Errno::BUSY)
                    && is_generated(&file).map_err(to_error)? =>
            {
                return Err(ResolveError::NOT_FOUND);
            }
            Err(error) => return Err(to_error(error)),
        };
        let fallback = self.config.fallback.as_ref();
        let is_fallback = options.is_fallback || fallback.is_some_and(|page| page.path == path);
        let source = EntrySource {
            file,
            path,
            is_fallback,
            earlier_index: options.earlier_index,
            coding: options.coding,
            before_stat,
        };
        let Config {
            headers,
            precompressed,
            ..
        } = &*self.config;
        let entry = Arc::new(Entry::new(source, &self.root, headers, *precompressed));
        self.cache.put(key, &entry);
        Ok(Opened::File(entry))
    }
}
