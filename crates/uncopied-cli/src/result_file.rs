//! Files for results.

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::directory::or_current;
use crate::error::Error;

/// The permissions of a new file.
const MODE: u32 = 0o644;

/// Where results go after measurements, which may take minutes. What is there stays until then, and
/// is replaced at once.
pub(crate) struct ResultFile {
    path: PathBuf,
    kind: Kind,
}

enum Kind {
    /// A file, or none yet. If the path is a link, the file that it leads to.
    Regular { target: PathBuf, mode: u32 },
    /// A pipe, a terminal or a device.
    Special(File),
}

impl ResultFile {
    /// Finds out before measuring whether a file can be written.
    ///
    /// # Errors
    ///
    /// It cannot.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let kind = open(path).map_err(|source| failed(path, source))?;
        let path = path.to_owned();
        Ok(Self { path, kind })
    }

    /// Writes the results.
    ///
    /// # Errors
    ///
    /// The file cannot be written. What was there before is unchanged then.
    pub(crate) fn write(self, bytes: &[u8]) -> Result<(), Error> {
        let Self { path, kind } = self;
        let written = match kind {
            Kind::Special(mut file) => file.write_all(bytes),
            Kind::Regular { target, mode } => replace(&target, mode, bytes),
        };
        written.map_err(|source| failed(&path, source))
    }
}

fn open(path: &Path) -> io::Result<Kind> {
    let mode = match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => return File::create(path).map(Kind::Special),
        Ok(metadata) => {
            // A file that may not be written must not be replaced either.
            File::options().write(true).open(path)?;
            metadata.permissions().mode()
        }
        Err(_) => MODE,
    };
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    temporary(&target, mode)?;
    Ok(Kind::Regular { target, mode })
}

fn replace(target: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let mut file = temporary(target, mode)?;
    file.write_all(bytes)?;
    file.persist(target)?;
    Ok(())
}

/// Creates a file next to the target, which is removed unless it gets the target's name.
fn temporary(target: &Path, mode: u32) -> io::Result<NamedTempFile> {
    let directory = or_current(target.parent().unwrap_or(Path::new("")));
    tempfile::Builder::new()
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(directory)
}

fn failed(path: &Path, source: io::Error) -> Error {
    Error::ReportFile {
        path: path.display().to_string(),
        source,
    }
}
