//! Why a tuning cannot be used.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{fmt, io};

use super::Tuning;

/// Why a [`Tuning`] cannot be read. The text names the file, the line and the cause.
#[derive(Debug)]
#[non_exhaustive]
pub enum TuningError {
    /// The file cannot be opened or read.
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
    /// The path leads to something else than a regular file, such as a directory or a FIFO.
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The file is longer than 64 KiB.
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// The file is not text in UTF-8.
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// A line has another form than `key = bytes` or `key = never`.
    Line {
        /// The file. `None` if the text came from elsewhere.
        path: Option<PathBuf>,
        /// The number of the line. The first one is 1.
        line: usize,
        /// What is wrong with the line, for people.
        cause: String,
    },
}

impl TuningError {
    /// Names the file in which a line is wrong.
    pub(super) fn in_file(mut self, file: &Path) -> Self {
        if let Self::Line { path, .. } = &mut self {
            *path = Some(file.to_owned());
        }
        self
    }
}

impl fmt::Display for TuningError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { path, .. } => write!(f, "cannot read the tuning {}", path.display()),
            Self::NotAFile { path } => {
                write!(f, "the tuning {} is not a regular file", path.display())
            }
            Self::TooLong { path } => write!(
                f,
                "the tuning {} is longer than {} bytes",
                path.display(),
                super::text::MAX_FILE_BYTES
            ),
            Self::NotText { path } => {
                write!(f, "the tuning {} is not text in UTF-8", path.display())
            }
            Self::Line {
                path: Some(path),
                line,
                cause,
            } => write!(f, "the tuning {}, line {line}: {cause}", path.display()),
            Self::Line { line, cause, .. } => write!(f, "line {line} of the tuning: {cause}"),
        }
    }
}

impl Error for TuningError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Read { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// What is wrong with a line.
pub(super) fn unknown_key(key: &str) -> String {
    format!(
        "{} is no threshold; they are {}",
        quoted(key),
        Tuning::KEYS.join(", ")
    )
}

/// What is wrong with a line.
pub(super) fn not_a_number(value: &str) -> String {
    format!(
        "{} is not a number of bytes, such as 16384, and not \"never\"",
        quoted(value)
    )
}

/// Quotes text of a file. What is not printable is escaped, and only its beginning is shown.
fn quoted(text: &str) -> String {
    const MAX_CHARS: usize = 40;
    let shown: String = text.chars().take(MAX_CHARS).collect();
    let rest = if shown.len() < text.len() { "…" } else { "" };
    format!("{shown:?}{rest}")
}
