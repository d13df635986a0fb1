//! curl, with `--parallel` for many files.

use std::ffi::OsString;

use crate::error::Error;
use crate::get::contender::{self, Download, Downloader};

pub(super) const CONTENDER: Downloader = Downloader {
    name: "curl",
    about: "curl without progress, and with `--parallel` for many files",
    ours: false,
    takes_part: contender::always,
    version: || contender::installed_version("curl", 2),
    command,
};

fn command(download: &Download<'_>) -> Result<Vec<OsString>, Error> {
    // --disable has to be the first option. It leaves the user's configuration out.
    let mut command =
        contender::words(&["curl", "--disable", "--silent", "--show-error", "--fail"]);
    match download {
        Download::One { url, output } => {
            command.extend(["--output".into(), output.into(), url.into()]);
        }
        Download::Many {
            curl_config,
            directory,
            parallel,
            ..
        } => {
            command.extend(contender::words(&["--parallel", "--remote-name-all"]));
            command.extend(["--parallel-max".into(), parallel.to_string().into()]);
            command.extend(["--output-dir".into(), directory.into()]);
            command.extend(["--config".into(), curl_config.into()]);
        }
    }
    Ok(command)
}
