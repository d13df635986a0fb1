//! A terminal, as the program under test sees it.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::Stdio;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// The controlling end of a pseudoterminal. Dropping it hangs up.
pub(crate) struct Terminal {
    lines: BufReader<File>,
    other_end: File,
}

impl Terminal {
    pub(crate) fn open() -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let controller = openpt(flags).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let path = ptsname(&controller, Vec::new()).unwrap();
        let other_end = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(path.to_str().unwrap())
            .unwrap();
        Self {
            lines: BufReader::new(File::from(controller)),
            other_end,
        }
    }

    /// Returns the end that a program uses.
    pub(crate) fn other_end(&self) -> Stdio {
        self.other_end.try_clone().unwrap().into()
    }

    /// Waits for the next line that contains `text`. Blocks if the program prints nothing more.
    pub(crate) fn wait_for_line(&mut self, text: &str) -> String {
        loop {
            let mut line = String::new();
            self.lines.read_line(&mut line).unwrap();
            if line.contains(text) {
                return line.trim_end().to_owned();
            }
        }
    }

    /// Hangs up, and returns what was written and not yet read. Call this once the program has
    /// ended.
    pub(crate) fn written(self) -> String {
        let Self {
            mut lines,
            other_end,
        } = self;
        drop(other_end);
        let mut bytes = Vec::new();
        // A terminal that nobody has open for writing fails with EIO after the last byte.
        let _ = lines.read_to_end(&mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    /// Waits for the first URL.
    pub(crate) fn wait_for_address(&mut self) -> SocketAddr {
        let line = self.wait_for_line(" on http://");
        let (_, url) = line.rsplit_once("http://").unwrap();
        url.trim_end_matches('/').parse().unwrap()
    }
}
