//! Where a download is saved, and the names of files that URLs give.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;
use url::Url;

use super::error::GetError;
use super::file::is_special;
use crate::directory::or_current;

/// The longest name of a file, in bytes, for which `NAME.part.json.new` is not too long.
const MAX_NAME_BYTES: usize = 255 - ".part.json.new".len();

/// Where the bytes of a download go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Stdout,
    /// A pipe or a device, which is written to directly.
    Special(PathBuf),
    /// A file, which gets its name when it is whole.
    File(PathBuf),
}

/// What `-o` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Destination {
    Stdout,
    /// A pipe, a device, or the name of a file.
    Named(PathBuf),
    Directory(PathBuf),
}

impl Destination {
    /// Finds out what `-o` names. Creates a directory that ends with a slash.
    pub(super) fn new(output: Option<&Path>) -> Result<Self, GetError> {
        let Some(path) = output else {
            return Ok(Self::Directory(PathBuf::new()));
        };
        if path == Path::new("-") {
            return Ok(Self::Stdout);
        }
        if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
            fs::create_dir_all(path).map_err(GetError::file("create", path))?;
        }
        match path.is_dir() {
            true => Ok(Self::Directory(path.to_owned())),
            false => Ok(Self::Named(path.to_owned())),
        }
    }

    /// Lists what was there before `count` downloads begin.
    pub(super) fn list(&self, count: usize) -> Listing {
        match self {
            Self::Directory(directory) => Listing::read(directory, count),
            Self::Stdout | Self::Named(_) => Listing::default(),
        }
    }

    /// Returns the place of one URL.
    pub(super) fn place(&self, url: &Url) -> Result<Place, GetError> {
        match self {
            Self::Stdout => Ok(Place::Stdout),
            Self::Named(path) if is_special(path) => Ok(Place::Special(path.clone())),
            Self::Named(path) => Ok(Place::File(path.clone())),
            Self::Directory(directory) => Ok(Place::File(directory.join(file_name(url)?))),
        }
    }
}

/// The number of names in a directory that take as long to read as it takes to look up those of
/// one download.
const NAMES_PER_DOWNLOAD: usize = 16;

/// The names in a directory when the downloads began, if they could be read. Two lookups for each
/// of many files would take a tenth of the whole time.
#[derive(Debug, Default)]
pub(super) struct Listing(Option<HashSet<OsString>>);

impl Listing {
    /// Reads the names, unless there are more than it is worth for `count` downloads.
    fn read(directory: &Path, count: usize) -> Self {
        let limit = count.saturating_mul(NAMES_PER_DOWNLOAD);
        let Ok(entries) = fs::read_dir(or_current(directory)) else {
            return Self::default();
        };
        let names: io::Result<HashSet<_>> = entries
            .take(limit.saturating_add(1))
            .map(|entry| Ok(entry?.file_name()))
            .collect();
        Self(names.ok().filter(|names| names.len() <= limit))
    }

    /// Whether neither a file nor its temporary file was there. If a program has made one since, it
    /// is found when the download gets its name.
    pub(super) fn is_free(&self, path: &Path) -> bool {
        match (&self.0, path.file_name()) {
            (Some(names), _) if names.is_empty() => true,
            (Some(names), Some(name)) => {
                let mut temporary = name.to_owned();
                temporary.push(".part");
                !names.contains(name) && !names.contains(&temporary)
            }
            _ => false,
        }
    }
}

/// Parses a URL. As in curl, `http://` may be missing.
pub(super) fn parse_url(word: &str) -> Result<Url, GetError> {
    let text = match word.contains("://") {
        true => Cow::Borrowed(word),
        false => Cow::Owned(format!("http://{word}")),
    };
    let url =
        Url::parse(&text).map_err(|error| GetError::Url(format!("{error}; check the URL")))?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        scheme => Err(GetError::Url(format!(
            "{scheme}:// is not supported; use http:// or https://"
        ))),
    }
}

/// Returns the name under which the file at a URL is saved: the last name in its path. Such a name
/// never leads out of a directory, and never hides a file.
fn file_name(url: &Url) -> Result<String, GetError> {
    let last = url.path().rsplit('/').next().unwrap_or_default();
    if last.is_empty() {
        return Ok("index.html".to_owned());
    }
    // Names that are not UTF-8 stay escaped.
    let name = percent_decode_str(last)
        .decode_utf8()
        .map_or_else(|_| last.to_owned(), |name| name.into_owned());
    let is_usable = name.len() <= MAX_NAME_BYTES
        && !name.starts_with('.')
        && !name.contains('/')
        && !name.contains(char::is_control)
        // Another download may use these names for its temporary files.
        && ![".part", ".part.json", ".part.json.new"].iter().any(|suffix| name.ends_with(suffix));
    match is_usable {
        true => Ok(name),
        false => Err(GetError::NoName(last.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn name(path: &str) -> Option<String> {
        file_name(&parse_url(&format!("http://a/{path}")).unwrap()).ok()
    }

    #[test]
    fn names_come_from_the_path() {
        for (path, expected) in [
            ("", "index.html"),
            ("x/", "index.html"),
            ("x/y.tar.gz?z=/q#r", "y.tar.gz"),
            ("a%20b", "a b"),
            ("%E6%96%87", "文"),
            ("%ff", "%ff"),
            ("x;y", "x;y"),
            // Dot segments belong to the syntax of a URL, so they are gone.
            ("x/..", "index.html"),
            ("x/%2e%2e", "index.html"),
        ] {
            assert_eq!(name(path).as_deref(), Some(expected), "{path}");
        }
        assert_eq!(name(&"a".repeat(241)).unwrap().len(), 241);
    }

    #[test]
    fn names_never_escape_the_directory() {
        for path in [
            "..%2fx",
            "%2fetc%2fpasswd",
            "x%2f..%2f..%2fy",
            ".bashrc",
            "%2ebashrc",
            "a%00b",
            "a%0ab",
            "a%1b[2J",
            "a%c2%9b",
            "x.part",
            "x.part.json",
            &"a".repeat(242),
        ] {
            assert_eq!(name(path), None, "{path}");
        }
    }

    #[test]
    fn urls_need_no_scheme_but_a_known_one() {
        assert_eq!(parse_url("a/b").unwrap().as_str(), "http://a/b");
        assert_eq!(parse_url("127.0.0.1:8080/b").unwrap().port(), Some(8080));
        for word in [
            "",
            "ftp://a/",
            "file:///etc/passwd",
            "http://",
            "http://a:99999/",
        ] {
            assert!(parse_url(word).is_err(), "{word}");
        }
    }
}
