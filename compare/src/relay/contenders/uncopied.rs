//! `uncopied relay`, the relay of this project.

use crate::command_line::Uncopied;
use crate::error::Error;
use crate::process::Launch;
use crate::relay::contender::{RelayProgram, RelaySetup};

pub(super) const CONTENDER: RelayProgram = RelayProgram {
    name: "uncopied",
    about: "`uncopied relay`, built from this commit, with one thread",
    ours: true,
    prepare: |setup| prepare(setup, &[]),
};

pub(super) const SPLICE: RelayProgram = RelayProgram {
    name: "uncopied-splice",
    about: "the same, but with `splice` only",
    ours: true,
    prepare: |setup| prepare(setup, &["--mechanism", "splice"]),
};

pub(super) const COPY: RelayProgram = RelayProgram {
    name: "uncopied-copy",
    about: "the same, but with `recv` and `send` only",
    ours: true,
    prepare: |setup| prepare(setup, &["--mechanism", "copy"]),
};

fn prepare(setup: &RelaySetup<'_>, options: &[&str]) -> Result<Launch, Error> {
    let Uncopied { program, version } = Uncopied::build()?;
    let mut command = vec![
        program.into(),
        "relay".into(),
        setup.listen.to_string().into(),
        setup.target.to_string().into(),
        "--threads".into(),
        "1".into(),
    ];
    command.extend(options.iter().map(Into::into));
    Ok(Launch {
        command,
        version,
        configuration: None,
        output: None,
    })
}
