//! `uncopied serve`, the file server of this project.

use crate::command_line::Uncopied;
use crate::error::Error;
use crate::process::Launch;
use crate::serve::contender::{self, FileServer, ServerSetup};

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
    let Uncopied { program, version } = Uncopied::build()?;
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
