//! tokio's `copy_buf` with a large buffer: how an asynchronous program sends a file if it is tuned.

use tokio::fs::File;
use tokio::io::BufReader;

use crate::copy::contender::FileSender;
use crate::copy::job::CopyJob;
use crate::error::{Context, Error};
use crate::machine::dependency_version;
use crate::runtime;

/// Size of the buffer. `copy` hands the blocking threads a read for every 8 KiB; this needs one for
/// every MiB.
const BUFFER_BYTES: usize = 1024 * 1024;

pub(super) const CONTENDER: FileSender = FileSender {
    name: "tokio-copy-buf",
    about: "`tokio::io::copy_buf` from a `BufReader` of 1 MiB around `tokio::fs::File`, otherwise \
            like tokio-copy: tokio's better setting",
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
