//! The cases that downloaders are measured in: what they fetch, and where they save it.

use crate::rounds::Case;
use crate::table::{grouped, size_text};
use crate::targets::KIB;

/// The size of each of many files.
pub(super) const SMALL_FILE_BYTES: u64 = KIB;

/// A case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GetCase {
    /// One file of this size in bytes, to a file.
    File(u64),
    /// One file of this size in bytes, to `/dev/null`.
    Null(u64),
    /// This number of files of [`SMALL_FILE_BYTES`] each, to a directory.
    Many(u32),
}

impl GetCase {
    /// The number of files that are fetched.
    pub(super) fn files(self) -> u32 {
        match self {
            Self::File(_) | Self::Null(_) => 1,
            Self::Many(files) => files,
        }
    }

    /// The number of bytes that are fetched, without the heads of responses.
    pub(super) fn bytes(self) -> u64 {
        match self {
            Self::File(size) | Self::Null(size) => size,
            Self::Many(files) => u64::from(files) * SMALL_FILE_BYTES,
        }
    }
}

impl Case for GetCase {
    const COLUMN: &'static str = "size_bytes/files/target";

    fn text(self) -> String {
        match self {
            Self::File(size) => format!("{} to a file", size_text(size)),
            Self::Null(size) => format!("{} to /dev/null", size_text(size)),
            Self::Many(files) => format!(
                "{} files of {}",
                grouped(f64::from(files)),
                size_text(SMALL_FILE_BYTES)
            ),
        }
    }

    fn phrase(self) -> String {
        format!("with {}", self.text())
    }

    fn key(self) -> String {
        match self {
            Self::File(size) => format!("{size}/1/file"),
            Self::Null(size) => format!("{size}/1/null"),
            Self::Many(files) => format!("{SMALL_FILE_BYTES}/{files}/directory"),
        }
    }
}

/// Returns the cases of a run, in the order in which they are measured.
pub(super) fn all(sizes: &[u64], files: u32) -> Vec<GetCase> {
    let large = sizes
        .iter()
        .flat_map(|&size| [GetCase::File(size), GetCase::Null(size)]);
    large.chain([GetCase::Many(files)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_case_has_a_name_of_its_own() {
        let cases = all(&[1 << 30], 10_000);
        let names: Vec<_> = cases.iter().map(|case| (case.text(), case.key())).collect();
        let expected = [
            ("1 GiB to a file", "1073741824/1/file"),
            ("1 GiB to /dev/null", "1073741824/1/null"),
            ("10,000 files of 1 KiB", "1024/10000/directory"),
        ];
        let expected = expected.map(|(text, key)| (text.to_owned(), key.to_owned()));
        assert_eq!(names, expected);
        assert_eq!((cases[2].files(), cases[2].bytes()), (10_000, 10_240_000));
    }
}
