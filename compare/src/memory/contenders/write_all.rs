//! tokio's `write_all`: how asynchronous programs usually send memory.

use tokio::io::AsyncWriteExt;

use super::each_connection;
use crate::error::{Context, Error};
use crate::machine::dependency_version;
use crate::memory::contender::{MemorySender, SendingProgram};
use crate::memory::job::{MemoryJob, SentBytes};

pub(super) const CONTENDER: MemorySender = MemorySender {
    name: "write-all",
    about: "a loop of tokio's `write_all` per connection, current-thread runtime",
    ours: false,
    version: || Ok(dependency_version("tokio")),
    program: SendingProgram::OwnFanOut(send),
};

fn send(job: MemoryJob) -> Result<SentBytes, Error> {
    each_connection::send(job, |mut stream, job| async move {
        let mut bytes = 0;
        while job.continues() {
            stream
                .write_all(&job.payload)
                .await
                .context(|| "cannot write".into())?;
            bytes += job.payload.len() as u64;
        }
        Ok(SentBytes::all_copied(bytes))
    })
}
