//! Sending a file.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{MemfdFlags, memfd_create};
use uncopied::policy::Length;
use uncopied::{Mechanism, ReceiveFile, SendFile};

use super::{
    Refusal, TRIAL_BYTES, connection, exchange, forced, moved_by, of_error, pattern, wrong_bytes,
};
use crate::error::kernel_text;

/// How many bytes are sent and overwritten before the peer reads them: little enough for the buffer
/// of any socket.
const OVERWRITTEN_BYTES: usize = 16 << 10;

/// How the socket got the pages of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Pages {
    /// As references: what was written to the file after the send had returned reached the peer.
    Shared,
    /// As a copy: the peer received what was in the file at the time of the send.
    Copied,
}

/// Returns a file in memory, which every kernel can send in every way.
pub(in super::super) fn file_in_memory() -> io::Result<File> {
    Ok(memfd_create("uncopied-probe", MemfdFlags::CLOEXEC)?.into())
}

/// Fills a file that can be written to, so that it can be sent.
pub(in super::super) fn fill(file: &File) -> io::Result<()> {
    file.write_all_at(&pattern(0, TRIAL_BYTES), 0)
}

/// Sends up to [`TRIAL_BYTES`] of a file with this mechanism, and returns how many were sent.
pub(in super::super) fn send(file: &File, mechanism: Mechanism) -> Result<usize, Refusal> {
    let expected = start(file)?;
    let (report, received) = exchange(|socket| {
        let file = SendFile::new(file).range(..expected.len() as u64);
        file.force_mechanisms(forced(mechanism).mechanisms())
            .to(socket)
    })?;
    moved_by(mechanism, &report)?;
    if received == expected {
        return Ok(received.len());
    }
    match start(file)? == expected {
        true => Err(wrong_bytes()),
        false => Err(Refusal::Other(
            "the file changes while it is read, so nothing can be compared: name another one"
                .into(),
        )),
    }
}

/// Receives [`TRIAL_BYTES`] into a file with `splice`.
pub(in super::super) fn receive(file: &File) -> Result<(), Refusal> {
    let bytes = pattern(8, TRIAL_BYTES);
    let (mut near, far) = connection()?;
    // The buffers of the sockets have room for this.
    near.write_all(&bytes)
        .and_then(|()| near.shutdown(Shutdown::Write))
        .map_err(|error| Refusal::Other(format!("sending failed: {}", kernel_text(&error))))?;
    let sink = ReceiveFile::new(file).length(Length::Exact(bytes.len() as u64));
    let report = sink
        .force_mechanisms(forced(Mechanism::Splice).mechanisms())
        .from(&far);
    let report = report.map_err(|error| of_error(&error))?;
    if report.switched_off() {
        return Err(Refusal::SwitchedOff("UNCOPIED_RECEIVE"));
    }
    moved_by(Mechanism::Splice, &report)?;
    match start(file)? == bytes {
        true => Ok(()),
        false => Err(wrong_bytes()),
    }
}

/// Reads the first [`TRIAL_BYTES`] of a file, or all of it if it is shorter.
fn start(file: &File) -> Result<Vec<u8>, Refusal> {
    let mut bytes = vec![0; TRIAL_BYTES];
    let mut len = 0;
    while len < bytes.len() {
        match file.read_at(&mut bytes[len..], len as u64) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                let why = format!("the file cannot be read: {}", kernel_text(&error));
                return Err(Refusal::Other(why));
            }
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}

/// Sends the start of a file, overwrites it before the peer reads, and looks at what the peer gets.
/// The mechanism must be one that has worked.
pub(in super::super) fn pages(file: &File, mechanism: Mechanism) -> Result<Pages, Refusal> {
    let write = |seed| {
        let bytes = pattern(seed, OVERWRITTEN_BYTES);
        let written = file.write_all_at(&bytes, 0).map(|()| bytes);
        written.map_err(|error| {
            Refusal::Other(format!(
                "the file cannot be written to: {}",
                kernel_text(&error)
            ))
        })
    };
    let (near, mut far) = connection()?;
    write(1)?;
    let file = SendFile::new(file).range(..OVERWRITTEN_BYTES as u64);
    let report = file
        .force_mechanisms(forced(mechanism).mechanisms())
        .to(&near);
    moved_by(mechanism, &report.map_err(|error| of_error(&error))?)?;
    let new = write(2)?;
    let mut received = Vec::new();
    let ended = near.shutdown(Shutdown::Write);
    let read = ended.and_then(|()| far.read_to_end(&mut received));
    read.map_err(|error| Refusal::Other(format!("receiving failed: {}", kernel_text(&error))))?;
    Ok(match received == new {
        true => Pages::Shared,
        false => Pages::Copied,
    })
}
