//! A plain loop of `recv`, the call that every program can use. It is the baseline: the report has
//! the ratio of every other contender to it.

use std::io::{ErrorKind, Read};
use std::iter;

use crate::error::{Context, Error};
use crate::machine;
use crate::receive::contender::{MemoryReceiver, PageAligned, READ_BYTES};
use crate::receive::job::ReceiveJob;
use crate::receive::meter::Meter;

pub(in crate::receive) const CONTENDER: MemoryReceiver = MemoryReceiver {
    name: "recv",
    about: "a plain loop of the standard library's `read` (`recv`) on a blocking socket, into one \
            buffer of 256 KiB that begins at a page",
    ours: false,
    version: || Ok(machine::own_version()),
    receive,
};

fn receive(job: ReceiveJob, meter: &mut Meter) -> Result<u64, Error> {
    let mut stream = job.stream;
    let mut memory = PageAligned::new(READ_BYTES);
    let buffer = memory.bytes();
    loop {
        match stream.read(buffer) {
            Ok(0) => return Ok(0),
            Ok(len) => meter.add(iter::once(&buffer[..len]))?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context(|| "cannot receive".into()),
        }
    }
}
