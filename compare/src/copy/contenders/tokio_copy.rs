//! tokio's `copy`: how asynchronous programs usually send a file.

use tokio::fs::File;

use crate::copy::contender::FileSender;
use crate::copy::job::CopyJob;
use crate::error::{Context, Error};
use crate::machine::dependency_version;
use crate::runtime;

pub(super) const CONTENDER: FileSender = FileSender {
    name: "tokio-copy",
    about: "`tokio::io::copy` from `tokio::fs::File` to tokio's `TcpStream`, current-thread \
            runtime (the file is read on tokio's blocking threads, which share the CPU)",
    ours: false,
    version: || dependency_version("tokio"),
    send,
};

fn send(job: CopyJob) -> Result<u64, Error> {
    runtime::current_thread()?.block_on(async {
        let mut file = File::from_std(job.file);
        let mut socket = runtime::tokio_stream(job.socket)?;
        tokio::io::copy(&mut file, &mut socket)
            .await
            .context(|| "cannot copy the file".into())
    })
}
