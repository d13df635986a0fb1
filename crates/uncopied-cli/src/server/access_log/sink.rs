//! Where the lines of the access log go: standard output, or a file that is opened again on SIGHUP.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, fstat, ftruncate};

/// The descriptor that lines are written to.
pub(super) struct LogSink {
    file: File,
    /// `None` for standard output.
    path: Option<PathBuf>,
    /// The number of bytes of an unfinished line at the end of the file.
    fragment_bytes: usize,
}

impl LogSink {
    /// Duplicates standard output.
    pub(super) fn stdout() -> io::Result<Self> {
        let descriptor: OwnedFd = io::stdout().as_fd().try_clone_to_owned()?;
        Ok(Self {
            file: descriptor.into(),
            path: None,
            fragment_bytes: 0,
        })
    }

    /// Opens a file for appending, and creates it if it does not exist.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: open_for_appending(path)?,
            path: Some(path.to_owned()),
            fragment_bytes: 0,
        })
    }

    /// Opens the file again, because it may have been renamed. Keeps the old one on an error. Does
    /// nothing for standard output. Returns how many bytes of an unfinished line were in the old
    /// file and must be written again.
    pub(super) fn reopen(&mut self) -> io::Result<usize> {
        let Some(path) = &self.path else {
            return Ok(0);
        };
        let file = open_for_appending(path)?;
        let fragment = self.fragment_bytes;
        self.remove_fragment();
        self.file = file;
        Ok(fragment)
    }

    /// Whether the reader of standard output has gone away. Nobody can come back to read it, while
    /// a file (such as a FIFO) can be opened again.
    pub(super) fn is_closed_by(&self, error: &io::Error) -> bool {
        self.path.is_none() && error.kind() == io::ErrorKind::BrokenPipe
    }

    /// Writes some bytes of `lines`, which begin where the last call has ended. Returns how many.
    pub(super) fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let written = self.file.write(lines)?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let tail = match lines[..written].iter().rposition(|&byte| byte == b'\n') {
            Some(end) => {
                self.fragment_bytes = 0;
                written - end - 1
            }
            None => written,
        };
        self.fragment_bytes += tail;
        Ok(written)
    }

    /// Removes an unfinished line from the end of a regular file, so that the next line is not
    /// appended to it. Does nothing if another process has appended to the file since.
    pub(super) fn remove_fragment(&mut self) {
        let fragment = std::mem::take(&mut self.fragment_bytes);
        if fragment == 0 {
            return;
        }
        let Ok(status) = fstat(&self.file) else {
            return;
        };
        let size = u64::try_from(status.st_size).unwrap_or_default();
        // Each write in append mode leaves the position at its end.
        let is_last = self.file.stream_position().is_ok_and(|end| end == size);
        if FileType::from_raw_mode(status.st_mode).is_file() && is_last {
            let end = size.saturating_sub(fragment as u64);
            // Ignore errors: the line then stays unfinished, and is counted as lost all the same.
            // Seek, because standard output may not be in append mode.
            let _ = ftruncate(&self.file, end);
            let _ = self.file.seek(SeekFrom::Start(end));
        }
    }
}

impl fmt::Display for LogSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => path.display().fmt(f),
            None => f.write_str("standard output"),
        }
    }
}

/// Opens a file for appending. If its last line is unfinished, because a process was killed while
/// it wrote, finishes that line first.
fn open_for_appending(path: &Path) -> io::Result<File> {
    let mut file = OpenOptions::new().append(true).create(true).open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() && metadata.len() > 0 {
        let mut last = [b'\n'];
        // Ignore errors: without permission to read the log, its last byte is unknown.
        let _ = File::open(path).and_then(|file| file.read_exact_at(&mut last, metadata.len() - 1));
        if last != [b'\n'] {
            // Ignore an error: a full disk must not prevent the start.
            let _ = file.write_all(b"\n");
        }
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_unfinished_line_is_removed_unless_another_process_has_appended() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut sink = LogSink::open(&path).unwrap();
        sink.write(b"a\nb").unwrap();
        sink.write(b"c").unwrap();
        assert_eq!(sink.fragment_bytes, 2);
        sink.remove_fragment();
        assert_eq!(std::fs::read(&path).unwrap(), b"a\n");
        sink.write(b"d").unwrap();
        let mut other = OpenOptions::new().append(true).open(&path).unwrap();
        other.write_all(b"e\n").unwrap();
        sink.remove_fragment();
        assert_eq!(std::fs::read(&path).unwrap(), b"a\nde\n");
    }

    #[test]
    fn a_file_that_ends_in_an_unfinished_line_gets_a_line_feed_when_it_is_opened() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        std::fs::write(&path, "half").unwrap();
        let mut sink = LogSink::open(&path).unwrap();
        sink.write(b"a\n").unwrap();
        let mut sink = LogSink::open(&path).unwrap();
        sink.write(b"b\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"half\na\nb\n");
    }

    #[test]
    fn a_file_that_was_renamed_is_created_again() {
        let directory = tempfile::tempdir().unwrap();
        let (path, old) = (directory.path().join("log"), directory.path().join("old"));
        let mut sink = LogSink::open(&path).unwrap();
        sink.write(b"a\nb").unwrap();
        std::fs::rename(&path, &old).unwrap();
        assert_eq!(sink.reopen().unwrap(), 1);
        sink.write(b"bc\n").unwrap();
        assert_eq!(std::fs::read(&old).unwrap(), b"a\n");
        assert_eq!(std::fs::read(&path).unwrap(), b"bc\n");
    }
}
