//! A plain loop of `read` and `write`.

use std::io::{ErrorKind, Read, Write};

use crate::copy::contender::FileSender;
use crate::copy::job::CopyJob;
use crate::error::{Context, Error};
use crate::machine;

/// The size of the buffer: the same as in `cp` and `cat`.
const BUFFER_BYTES: usize = 128 * 1024;

pub(super) const CONTENDER: FileSender = FileSender {
    name: "read-write",
    about: "a plain loop of `read` and `write_all` with a buffer of 128 KiB, on a blocking socket",
    ours: false,
    version: machine::own_version,
    send,
};

fn send(mut job: CopyJob) -> Result<u64, Error> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut bytes = 0;
    loop {
        let count = match job.file.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).context(|| "cannot read the file".into()),
        };
        job.socket
            .write_all(&buffer[..count])
            .context(|| "cannot write to the socket".into())?;
        bytes += count as u64;
    }
}
