//! A plain loop of `write`: what every program can do, and what all others are compared with.

use std::io::Write;

use super::{Contender, How, own_version};
use crate::error::{Context, Error};
use crate::memory::sender::{Job, Sent};

pub(super) const CONTENDER: Contender = Contender {
    name: "write",
    about: "a plain loop of `write` on a blocking socket, by the standard library",
    ours: false,
    version: own_version,
    how: How::Within(send),
};

fn send(mut job: Job) -> Result<Sent, Error> {
    let mut bytes = 0;
    while job.goes_on() {
        job.stream
            .write_all(&job.payload)
            .context(|| "cannot write".into())?;
        bytes += job.payload.len() as u64;
    }
    // Every byte of a write is copied.
    Ok(Sent {
        bytes,
        copied: bytes,
    })
}
