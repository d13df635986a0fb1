//! tokio's `write_all`: what an asynchronous program does today.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::{Contender, How};
use crate::error::{Context, Error};
use crate::machine::dependency_version;
use crate::memory::sender::{Job, Sent};

pub(super) const CONTENDER: Contender = Contender {
    name: "write-all",
    about: "a loop of tokio's `write_all`, current-thread runtime",
    ours: false,
    version: || Ok(dependency_version("tokio")),
    how: How::Within(send),
};

fn send(job: Job) -> Result<Sent, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context(|| "cannot start the runtime".into())?;
    let mut bytes = 0;
    runtime.block_on(async {
        let stream = job
            .stream
            .try_clone()
            .and_then(|stream| stream.set_nonblocking(true).map(|()| stream))
            .and_then(TcpStream::from_std);
        let mut stream = stream.context(|| "cannot give tokio the socket".into())?;
        while job.goes_on() {
            stream
                .write_all(&job.payload)
                .await
                .context(|| "cannot write".into())?;
            bytes += job.payload.len() as u64;
        }
        Ok::<_, Error>(())
    })?;
    // Every byte of a write is copied.
    Ok(Sent {
        bytes,
        copied: bytes,
    })
}
