//! HAProxy in TCP mode.

use std::fs;

use crate::error::{Context, Error};
use crate::machine;
use crate::process::Launch;
use crate::relay::contender::{RelayProgram, RelaySetup};

pub(super) const CONTENDER: RelayProgram = RelayProgram {
    name: "haproxy",
    about: "HAProxy in TCP mode with one thread and `option splice-auto`, with which it decides \
            itself when to splice",
    ours: false,
    prepare: |setup| prepare(setup, "option splice-auto"),
};

pub(super) const SPLICE: RelayProgram = RelayProgram {
    name: "haproxy-splice",
    about: "the same, but with `option splice-request` and `option splice-response`, with which it \
            always splices",
    ours: false,
    prepare: |setup| prepare(setup, "option splice-request\n    option splice-response"),
};

fn prepare(setup: &RelaySetup<'_>, options: &str) -> Result<Launch, Error> {
    let program = machine::find_program("haproxy")
        .ok_or_else(|| Error::Unavailable("haproxy is not installed".into()))?;
    let version = machine::first_line_of(&program.to_string_lossy(), &["-v"])
        .ok_or_else(|| Error::Unavailable("`haproxy -v` prints nothing".into()))?;
    // The line ends with the URL of the project.
    let version = version.split(" - ").next().unwrap_or_default().to_owned();
    let configuration = configuration(setup, options);
    let file = setup.scratch.join("haproxy.cfg");
    fs::write(&file, &configuration).context(|| format!("cannot write {}", file.display()))?;
    Ok(Launch {
        // With -db, it stays in the foreground, in one process.
        command: vec![program.into(), "-db".into(), "-f".into(), file.into()],
        version,
        configuration: Some(configuration),
        output: None,
    })
}

/// Returns the configuration. It has neither logs nor health checks. More than the maximum number
/// of connections is never open; a higher maximum needs a higher limit on descriptors.
fn configuration(setup: &RelaySetup<'_>, options: &str) -> String {
    format!(
        "global
    nbthread 1
    maxconn 2000
    maxpipes 2000
defaults
    mode tcp
    {options}
    timeout connect 5s
    timeout client 1h
    timeout server 1h
listen relay
    bind {} backlog 16384
    server target {}
",
        setup.listen, setup.target
    )
}
