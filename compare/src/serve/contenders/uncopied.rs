//! `uncopied serve`: what all others are compared with.

use std::path::Path;
use std::process::Command;

use super::{Contender, Launch, Setup};
use crate::error::{Context, Error};
use crate::machine;

pub(super) const CONTENDER: Contender = Contender {
    name: "uncopied",
    about: "`uncopied serve` of this commit, one thread",
    ours: true,
    prepare,
};

fn prepare(setup: &Setup<'_>) -> Result<Launch, Error> {
    let own = std::env::current_exe().context(|| "cannot find this program".into())?;
    // This program is target/<profile>/compare; its peer is built into the same target directory.
    let target = own
        .parent()
        .and_then(Path::parent)
        .ok_or_else(|| Error::Unavailable("this program lies in no target directory".into()))?;
    build(target)?;
    let program = target.join("release").join("uncopied");
    let version = machine::first_line_of(&program.to_string_lossy(), &["--version"])
        .ok_or_else(|| Error::Unavailable("`uncopied --version` says nothing".into()))?;
    Ok(Launch {
        command: vec![
            program.into(),
            "serve".into(),
            setup.files.into(),
            "--listen".into(),
            setup.address.to_string().into(),
            "--threads".into(),
            "1".into(),
        ],
        version,
        configuration: None,
    })
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
