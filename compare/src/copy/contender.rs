//! The type of the contenders of `compare copy`.

use std::ffi::OsString;
use std::path::Path;

use super::job::CopyJob;
use crate::error::Error;
use crate::participant::Contender;
use crate::process;

/// A way to send a file over TCP. All file senders are built into this program.
pub(crate) struct FileSender {
    /// The contender's name on the command line and in every table.
    pub(super) name: &'static str,
    /// A phrase for the report that says what the contender is.
    pub(super) about: &'static str,
    /// Whether the contender is part of this project.
    pub(super) ours: bool,
    /// Returns the name and the version of the software that sends the file.
    pub(super) version: fn() -> String,
    /// Sends the file, and returns the number of bytes sent.
    pub(super) send: fn(CopyJob) -> Result<u64, Error>,
}

impl Contender for FileSender {
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

impl FileSender {
    /// Returns the command line of the contender's process, which sends `file` to `port` on
    /// 127.0.0.1.
    pub(super) fn command(
        &self,
        file: &Path,
        port: &str,
        congestion: &str,
    ) -> Result<Vec<OsString>, Error> {
        Ok(vec![
            process::own_program()?.into(),
            "copy-sender".into(),
            "--contender".into(),
            self.name.into(),
            "--file".into(),
            file.into(),
            "--connect".into(),
            format!("127.0.0.1:{port}").into(),
            "--congestion".into(),
            congestion.into(),
        ])
    }
}
