//! The resident memory that an idle keep-alive connection costs.

use std::thread;
use std::time::Duration;

use super::load::{self, ServedFile};
use crate::error::Error;
use crate::process::Server;
use crate::{interrupt, measure};

/// Time for a server to release what a request needed.
const RELEASE_TIME: Duration = Duration::from_millis(1000);

/// Connections that warm up the server, so that what it allocates only once does not count.
const WARM_UP_CONNECTIONS: usize = 32;

/// Maximum size of one read.
const BUFFER_BYTES: usize = 64 * 1024;

/// Resident memory of a server before and after its connections were opened.
#[derive(Debug, Clone, Copy)]
pub(super) struct Footprint {
    /// The number of idle connections.
    pub(super) connections: usize,
    /// Before they were opened.
    pub(super) before_bytes: u64,
    /// With all of them open.
    pub(super) after_bytes: u64,
}

impl Footprint {
    /// Bytes per connection.
    pub(super) fn bytes_per_connection(&self) -> f64 {
        (self.after_bytes as f64 - self.before_bytes as f64) / self.connections as f64
    }
}

/// Opens `count` connections to a server that has just been started. Each of them makes one request
/// and stays open.
pub(super) fn measure(
    server: &mut Server,
    served: &ServedFile<'_>,
    count: usize,
) -> Result<Footprint, Error> {
    let request = load::request(served);
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut open = |count: usize| {
        let mut streams = Vec::with_capacity(count);
        for _ in 0..count {
            interrupt::check()?;
            streams.push(load::open_checked(served, &request, &mut buffer)?.0);
        }
        Ok::<_, Error>(streams)
    };
    drop(open(WARM_UP_CONNECTIONS)?);
    thread::sleep(RELEASE_TIME);
    let before_bytes = measure::resident_bytes(server.id())?;
    let streams = open(count)?;
    thread::sleep(RELEASE_TIME);
    let after_bytes = measure::resident_bytes(server.id())?;
    server.check_alive()?;
    for stream in &streams {
        check_still_open(stream)?;
    }
    Ok(Footprint {
        connections: streams.len(),
        before_bytes,
        after_bytes,
    })
}

/// A server that closes idle connections early must not seem to need little memory.
fn check_still_open(stream: &std::net::TcpStream) -> Result<(), Error> {
    let closed = || Error::WrongResult("an idle connection did not stay open and silent".into());
    stream.set_nonblocking(true).map_err(|_| closed())?;
    match stream.peek(&mut [0]) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
        Ok(_) | Err(_) => Err(closed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_growth_is_divided_by_the_connections() {
        let footprint = Footprint {
            connections: 4,
            before_bytes: 1000,
            after_bytes: 1600,
        };
        assert!((footprint.bytes_per_connection() - 150.0).abs() < f64::EPSILON);
        let shrunk = Footprint {
            after_bytes: 600,
            ..footprint
        };
        assert!((shrunk.bytes_per_connection() + 100.0).abs() < f64::EPSILON);
    }
}
