//! The code that the contenders on tokio share. They send over any number of connections.

use std::mem;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::error::{Context, Error};
use crate::memory::job::{MemoryJob, SentBytes};
use crate::runtime;

/// Calls `send` with each connection, in a task of its own, so that no connection waits for
/// another. Returns the sums of the numbers that the tasks return.
pub(super) fn send<F>(
    mut job: MemoryJob,
    send: impl Fn(TcpStream, Arc<MemoryJob>) -> F,
) -> Result<SentBytes, Error>
where
    F: Future<Output = Result<SentBytes, Error>> + Send + 'static,
{
    let streams = mem::take(&mut job.streams);
    let job = Arc::new(job);
    runtime::current_thread()?.block_on(async {
        let mut tasks = JoinSet::new();
        for stream in streams {
            tasks.spawn(send(runtime::tokio_stream(stream)?, Arc::clone(&job)));
        }
        let mut sent = SentBytes::default();
        while let Some(result) = tasks.join_next().await {
            let by_task = result.context(|| "a task failed".into())??;
            sent.total += by_task.total;
            sent.copied += by_task.copied;
        }
        Ok(sent)
    })
}
