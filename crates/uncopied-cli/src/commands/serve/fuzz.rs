//! What the fuzz targets use, in `fuzz/` and in the tests that replay their inputs.

use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::sync::Arc;

use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use uncopied_http::{Address, ServeFiles, Stream, StreamOptions};

use super::connection::{
    Connection, ConnectionGuard, ConnectionSettings, ConnectionState, WorkerStats,
};

pub use super::connection::{ParsedHead, parse_head};

/// Serves the files beneath a directory on connections that a fuzz target or a test makes.
pub struct FuzzServer(Arc<ConnectionSettings>);

impl FuzzServer {
    /// Serves the files beneath `directory`, and lists directories.
    ///
    /// # Errors
    ///
    /// The directory cannot be opened.
    pub fn new(directory: &Path) -> io::Result<Self> {
        Ok(Self(Arc::new(ConnectionSettings {
            files: ServeFiles::builder(directory).listing(true).build()?,
            stats: Arc::new(WorkerStats::default()),
            log: None,
            options: StreamOptions::default(),
        })))
    }

    /// Serves one connection until it ends. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// The socket cannot be registered with the runtime.
    pub async fn serve(&self, socket: StdUnixStream) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        let stream = Stream::unix(UnixStream::from_std(socket)?, StreamOptions::default());
        let permits = Arc::new(Semaphore::new(0));
        let guard = ConnectionGuard::register(ConnectionState::new(), &self.0.stats, &permits);
        let connection = Connection::new(stream.into_inner(), Address::Unix, &guard, &self.0);
        connection.run(guard).await;
        Ok(())
    }
}
