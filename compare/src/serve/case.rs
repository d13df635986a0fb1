//! The cases that contenders are measured in: how large the files are, how many of them are
//! requested, and what the client does with the bytes.

use clap::ValueEnum;

use crate::rounds::Case;
use crate::table::{grouped, size_text};

/// Minimum size of a body that [`Receiver::Discard`] discards. A smaller body is always copied,
/// because discarding it would need a second receive.
pub(super) const MIN_DISCARD_BYTES: u64 = 16 * 1024;

/// Maximum size of the files with which latencies are measured.
pub(super) const LATENCY_MAX_SIZE_BYTES: u64 = 64 * 1024;

/// Maximum size of all files of a case together, if there are several. A case with more does not
/// take place: writing the files would take longer than all measurements with them.
const MAX_SET_BYTES: u64 = 2 << 30;

/// What the load generator does with the bodies of responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Receiver {
    /// Copies the bytes to user space, as a real client does.
    Copy,
    /// Discards bodies of 16 KiB and more inside the kernel, which leaves more of the load
    /// generator's CPU to find out how much the server can send.
    Discard,
}

/// A case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ServeCase {
    /// The size of every file in bytes.
    pub(super) size: u64,
    /// The number of files over which the requests are spread.
    pub(super) files: u32,
    /// What happens to the bodies.
    pub(super) receiver: Receiver,
}

impl ServeCase {
    /// The case of one file whose bytes are copied by the client.
    pub(super) const fn one_file(size: u64) -> Self {
        Self {
            size,
            files: 1,
            receiver: Receiver::Copy,
        }
    }

    /// Whether latencies are measured in the case. For larger files, they depend mostly on how
    /// quickly the client receives.
    pub(super) fn has_latency(self) -> bool {
        self.size <= LATENCY_MAX_SIZE_BYTES && self.receiver == Receiver::Copy
    }

    /// Whether the case can take place, and differs from all others.
    fn is_useful(self) -> bool {
        let is_small = self.files == 1 || self.size * u64::from(self.files) <= MAX_SET_BYTES;
        is_small && (self.receiver == Receiver::Copy || self.size >= MIN_DISCARD_BYTES)
    }
}

impl Case for ServeCase {
    const COLUMN: &'static str = "size_bytes/files/receiver";

    fn text(self) -> String {
        let files = match self.files {
            1 => "one file".to_owned(),
            files => format!("{} files", grouped(f64::from(files))),
        };
        let receiver = match self.receiver {
            Receiver::Copy => "",
            Receiver::Discard => ", discarded",
        };
        format!("{}, {files}{receiver}", size_text(self.size))
    }

    fn key(self) -> String {
        let receiver = match self.receiver {
            Receiver::Copy => "copy",
            Receiver::Discard => "discard",
        };
        format!("{}/{}/{receiver}", self.size, self.files)
    }
}

/// Returns the cases of a run, in the order in which they are measured.
pub(super) fn all(sizes: &[u64], files: &[u32], receivers: &[Receiver]) -> Vec<ServeCase> {
    let mut cases = Vec::new();
    for &files in files {
        for &receiver in receivers {
            let of_size = |&size| ServeCase {
                size,
                files,
                receiver,
            };
            cases.extend(sizes.iter().map(of_size).filter(|case| case.is_useful()));
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_that_are_too_large_or_the_same_as_another_are_left_out() {
        let receivers = [Receiver::Copy, Receiver::Discard];
        let cases = all(&[1 << 10, 1 << 20], &[1, 1000, 100_000], &receivers);
        let texts: Vec<String> = cases.iter().map(|case| case.text()).collect();
        assert_eq!(
            texts,
            [
                "1 KiB, one file",
                "1 MiB, one file",
                "1 MiB, one file, discarded",
                "1 KiB, 1,000 files",
                "1 MiB, 1,000 files",
                "1 MiB, 1,000 files, discarded",
                "1 KiB, 100,000 files",
            ]
        );
        assert_eq!(cases[2].key(), "1048576/1/discard");
    }
}
