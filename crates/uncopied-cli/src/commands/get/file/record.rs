//! The record beside a temporary file: what it holds, and of which version of which URL.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::SystemTime;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::super::response::Validator;
use super::written::Written;

/// The longest record that is read, in bytes.
const MAX_RECORD_BYTES: u64 = 1 << 20;

/// What identifies the version of a file on a server, and its length.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Version {
    pub(crate) validator: Option<Validator>,
    pub(crate) last_modified: Option<String>,
    pub(crate) total: Option<u64>,
}

impl Version {
    /// Returns when the file was last changed on the server.
    pub(super) fn modified(&self) -> Option<SystemTime> {
        let text = self.last_modified.as_ref()?;
        httpdate::parse_http_date(text).ok()
    }
}

/// The content of `NAME.part.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The URL that the user gave, without its credentials.
    pub(super) url: String,
    pub(super) version: Version,
    /// The boot of the kernel whose page cache holds what was written. What a process has
    /// written outlives the process, but not the kernel, unless it was synced.
    pub(super) boot: String,
    /// Whether the file has its final length from the start. Otherwise all its bytes have been
    /// written.
    pub(super) is_preallocated: bool,
    pub(super) written: Written,
    /// What was on the disk before this record was written.
    pub(super) synced: Written,
}

impl Record {
    /// Reads a record. `None` if there is none that can be used.
    pub(super) fn read(path: &Path) -> Option<Self> {
        let mut options = fs::OpenOptions::new();
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        options.read(true).custom_flags(flags.bits() as i32);
        let mut text = Vec::new();
        let file = options.open(path).ok()?;
        file.take(MAX_RECORD_BYTES).read_to_end(&mut text).ok()?;
        let record: Self = serde_json::from_slice(&text).ok()?;
        let validator = record.version.validator.as_ref();
        validator
            .is_none_or(Validator::is_header_value)
            .then_some(record)
    }

    /// Replaces the record at `path`. A kill leaves the old one or the new one.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let new = Path::new(&new);
        // What a killed download has left, or another program has put there, is not written to.
        match fs::remove_file(new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::create_new(new)?;
        let outcome = file
            .write_all(&serde_json::to_vec(self)?)
            .and_then(|()| fs::rename(new, path));
        if outcome.is_err() {
            // The failure to write is the one to report.
            let _ = fs::remove_file(new);
        }
        outcome
    }

    /// Returns the bytes of a temporary file of `len` bytes that can be relied on.
    pub(super) fn usable(&self, boot: &str, len: u64) -> Written {
        let mut usable = self.synced.clone();
        if self.boot == boot {
            usable.merge(&self.written);
            if !self.is_preallocated {
                usable.add(0, len);
            }
        }
        let limit = self.version.total.map_or(len, |total| total.min(len));
        if usable.end() > limit {
            return Written::default();
        }
        usable
    }
}

/// Returns what identifies this boot of the kernel. If it is unknown, returns a text that no record
/// of another process has.
pub(super) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map_or_else(
        |_| format!("unknown {}", fastrand::u64(..)),
        |id| id.trim().to_owned(),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn up_to(end: u64) -> Written {
        let mut written = Written::default();
        written.add(0, end);
        written
    }

    fn record(is_preallocated: bool) -> Record {
        Record {
            url: "http://a/".into(),
            version: Version {
                total: Some(100),
                ..Version::default()
            },
            boot: "this".into(),
            is_preallocated,
            written: up_to(50),
            synced: up_to(20),
        }
    }

    #[test]
    fn after_a_crash_of_the_machine_only_synced_bytes_count() {
        for (is_preallocated, boot, len, prefix) in [
            (false, "this", 70, 70),
            (true, "this", 100, 50),
            (false, "other", 70, 20),
            (true, "other", 100, 20),
            // The file is shorter than what was written, or longer than the whole.
            (true, "this", 49, 0),
            (false, "other", 19, 0),
            (false, "this", 101, 0),
        ] {
            let usable = record(is_preallocated).usable(boot, len);
            assert_eq!(usable, up_to(prefix), "{is_preallocated} {boot} {len}");
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_never_through_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.part.json");
        assert_eq!(Record::read(&path), None);
        record(true).write(&path).unwrap();
        assert_eq!(Record::read(&path), Some(record(true)));
        let link = directory.path().join("b.part.json");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(Record::read(&link), None);
        fs::write(&path, "{").unwrap();
        assert_eq!(Record::read(&path), None);
    }
}
