//! tokio's `copy_buf` with a large buffer: how a tuned asynchronous program sends a file.

use tokio::fs::File;
use tokio::io::BufReader;

use crate::copy::contender::FileSender;
use crate::copy::job::CopyJob;
use crate::error::{Context, Error};
use crate::machine::dependency_version;
use crate::runtime;

/// The size of the buffer. It is large because tokio hands each read of the file to a blocking
/// thread: with this buffer there is one read per MiB, whereas `copy` makes one per 8 KiB.
const BUFFER_BYTES: usize = 1024 * 1024;

pub(super) const CONTENDER: FileSender = FileSender {
    name: "tokio-copy-buf",
    about: "`tokio::io::copy_buf` from a `BufReader` of 1 MiB around `tokio::fs::File`, otherwise \
            like tokio-copy (with this buffer, tokio needs fewer reads)",
    ours: false,
    version: || dependency_version("tokio"),
    send,
};

fn send(job: CopyJob) -> Result<u64, Error> {
    runtime::current_thread()?.block_on(async {
        let mut reader = BufReader::with_capacity(BUFFER_BYTES, File::from_std(job.file));
        let mut socket = runtime::tokio_stream(job.socket)?;
        tokio::io::copy_buf(&mut reader, &mut socket)
            .await
            .context(|| "cannot copy the file".into())
    })
}
