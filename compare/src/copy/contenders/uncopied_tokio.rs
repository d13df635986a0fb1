//! This project on tokio: `SendFile::to_tokio`.

use uncopied::SendFile;

use crate::copy::contender::FileSender;
use crate::copy::job::CopyJob;
use crate::error::{Context, Error};
use crate::machine::dependency_version;
use crate::runtime;

pub(super) const CONTENDER: FileSender = FileSender {
    name: "uncopied-tokio",
    about: "`uncopied::SendFile::to_tokio` on tokio's `TcpStream`, current-thread runtime",
    ours: true,
    version: || ["uncopied", "tokio"].map(dependency_version).join(", "),
    send,
};

fn send(job: CopyJob) -> Result<u64, Error> {
    runtime::current_thread()?.block_on(async {
        let socket = runtime::tokio_stream(job.socket)?;
        let report = SendFile::new(&job.file)
            .to_tokio(&socket)
            .await
            .context(|| "cannot send the file".into())?;
        Ok(report.bytes())
    })
}
