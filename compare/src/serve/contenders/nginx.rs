//! nginx, with the settings that are best for static files.

use crate::error::Error;
use crate::nginx::{Nginx, NginxSetup};
use crate::process::Launch;
use crate::serve::contender::{self, FileServer, ServerSetup};

pub(super) const CONTENDER: FileServer = FileServer {
    name: "nginx",
    about: "nginx with one worker and the settings that are best for static files",
    ours: false,
    variant_of: None,
    takes_part: contender::always,
    prepare,
};

fn prepare(setup: &ServerSetup<'_>) -> Result<Launch, Error> {
    let nginx = Nginx::prepare(&NginxSetup {
        files: setup.files,
        scratch: setup.scratch,
        address: setup.address,
        // The cache of open files is as large as that of the other contenders.
        open_files: Some(contender::OPEN_FILES),
        body_log: None,
    })?;
    Ok(Launch {
        command: nginx.command,
        version: nginx.version,
        configuration: Some(nginx.configuration),
        output: None,
    })
}
