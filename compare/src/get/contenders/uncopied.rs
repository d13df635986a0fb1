//! `uncopied get`, the downloader of this project.

use std::ffi::OsString;

use crate::command_line::Uncopied;
use crate::error::Error;
use crate::get::contender::{self, Download, Downloader};

pub(super) const CONTENDER: Downloader = Downloader {
    name: "uncopied",
    about: "`uncopied get`, built from this commit",
    ours: true,
    takes_part: contender::always,
    version: || Ok(Uncopied::build()?.version),
    command,
};

fn command(download: &Download<'_>) -> Result<Vec<OsString>, Error> {
    let mut command: Vec<OsString> = vec![Uncopied::path()?.into()];
    command.extend(contender::words(&["get", "--quiet"]));
    match download {
        Download::One { url, output } => {
            command.extend(["--output".into(), output.into(), url.into()]);
        }
        Download::Many {
            urls,
            directory,
            parallel,
            ..
        } => {
            command.extend(["--parallel".into(), parallel.to_string().into()]);
            // An empty last name makes the path end with a slash, as for a directory.
            command.extend(["--output".into(), directory.join("").into()]);
            command.extend(["--input".into(), urls.into()]);
        }
    }
    Ok(command)
}
