//! nginx as a relay, with its module for streams.

use crate::error::Error;
use crate::nginx::Nginx;
use crate::process::Launch;
use crate::relay::contender::{RelayProgram, RelaySetup};

pub(super) const CONTENDER: RelayProgram = RelayProgram {
    name: "nginx",
    about: "nginx with one worker and its stream module",
    ours: false,
    prepare,
};

fn prepare(setup: &RelaySetup<'_>) -> Result<Launch, Error> {
    let nginx = Nginx::prepare_relay(setup.scratch, setup.listen, setup.target)?;
    Ok(Launch {
        command: nginx.command,
        version: nginx.version,
        configuration: Some(nginx.configuration),
        output: None,
    })
}
