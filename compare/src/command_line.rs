//! Builds the program `uncopied`, the command line of this project.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Error};
use crate::{machine, process};

/// The program `uncopied`, built from this commit.
pub(crate) struct Uncopied {
    /// The path of the program.
    pub(crate) program: PathBuf,
    /// The program's name and version.
    pub(crate) version: String,
}

impl Uncopied {
    /// Builds the program with optimizations.
    pub(crate) fn build() -> Result<Self, Error> {
        let program = Self::path()?;
        // The path is target/release/uncopied.
        let target = program.parent().and_then(Path::parent);
        build(target.unwrap_or(Path::new("target")))?;
        let version = machine::first_line_of(&program.to_string_lossy(), &["--version"])
            .ok_or_else(|| Error::Unavailable("`uncopied --version` prints nothing".into()))?;
        Ok(Self { program, version })
    }

    /// Returns the path that the program has once it is built.
    pub(crate) fn path() -> Result<PathBuf, Error> {
        let own = process::own_program()?;
        // The path of this program is target/<profile>/compare. Build into the same target
        // directory.
        let target = own.parent().and_then(Path::parent).ok_or_else(|| {
            Error::Unavailable("this program is not in a target directory".into())
        })?;
        Ok(target.join("release").join("uncopied"))
    }
}

fn build(target: &Path) -> Result<(), Error> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "--package", "uncopied-cli"])
        .arg("--target-dir")
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .context(|| "cannot run cargo".into())?;
    if status.success() {
        Ok(())
    } else {
        Err(Error::Unavailable(format!(
            "`cargo build --release --package uncopied-cli` failed ({status})"
        )))
    }
}
