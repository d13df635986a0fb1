//! The type of the contenders of `compare get`.

use std::ffi::OsString;
use std::path::Path;

use super::case::GetCase;
use crate::error::Error;
use crate::machine;
use crate::participant::Contender;

/// A program that downloads files.
pub(crate) struct Downloader {
    /// The contender's name on the command line and in every table.
    pub(super) name: &'static str,
    /// A phrase for the report that says what the contender is.
    pub(super) about: &'static str,
    /// Whether the contender is part of this project.
    pub(super) ours: bool,
    /// Whether the contender is measured in a case.
    pub(super) takes_part: fn(GetCase) -> bool,
    /// Returns the name and the version of the program.
    ///
    /// Returns [`Error::Unavailable`] if the program cannot be run. If it has to be installed, the
    /// message says so.
    pub(super) version: fn() -> Result<String, Error>,
    /// Returns the program and its arguments for a download.
    pub(super) command: fn(&Download<'_>) -> Result<Vec<OsString>, Error>,
}

/// What a downloader fetches, and where it saves it.
pub(super) enum Download<'a> {
    /// One URL, to a file that does not exist or to a device.
    One {
        /// The URL.
        url: &'a str,
        /// The file.
        output: &'a Path,
    },
    /// Many URLs, to an empty directory. Each file is saved under the last name in its URL.
    Many {
        /// A file with one URL per line.
        urls: &'a Path,
        /// A file of the format of curl's `--config`, with the same URLs.
        curl_config: &'a Path,
        /// The directory. Its path has no slash at its end.
        directory: &'a Path,
        /// The number of connections, if the downloader can have more than one.
        parallel: u16,
    },
}

impl Contender for Downloader {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn is_ours(&self) -> bool {
        self.ours
    }
}

/// For contenders that are measured in every case.
pub(super) fn always(_: GetCase) -> bool {
    true
}

/// Returns the name and the version of a program: the first `words` words that `program --version`
/// prints.
pub(super) fn installed_version(program: &str, words: usize) -> Result<String, Error> {
    let line = machine::first_line_of(program, &["--version"])
        .ok_or_else(|| Error::Unavailable(format!("{program} is not installed")))?;
    let words: Vec<&str> = line.split(' ').take(words).collect();
    Ok(words.join(" "))
}

/// Returns a command from its program and its options.
pub(super) fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}
