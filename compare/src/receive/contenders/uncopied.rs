//! This project's receiver, with the mechanisms that it chooses, and with one that is forced.

use uncopied::{Mechanism, ReceiveOptions, Receiver};

use crate::error::{Context, Error};
use crate::machine::dependency_version;
use crate::receive::contender::{MemoryReceiver, READ_BYTES};
use crate::receive::job::ReceiveJob;
use crate::receive::meter::Meter;

pub(in crate::receive) const MAP_RECEIVE: MemoryReceiver = MemoryReceiver {
    name: "map_receive",
    about: "uncopied's receiver with `map_receive`, and `copy` for what cannot be mapped",
    receive: |job, meter| receive(job, meter, &[Mechanism::MapReceive, Mechanism::Copy]),
    ..PLAN
};

pub(in crate::receive) const PLAN: MemoryReceiver = MemoryReceiver {
    name: "plan",
    about: "uncopied's receiver with the mechanisms that it chooses",
    ours: true,
    version: || Ok(dependency_version("uncopied")),
    receive: |job, meter| receive(job, meter, &[]),
};

pub(in crate::receive) const COPY: MemoryReceiver = MemoryReceiver {
    name: "copy",
    about: "uncopied's receiver with `copy` (the difference from `recv` is the cost of our layer)",
    receive: |job, meter| receive(job, meter, &[Mechanism::Copy]),
    ..PLAN
};

fn receive(job: ReceiveJob, meter: &mut Meter, forced: &[Mechanism]) -> Result<u64, Error> {
    let options = ReceiveOptions::default()
        .chunk_bytes(READ_BYTES)
        .low_water_mark(job.low_water_mark)
        .force_mechanisms(forced);
    let mut receiver = Receiver::with(job.stream, options);
    while let Some(chunk) = receiver.receive().context(|| "cannot receive".into())? {
        // SAFETY: nobody writes to the mapped pages. The peer is the sender of this program, which
        // sends by `write` or with `MSG_ZEROCOPY`. Either way, what arrives over loopback are pages
        // that the kernel has copied, which no process has mapped for writing.
        #[allow(unsafe_code)]
        let parts = unsafe { chunk.slices() };
        meter.add(parts)?;
    }
    Ok(receiver.report().by(Mechanism::MapReceive))
}
