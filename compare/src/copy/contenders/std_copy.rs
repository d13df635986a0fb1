//! The standard library's `copy`.
//!
//! It uses `sendfile` and `splice` from some kinds of sources. From a file to a socket it does not:
//! the kernel would send pages that may still change after the call, and `copy` keeps to what
//! `read` and `write` do. So it reads and writes in pieces of 8 KiB.

use crate::copy::contender::FileSender;
use crate::copy::job::CopyJob;
use crate::error::{Context, Error};
use crate::machine;

pub(super) const CONTENDER: FileSender = FileSender {
    name: "std-copy",
    about: "`std::io::copy` from `File` to a blocking `TcpStream` (the standard library uses no \
            `sendfile` from a file to a socket, but reads and writes in pieces of 8 KiB)",
    ours: false,
    version: machine::own_version,
    send,
};

fn send(mut job: CopyJob) -> Result<u64, Error> {
    std::io::copy(&mut job.file, &mut job.socket).context(|| "cannot copy the file".into())
}
