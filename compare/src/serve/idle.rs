//! What an idle keep-alive connection costs in resident memory.

use std::thread;
use std::time::Duration;

use crate::error::Error;
use crate::load::{self, Target};
use crate::process::Server;
use crate::{interrupt, measure};

/// How long a server may take to give back what a request needed.
const SETTLE: Duration = Duration::from_millis(1000);

/// Connections that warm the server up, so that what it allocates once is not divided among all.
const WARM_UP_CONNECTIONS: usize = 32;

/// The largest answer that is read in one piece.
const BUFFER_BYTES: usize = 64 * 1024;

/// Resident memory of a server before and after its connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Footprint {
    /// Idle connections between the two.
    pub(crate) connections: usize,
    /// Before.
    pub(crate) before_bytes: u64,
    /// After, with all of them open.
    pub(crate) after_bytes: u64,
}

impl Footprint {
    /// Bytes a connection.
    pub(crate) fn bytes_each(&self) -> f64 {
        (self.after_bytes as f64 - self.before_bytes as f64) / self.connections as f64
    }
}

/// Opens `count` connections to a server that has just been started, each of which does one
/// request and stays.
pub(crate) fn measure(
    server: &mut Server,
    target: &Target<'_>,
    count: usize,
) -> Result<Footprint, Error> {
    let request = load::request(target);
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut open = |count: usize| {
        let mut streams = Vec::with_capacity(count);
        for _ in 0..count {
            interrupt::check()?;
            streams.push(load::open_checked(target, &request, &mut buffer)?.0);
        }
        Ok::<_, Error>(streams)
    };
    drop(open(WARM_UP_CONNECTIONS)?);
    thread::sleep(SETTLE);
    let before_bytes = measure::resident_bytes(server.id())?;
    let streams = open(count)?;
    thread::sleep(SETTLE);
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

/// A server that closes idle connections early must not look thrifty.
fn check_still_open(stream: &std::net::TcpStream) -> Result<(), Error> {
    let closed = || Error::WrongAnswer("an idle connection did not stay open and silent".into());
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
    fn memory_is_divided_among_the_connections() {
        let footprint = Footprint {
            connections: 4,
            before_bytes: 1000,
            after_bytes: 1600,
        };
        assert!((footprint.bytes_each() - 150.0).abs() < f64::EPSILON);
        let shrunk = Footprint {
            after_bytes: 600,
            ..footprint
        };
        assert!((shrunk.bytes_each() + 100.0).abs() < f64::EPSILON);
    }
}
