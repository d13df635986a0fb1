//! This project on tokio: `tokio::Sender`, with memory that all connections share.

use bytes::Bytes;
use uncopied::tokio::Sender;
use uncopied::{Mechanism, Memory, SendOptions};

use super::each_connection;
use super::one_mechanism::{self, BufferKind, permanent_pages};
use crate::error::{Context, Error};
use crate::machine::dependency_version;
use crate::memory::contender::{MemorySender, SendingProgram};
use crate::memory::job::{MemoryJob, SentBytes};

pub(super) const VMSPLICE: MemorySender = MemorySender {
    name: "tokio-vmsplice",
    about: "uncopied's sender on tokio, one per connection, with `vmsplice` from permanently frozen \
            huge pages (`PageBuffer::huge`), current-thread runtime",
    ours: true,
    version: || one_mechanism::version(Mechanism::Vmsplice, BufferKind::FrozenPermanently),
    program: SendingProgram::OwnFanOut(|job| {
        let pages = permanent_pages(&job.payload)?;
        let options = SendOptions::default().force_mechanisms(&[Mechanism::Vmsplice]);
        send(job, &pages, &options)
    }),
};

pub(super) const BYTES: MemorySender = MemorySender {
    name: "tokio-bytes",
    about: "uncopied's sender on tokio, one per connection, with `Bytes` made from a `Vec` and with \
            the mechanism that the library chooses (on loopback `copy`), current-thread runtime",
    ours: true,
    version: || Ok(dependency_version("uncopied")),
    program: SendingProgram::OwnFanOut(|job| {
        let bytes = Bytes::from(job.payload.clone());
        send(job, &bytes, &SendOptions::default())
    }),
};

/// Sends `memory` to each peer until the job ends. Then waits until the kernel has reported for the
/// last send to each peer whether it was copied.
fn send<M>(job: MemoryJob, memory: &M, options: &SendOptions) -> Result<SentBytes, Error>
where
    M: Into<Memory> + Clone + Send + Sync + 'static,
{
    each_connection::send(job, |stream, job| {
        let memory = memory.clone();
        let mut sender = Sender::with(stream, options.clone());
        async move {
            let mut last = None;
            while job.continues() {
                let sent = sender.send(memory.clone()).await;
                last = Some(sent.context(|| "cannot send".into())?.into_completion());
            }
            if let Some(last) = last {
                last.await;
            }
            let report = sender.report();
            Ok(SentBytes {
                total: report.bytes(),
                copied: report.copied_bytes(),
            })
        }
    })
}
