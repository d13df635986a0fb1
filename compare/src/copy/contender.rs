//! A contender of this comparison.

use std::ffi::OsString;
use std::path::Path;

use super::job::CopyJob;
use crate::error::Error;
use crate::participant::Contender;
use crate::process;

/// A way to send a file over TCP. All of them are part of this program.
pub(crate) struct FileSender {
    /// Its name on the command line and in every table.
    pub(super) name: &'static str,
    /// What it is, in one sentence for the report.
    pub(super) about: &'static str,
    /// Whether it belongs to this project.
    pub(super) ours: bool,
    /// What exactly is run.
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
    /// The command of its process, which sends `file` to `port` on 127.0.0.1.
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
