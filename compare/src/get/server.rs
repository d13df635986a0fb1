//! The server that the downloaders fetch from: nginx, with a log of the bytes that it has sent.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use super::files::SourceFiles;
use crate::error::{Context, Error};
use crate::loopback::session::Session;
use crate::nginx::{Nginx, NginxSetup};
use crate::process::{self, Server};

/// nginx logs a request after it has passed the last byte to the kernel. This is how long the log
/// may lag behind the exit of the downloader.
const LOG_LIMIT: Duration = Duration::from_secs(2);

/// The pause between two looks at the log.
const LOG_INTERVAL: Duration = Duration::from_millis(1);

/// A running nginx. Dropping it stops nginx.
pub(super) struct FileServer {
    nginx: Nginx,
    process: Server,
    log: PathBuf,
    log_offset: u64,
}

impl FileServer {
    /// Starts nginx on `cpu`.
    pub(super) fn start(session: &Session, files: &SourceFiles, cpu: usize) -> Result<Self, Error> {
        let scratch = session.scratch().join("nginx");
        fs::create_dir(&scratch).context(|| format!("cannot create {}", scratch.display()))?;
        let log = scratch.join("bodies.log");
        let address = process::free_address()?;
        let nginx = Nginx::prepare(&NginxSetup {
            files: files.root(),
            scratch: &scratch,
            address,
            // Each small file is requested once per measurement, so a cache would not help.
            open_files: None,
            body_log: Some(&log),
        })?;
        let errors = scratch.join("stderr");
        let process = Server::start(&nginx.command, address, cpu, None, &errors)?;
        Ok(Self {
            nginx,
            process,
            log,
            log_offset: 0,
        })
    }

    /// The server's process ID.
    pub(super) fn id(&self) -> u32 {
        self.process.id()
    }

    /// The server's name and version.
    pub(super) fn version(&self) -> &str {
        &self.nginx.version
    }

    /// The content of the server's configuration file.
    pub(super) fn configuration(&self) -> &str {
        &self.nginx.configuration
    }

    /// Returns the URL of a file of the directory to serve.
    pub(super) fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.process.address())
    }

    /// Checks that, since the last call, the server has sent bodies of `bytes` bytes in total.
    ///
    /// # Errors
    ///
    /// [`Error::WrongResult`] if it has sent less or more, or a response other than 200 and 206.
    pub(super) fn check_sent(&mut self, bytes: u64) -> Result<(), Error> {
        let deadline = Instant::now() + LOG_LIMIT;
        let mut sent = 0;
        loop {
            sent += self.read_log()?;
            if sent >= bytes || Instant::now() >= deadline {
                break;
            }
            thread::sleep(LOG_INTERVAL);
        }
        if sent == bytes {
            return Ok(());
        }
        Err(Error::WrongResult(format!(
            "the server has sent {sent} bytes, but the files have {bytes}"
        )))
    }

    /// Forgets what the server has sent so far.
    pub(super) fn skip_log(&mut self) -> Result<(), Error> {
        let length =
            fs::metadata(&self.log).context(|| "cannot inspect the server's log".into())?;
        self.log_offset = length.len();
        Ok(())
    }

    /// Reads the complete new lines of the log, and returns the number of bytes in their bodies.
    fn read_log(&mut self) -> Result<u64, Error> {
        let mut text = String::new();
        File::open(&self.log)
            .and_then(|mut log| {
                log.seek(SeekFrom::Start(self.log_offset))?;
                log.read_to_string(&mut text)
            })
            .context(|| "cannot read the server's log".into())?;
        let complete = text.rfind('\n').map_or(0, |end| end + 1);
        self.log_offset += complete as u64;
        text[..complete].lines().map(body_bytes).sum()
    }
}

/// Returns the number of bytes of a line such as `200 1024`.
fn body_bytes(line: &str) -> Result<u64, Error> {
    match line.split_once(' ') {
        Some(("200" | "206", bytes)) => bytes.parse().ok(),
        Some(_) | None => None,
    }
    .ok_or_else(|| Error::WrongResult(format!("the server has logged {line:?}")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_successful_responses_count() {
        assert_eq!(body_bytes("200 1024").unwrap(), 1024);
        assert_eq!(body_bytes("206 7").unwrap(), 7);
        for line in ["404 153", "200", "", "200 x"] {
            assert!(body_bytes(line).is_err(), "{line}");
        }
    }
}
