//! Copying from anything to anything on tokio: the call that replaces `tokio::io::copy`.

mod ends;
mod through;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Running, copy_descriptors};
use crate::driver::tokio::any::{AnySink, AnySource, run_any};
use crate::endpoint::{self, Side};
use crate::error::{Error, ErrorKind};
use crate::policy::Direction;
use crate::report::Report;

pub use ends::{CopySink, CopySource};
use ends::{Sink, Source};

/// Copies everything from a source to a sink, up to the end of the source, with the best mechanism
/// for the two. Returns a report, which says how many bytes each mechanism moved.
///
/// This replaces `tokio::io::copy`: the arguments are the same, and the result has more to say. A
/// source or a sink may be a socket, a pipe or a file of tokio, a file of std, or memory. Anything
/// else that implements `AsyncRead` or `AsyncWrite`, such as a TLS stream, is wrapped in
/// [`Through`](crate::Through). The mechanisms are those of [`uncopied::copy`](crate::copy()), and
/// so is what happens to positions and ends.
///
/// ```
/// use tokio::{fs::File, net::{TcpListener, TcpStream}};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let listener = TcpListener::bind("127.0.0.1:0").await?;
/// # let address = listener.local_addr()?;
/// let mut file = File::open("Cargo.toml").await?;
/// let mut socket = TcpStream::connect(address).await?;
/// // tokio::io::copy(&mut file, &mut socket).await?;
/// let report = uncopied::tokio::copy(&mut file, &mut socket).await?;
/// println!("{report}");
/// # assert_eq!(report.by(uncopied::Mechanism::Sendfile), report.bytes());
/// # Ok(())
/// # }
/// ```
///
/// # Files
///
/// Bytes of a file that are not in the page cache are read on tokio's blocking pool, so that the
/// event loop does not wait for the disk. A copy from a file to another runs there as a whole. A
/// terminal or a FIFO that was opened as a file is read and written there, too, and only with
/// `copy`. For a FIFO, use tokio's `pipe::OpenOptions`. A write of received bytes to a file waits
/// for the disk if too much of the page cache has not been written to the disk yet.
///
/// # Errors
///
/// See [`ErrorKind`]. The error says how many bytes the sink has accepted, and which of the two
/// ends has failed ([`Error::side`]).
///
/// # Cancellation
///
/// Dropping the future ends the copy. The position of a file is then that of the first byte that
/// was not copied, unless the other end is wrapped in [`Through`](crate::Through). Bytes that were
/// taken from a socket, a pipe or a reader and that the sink has not accepted, at most 2 MiB, are
/// lost. A copy between two files may go on for 64 MiB more.
pub async fn copy(mut source: impl CopySource, mut sink: impl CopySink) -> Result<Report, Error> {
    let source = source.end().synchronised().await?;
    let sink = sink.end().synchronised().await?;
    let (source, sink) = match (source, sink) {
        (Source::File(source), Sink::File(sink)) => return copy_files(source, sink).await,
        (source, sink) => match (source.waitable(), sink.waitable()) {
            (Some(source), Some(sink)) => (source, sink),
            _ => return through::copy(source, sink).await,
        },
    };
    let mut running = Running::new(source.descriptor(), sink.descriptor())?;
    run_any(&mut running.transfer, source, sink).await?;
    Ok(running.report())
}

/// Copies a file to another on tokio's blocking pool.
async fn copy_files(source: BorrowedFd<'_>, sink: BorrowedFd<'_>) -> Result<Report, Error> {
    let duplicate = |file: BorrowedFd<'_>, side| {
        file.try_clone_to_owned().map_err(|cause| {
            let kind = match side {
                Side::Source => ErrorKind::Source,
                Side::Sink => ErrorKind::Sink,
            };
            Error::before_transfer(kind, Some("fcntl"), Some(cause))
                .in_direction(Direction::DescriptorToDescriptor)
                .at_side(side)
        })
    };
    // Duplicates share the position with the original.
    let (source, sink) = (
        duplicate(source, Side::Source)?,
        duplicate(sink, Side::Sink)?,
    );
    let stop = StopOnDrop(Arc::default());
    let is_stopped = Arc::clone(&stop.0);
    let copied = tokio::task::spawn_blocking(move || {
        copy_descriptors(source.as_fd(), sink.as_fd(), &is_stopped)
    });
    copied.await.unwrap_or_else(|cause| {
        // The runtime is shutting down, or the copy has panicked.
        Err(
            Error::before_transfer(ErrorKind::Source, None, Some(cause.into()))
                .in_direction(Direction::DescriptorToDescriptor),
        )
    })
}

/// Tells the thread that copies to stop, once the future that waits for it is dropped.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl<'a> Source<'a> {
    /// Returns this source for a transfer on the event loop, unless it is no descriptor, or may
    /// make the event loop wait.
    fn waitable(&self) -> Option<AnySource<'a>> {
        match self {
            Self::Polled(source) => Some(AnySource::Polled(*source)),
            Self::File(file) if endpoint::is_always_ready(*file) => Some(AnySource::File(*file)),
            _ => None,
        }
    }
}

impl<'a> Sink<'a> {
    /// Returns this sink for a transfer on the event loop, unless it is no descriptor, or may make
    /// the event loop wait.
    fn waitable(&self) -> Option<AnySink<'a>> {
        match self {
            Self::Polled(sink) => Some(AnySink::Polled(*sink)),
            Self::File(file) if endpoint::is_always_ready(*file) => Some(AnySink::File(*file)),
            _ => None,
        }
    }
}
