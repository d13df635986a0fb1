//! A plain loop of `sendfile`: the limit for what sends a file without copying it.

use rustix::io::Errno;

use crate::copy::contender::FileSender;
use crate::copy::job::CopyJob;
use crate::error::{Context, Error};
use crate::machine;

/// What one call asks for. Linux sends at most about 2 GiB a call.
const MAX_CALL_BYTES: usize = 1 << 30;

pub(super) const CONTENDER: FileSender = FileSender {
    name: "sendfile",
    about: "a plain loop of `sendfile` on a blocking socket, as much as possible per call: shows \
            what our layer costs",
    ours: false,
    version: machine::own_version,
    send,
};

fn send(job: CopyJob) -> Result<u64, Error> {
    let mut sent = 0;
    loop {
        match rustix::fs::sendfile(&job.socket, &job.file, Some(&mut sent), MAX_CALL_BYTES) {
            Ok(0) => return Ok(sent),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context(|| "cannot send the file".into()),
        }
    }
}
