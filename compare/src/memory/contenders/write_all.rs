//! tokio's `write_all`: how asynchronous programs usually send memory.

use tokio::io::AsyncWriteExt;

use crate::error::{Context, Error};
use crate::machine::dependency_version;
use crate::memory::contender::{MemorySender, SendingProgram};
use crate::memory::job::{MemoryJob, SentBytes};
use crate::runtime;

pub(super) const CONTENDER: MemorySender = MemorySender {
    name: "write-all",
    about: "a loop of tokio's `write_all`, current-thread runtime",
    ours: false,
    version: || Ok(dependency_version("tokio")),
    program: SendingProgram::Own(send),
};

fn send(job: MemoryJob) -> Result<SentBytes, Error> {
    let mut bytes = 0;
    runtime::current_thread()?.block_on(async {
        let stream = job.stream.try_clone();
        let stream = stream.context(|| "cannot share the socket".into())?;
        let mut stream = runtime::tokio_stream(stream)?;
        while job.continues() {
            stream
                .write_all(&job.payload)
                .await
                .context(|| "cannot write".into())?;
            bytes += job.payload.len() as u64;
        }
        Ok::<_, Error>(())
    })?;
    Ok(SentBytes::all_copied(bytes))
}
