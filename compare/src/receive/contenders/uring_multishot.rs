//! io_uring's multishot `recv` with provided buffers: the other way to receive with few system
//! calls.

use std::iter;
use std::net::TcpListener;

use crate::error::{Context, Error};
use crate::machine::dependency_version;
use crate::receive::buffer_ring;
use crate::receive::contender::MemoryReceiver;
use crate::receive::job::ReceiveJob;
use crate::receive::meter::Meter;

pub(in crate::receive) const CONTENDER: MemoryReceiver = MemoryReceiver {
    name: "uring_multishot",
    about: "io_uring's multishot `recv` into a ring of 8 provided buffers of 256 KiB, each given \
            back at once, with `IORING_SETUP_DEFER_TASKRUN`",
    ours: false,
    version,
    receive,
};

fn receive(job: ReceiveJob, meter: &mut Meter) -> Result<u64, Error> {
    buffer_ring::receive(&job.stream, |bytes| meter.add(iter::once(bytes)))?;
    Ok(0)
}

/// Returns the version of the crate. First receives the end of a stream, to find out whether this
/// machine supports multishot `recv`.
fn version() -> Result<String, Error> {
    let connected = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| {
        let stream = std::net::TcpStream::connect(listener.local_addr()?)?;
        listener.accept()?;
        Ok(stream)
    });
    let stream = connected.context(|| "cannot connect to 127.0.0.1".into())?;
    buffer_ring::receive(&stream, |_| Ok(())).map_err(|error| {
        Error::Unavailable(format!("this machine does not support it: {error}"))
    })?;
    Ok(dependency_version("io-uring"))
}
