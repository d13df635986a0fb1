//! A plain loop of `sendfile`. It does nothing else, so it shows about how little CPU time sending
//! a file without copying can take.

use rustix::io::Errno;

use crate::copy::contender::FileSender;
use crate::copy::job::CopyJob;
use crate::error::{Context, Error};
use crate::machine;

/// The number of bytes that each call asks for: less than about 2 GiB, the most that Linux sends
/// per call.
const MAX_CALL_BYTES: usize = 1 << 30;

pub(super) const CONTENDER: FileSender = FileSender {
    name: "sendfile",
    about: "a plain loop of `sendfile` on a blocking socket, asking for 1 GiB per call (uncopied \
            calls `sendfile` too, so its difference from this loop is the cost of our layer)",
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
