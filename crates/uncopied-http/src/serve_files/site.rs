//! Request path → the file, directory or status that answers it.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use http::StatusCode;
use http::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue};

use super::cache::Cache;
use super::cache::entry::{Entry, Found};
use super::config::{Config, Page};
use super::request::negotiate::{self, Coding};
use super::resolve::path::Asked;
use super::resolve::root::{Root, Stop};
use crate::file_stat::Facts;
use crate::open_file::{OpenFile, Wait};

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) root: Arc<Root>,
    /// The name of the one file that is served, in the root.
    pub(super) single: Option<CString>,
    pub(super) cache: Cache,
}

/// What a request path leads to.
pub(super) enum Target {
    /// A file, perhaps the index of a directory.
    File(Arc<Entry>),
    /// A directory that answers, but the path lacks the slash at its end.
    NoSlash(Asked),
    /// A directory to list.
    Listing(Asked, File),
}

/// What is behind a path that could be opened.
enum Opened {
    File(Arc<Entry>),
    Directory,
}

/// What made a file the answer, once its path led to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chosen {
    /// The request alone.
    Itself,
    /// That it has no side file.
    WithoutSides,
    /// Which side files it has, or that some cannot be had.
    AmongSides,
}

/// What to make of a file besides opening it.
#[derive(Default)]
struct Make {
    earlier: Vec<CString>,
    coding: Option<(Coding, HeaderValue)>,
}

impl Shared {
    /// Finds what answers `path`, from the cache if that is still true.
    pub(super) fn find(&self, path: &str, wait: Wait) -> Result<Target, Stop> {
        // The keys of pages and side files begin otherwise, and nobody may ask for them.
        if !path.starts_with('/') {
            return Err(StatusCode::BAD_REQUEST.into());
        }
        if let Some(entry) = self.cache.get(path.as_bytes()) {
            return Ok(Target::File(entry));
        }
        if let Some(name) = &self.single {
            return self.find_single(path, name, wait);
        }
        let asked = Asked::check(path, self.config.hidden)?;
        if asked.directory {
            return match self.index(path.as_bytes(), &asked, wait)? {
                Some(entry) => Ok(Target::File(entry)),
                None => self.listing(asked, wait),
            };
        }
        match self.open(path.as_bytes(), asked.to_c_path()?, Make::default(), wait)? {
            Opened::File(entry) => Ok(Target::File(entry)),
            Opened::Directory => {
                let key = [path.as_bytes(), b"/"].concat();
                if self.config.listing || self.index(&key, &asked, wait)?.is_some() {
                    return Ok(Target::NoSlash(asked));
                }
                Err(Stop::NOT_FOUND)
            }
        }
    }

    /// The fallback page, if there is one for requests like this.
    pub(super) fn page(&self, page: &Page, wait: Wait) -> Result<Arc<Entry>, Stop> {
        self.entry(&page.key, &page.path, Make::default(), wait)
    }

    /// The best side file that the client accepts, or the file itself.
    pub(super) fn negotiated(
        &self,
        entry: Arc<Entry>,
        headers: &HeaderMap,
        wait: Wait,
    ) -> Result<(Arc<Entry>, Chosen), Stop> {
        let Some(sides) = entry.sides.as_ref() else {
            return Ok((entry, Chosen::Itself));
        };
        let mut codings = negotiate::codings(headers.get_all(ACCEPT_ENCODING)).peekable();
        if codings.peek().is_none() {
            return Ok((entry, Chosen::Itself));
        }
        if sides.known_absent(&self.root) {
            return Ok((entry, Chosen::WithoutSides));
        }
        for coding in codings {
            let Some(side) = sides.each.iter().find(|side| side.coding == coding) else {
                continue;
            };
            let make = Make {
                coding: Some((coding, entry.media.clone())),
                ..Make::default()
            };
            match self.entry(&side.key, &side.path, make, wait) {
                Ok(side) => return Ok((side, Chosen::AmongSides)),
                Err(Stop::WouldBlock) => return Err(Stop::WouldBlock),
                // A side file that cannot be had is as good as none.
                Err(Stop::Status(_)) => {}
            }
        }
        sides.note_if_absent(&self.root);
        Ok((entry, Chosen::AmongSides))
    }

    /// A path to a single file, or to the file's own name.
    fn find_single(&self, path: &str, name: &CStr, wait: Wait) -> Result<Target, Stop> {
        let asked = Asked::check(path, true)?;
        if !asked.is_root() && (asked.directory || asked.relative() != name.to_bytes()) {
            return Err(Stop::NOT_FOUND);
        }
        self.entry(path.as_bytes(), name, Make::default(), wait)
            .map(Target::File)
    }

    /// The index file of a directory. It is kept under `key`, the directory's own path.
    fn index(&self, key: &[u8], asked: &Asked, wait: Wait) -> Result<Option<Arc<Entry>>, Stop> {
        let mut earlier = Vec::new();
        for name in &self.config.index {
            let path = asked.child(name)?;
            let make = Make {
                earlier: earlier.clone(),
                ..Make::default()
            };
            match self.open(key, path.clone(), make, wait) {
                Ok(Opened::File(entry)) => return Ok(Some(entry)),
                Ok(Opened::Directory) | Err(Stop::NOT_FOUND) => earlier.push(path),
                Err(stop) => return Err(stop),
            }
        }
        Ok(None)
    }

    fn listing(&self, asked: Asked, wait: Wait) -> Result<Target, Stop> {
        if !self.config.listing {
            return Err(Stop::NOT_FOUND);
        }
        // A listing asks about every file in the directory: never on an event loop.
        if wait == Wait::Never {
            return Err(Stop::WouldBlock);
        }
        let dir = self.root.open(&asked.to_c_path()?, wait)?;
        let facts = Facts::of(&dir).map_err(|error| Stop::of(&error, wait))?;
        if !facts.is_directory() {
            return Err(Stop::NOT_FOUND);
        }
        Ok(Target::Listing(asked, dir))
    }

    /// The file at `path`, from the cache if that is still true.
    fn entry(&self, key: &[u8], path: &CStr, make: Make, wait: Wait) -> Result<Arc<Entry>, Stop> {
        if let Some(entry) = self.cache.get(key) {
            return Ok(entry);
        }
        match self.open(key, path.to_owned(), make, wait)? {
            Opened::File(entry) => Ok(entry),
            Opened::Directory => Err(Stop::NOT_FOUND),
        }
    }

    /// Opens `path` and keeps it under `key` if it is a regular file. What is neither that nor a
    /// directory is not found.
    fn open(&self, key: &[u8], path: CString, make: Make, wait: Wait) -> Result<Opened, Stop> {
        let stop = |error: io::Error| Stop::of(&error, wait);
        let file = self.root.open(&path, wait)?;
        let asked = SystemTime::now();
        let facts = Facts::of(&file).map_err(stop)?;
        if facts.is_directory() {
            return Ok(Opened::Directory);
        }
        if !facts.is_regular() {
            return Err(Stop::NOT_FOUND);
        }
        let limit = self.config.in_memory;
        let file = OpenFile::in_memory_up_to(limit, file, facts, wait).map_err(stop)?;
        let Make { earlier, coding } = make;
        let found = Found {
            file,
            path,
            earlier,
            coding,
            asked,
        };
        let entry = Arc::new(Entry::new(
            found,
            &self.root,
            &self.config.headers,
            self.config.precompressed,
        ));
        self.cache.put(key, &entry);
        Ok(Opened::File(entry))
    }
}
