//! Measures how much resident memory a server uses per idle keep-alive connection.

use std::thread;
use std::time::Duration;

use super::load::Served;
use super::load::check::open_checked;
use super::load::request::Requests;
use crate::error::Error;
use crate::process::Server;
use crate::{interrupt, measure};

/// The pause between the last request and reading the server's memory. It gives the server time to
/// free what it needed only while it handled the requests.
const RELEASE_TIME: Duration = Duration::from_millis(1000);

/// The number of connections that warm up the server before the measurement, so that memory that
/// the server allocates only once does not count.
const WARM_UP_CONNECTIONS: usize = 32;

/// Maximum size of one read.
const BUFFER_BYTES: usize = 64 * 1024;

/// The resident memory of a server before and after idle connections were opened.
#[derive(Debug, Clone, Copy)]
pub(super) struct Footprint {
    /// The number of idle connections.
    pub(super) connections: usize,
    /// The resident memory before the connections were opened.
    pub(super) before_bytes: u64,
    /// The resident memory while all connections were open and idle.
    pub(super) after_bytes: u64,
}

impl Footprint {
    /// The growth in resident memory divided by the number of connections.
    pub(super) fn bytes_per_connection(&self) -> f64 {
        (self.after_bytes as f64 - self.before_bytes as f64) / self.connections as f64
    }
}

/// Measures a server that has just been started. Opens `count` connections, makes one request on
/// each, and keeps all of them open.
pub(super) fn measure(
    server: &mut Server,
    served: &Served<'_>,
    count: usize,
) -> Result<Footprint, Error> {
    let mut requests = Requests::new(served, false);
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut open = |count: usize| {
        let mut streams = Vec::with_capacity(count);
        for _ in 0..count {
            interrupt::check()?;
            streams.push(open_checked(served, &requests.next(), &mut buffer)?.0);
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

/// Returns an error unless the connection is still open and has nothing to read. Without this
/// check, a server that closes idle connections early would seem to need little memory for them.
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
