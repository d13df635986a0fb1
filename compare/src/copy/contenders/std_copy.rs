//! The standard library's `copy`.
//!
//! For some kinds of sources and destinations, `copy` uses `sendfile` or `splice`, but not from a
//! file to a socket. There, both calls would make the kernel send the file's own pages, so that a
//! change to the file after the call could still change the bytes sent. To rule that out, `copy`
//! reads and writes 8 KiB at a time when it copies from a file to a socket.

use crate::copy::contender::FileSender;
use crate::copy::job::CopyJob;
use crate::error::{Context, Error};
use crate::machine;

pub(super) const CONTENDER: FileSender = FileSender {
    name: "std-copy",
    about: "`std::io::copy` from `File` to a blocking `TcpStream` (from a file to a socket, the \
            standard library does not use `sendfile`, but reads and writes 8 KiB at a time)",
    ours: false,
    version: machine::own_version,
    send,
};

fn send(mut job: CopyJob) -> Result<u64, Error> {
    std::io::copy(&mut job.file, &mut job.socket).context(|| "cannot copy the file".into())
}
