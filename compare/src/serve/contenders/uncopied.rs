//! `uncopied serve`, the file server of this project.

use std::path::Path;
use std::process::Command;

use crate::error::{Context, Error};
use crate::serve::contender::{self, FileServer, Launch, ServerSetup};
use crate::{machine, process};

pub(super) const CONTENDER: FileServer = FileServer {
    name: "uncopied",
    about: "`uncopied serve`, built from this commit, with one thread",
    ours: true,
    variant_of: None,
    takes_part: contender::always,
    prepare,
};

pub(super) const WITH_ACCESS_LOG: FileServer = FileServer {
    name: "uncopied-access-log",
    about: "the same with an access log as text, which goes to a file",
    ours: true,
    variant_of: Some(CONTENDER.name),
    takes_part: contender::with_one_small_file,
    prepare: prepare_with_access_log,
};

fn prepare(setup: &ServerSetup<'_>) -> Result<Launch, Error> {
    let own = process::own_program()?;
    // The path of this program is target/<profile>/compare. Build the server into the same target
    // directory.
    let target = own
        .parent()
        .and_then(Path::parent)
        .ok_or_else(|| Error::Unavailable("this program is not in a target directory".into()))?;
    build(target)?;
    let program = target.join("release").join("uncopied");
    let version = machine::first_line_of(&program.to_string_lossy(), &["--version"])
        .ok_or_else(|| Error::Unavailable("`uncopied --version` prints nothing".into()))?;
    Ok(Launch {
        command: vec![
            program.into(),
            "serve".into(),
            setup.files.into(),
            "--listen".into(),
            setup.address.to_string().into(),
            "--threads".into(),
            "1".into(),
            "--access-log".into(),
            "off".into(),
        ],
        version,
        configuration: None,
        output: None,
    })
}

fn prepare_with_access_log(setup: &ServerSetup<'_>) -> Result<Launch, Error> {
    let mut launch = prepare(setup)?;
    launch.command.pop();
    launch.command.push("text".into());
    launch.output = Some(setup.scratch.join("access.log"));
    Ok(launch)
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
