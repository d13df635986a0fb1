//! aria2c, with one connection for each file.

use std::ffi::OsString;
use std::path::Path;

use crate::error::Error;
use crate::get::case::GetCase;
use crate::get::contender::{self, Download, Downloader};

pub(super) const CONTENDER: Downloader = Downloader {
    name: "aria2c",
    about: "aria2c with one connection for each file (it cannot write to `/dev/null`)",
    ours: false,
    takes_part: |case| !matches!(case, GetCase::Null(_)),
    version: || contender::installed_version("aria2c", 3),
    command,
};

fn command(download: &Download<'_>) -> Result<Vec<OsString>, Error> {
    let mut command = contender::words(&[
        "aria2c",
        "--no-conf=true",
        "--quiet=true",
        "--split=1",
        "--max-connection-per-server=1",
        // By default, aria2c writes zeroes to the whole file first, unless the file system can
        // allocate it. The other contenders do not.
        "--file-allocation=none",
    ]);
    match download {
        Download::One { url, output } => {
            // aria2c takes the name of the file relative to --dir.
            let directory = output.parent().unwrap_or(Path::new("/"));
            let name = output.file_name().unwrap_or_default();
            command.extend(["--dir".into(), directory.into()]);
            command.extend(["--out".into(), name.into(), url.into()]);
        }
        Download::Many {
            urls,
            directory,
            parallel,
            ..
        } => {
            let parallel = parallel.to_string();
            command.extend(["--max-concurrent-downloads".into(), parallel.into()]);
            command.extend(["--dir".into(), directory.into()]);
            command.extend(["--input-file".into(), urls.into()]);
        }
    }
    Ok(command)
}
