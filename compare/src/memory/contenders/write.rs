//! A plain loop of `write`, the call that every program can use. It is the baseline: the report has
//! the ratio of every other contender to it.

use std::io::Write;

use crate::error::{Context, Error};
use crate::machine;
use crate::memory::contender::{MemorySender, SendingProgram};
use crate::memory::job::{MemoryJob, SentBytes};

pub(super) const CONTENDER: MemorySender = MemorySender {
    name: "write",
    about: "a plain loop of the standard library's `write_all` on a blocking socket",
    ours: false,
    version: || Ok(machine::own_version()),
    program: SendingProgram::Own(send),
};

fn send(job: MemoryJob) -> Result<SentBytes, Error> {
    let mut stream = job.stream();
    let mut bytes = 0;
    while job.continues() {
        stream
            .write_all(&job.payload)
            .context(|| "cannot write".into())?;
        bytes += job.payload.len() as u64;
    }
    Ok(SentBytes::all_copied(bytes))
}
