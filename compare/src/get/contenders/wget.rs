//! wget, which has one connection.

use std::ffi::OsString;

use crate::error::Error;
use crate::get::contender::{self, Download, Downloader};

pub(super) const CONTENDER: Downloader = Downloader {
    name: "wget",
    about: "wget without progress (it has one connection, also for many files)",
    ours: false,
    takes_part: contender::always,
    version: || contender::installed_version("wget", 3),
    command,
};

fn command(download: &Download<'_>) -> Result<Vec<OsString>, Error> {
    let mut command = contender::words(&["wget", "--no-config", "--quiet"]);
    match download {
        Download::One { url, output } => {
            command.extend(["--output-document".into(), output.into(), url.into()]);
        }
        Download::Many {
            urls, directory, ..
        } => {
            command.extend(["--directory-prefix".into(), directory.into()]);
            command.extend(["--input-file".into(), urls.into()]);
        }
    }
    Ok(command)
}
