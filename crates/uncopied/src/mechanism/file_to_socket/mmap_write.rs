//! Moves a file to a socket with `send(2)` from a mapping of the file.
//!
//! # Moves
//!
//! The kernel copies the mapped pages into the socket: one copy, whereas `copy` (read and write)
//! makes two.
//!
//! # Needs
//!
//! A file that can be mapped, and any stream socket.
//!
//! # Errno
//!
//! | step | errno | outcome |
//! |---|---|---|
//! | getting the size before sending | any | unsupported: reading may still work |
//! | reading past the size | `EAGAIN` | blocked on the source |
//! | reading past the size | any other (`ESPIPE`, …) | failed on the source |
//! | mapping | any (`ENODEV`, `ENOMEM`, `EACCES`, …) | unsupported |
//! | sending | `EAGAIN` | blocked on the sink |
//! | sending | `EINTR` | the call is repeated: no byte was moved |
//! | sending | `EFAULT` | try again if the file is shorter now, otherwise unsupported |
//! | sending | any other | failed on the sink |
//! | getting the size after sending | any | failed on the source |
//!
//! `EFAULT` means that a page of the mapping is missing. If the file was truncated, the next step
//! finds its new end. Otherwise the page cannot be read from the disk, and the next mechanism gets
//! the disk's errno when it reads. If the size cannot be determined after a send, the transfer
//! fails, because some of the bytes sent may not be bytes of the file.
//!
//! # Caveats
//!
//! - A program that reads from a mapping of a truncated file gets a SIGBUS. This cannot happen
//!   here, because no code in user space reads the mapping. If the kernel finds a page missing,
//!   `send(2)` fails with `EFAULT`.
//! - If a file is truncated in the middle of a page, the rest of that page becomes zeros. So the
//!   size is checked before and after each send. If, after a send, the file ends before the last
//!   byte that was sent, the transfer fails, because some of the bytes sent may have been such
//!   zeros.
//! - The bytes are copied during the call and cannot change afterwards.
//! - Files of procfs and block devices contain more bytes than their reported size. So when the
//!   offset reaches the size, one byte is read at that offset. If the read returns a byte, the file
//!   cannot be sent with this mechanism.
//! - At most 1 GiB is mapped at a time. Larger files are sent window by window.
//!
//! # References
//!
//! `mmap(2)`, `send(2)`.

use rustix::io::Errno;

use super::FileStep;
use crate::mechanism::{Outcome, Side, Status, retry_on_intr, sink_failure};
use crate::sys::{Kernel, MappedWindow};

/// The most bytes that are mapped at a time.
const WINDOW_BYTES: u64 = 1 << 30;

/// Each window begins at a multiple of this number of bytes. `mmap(2)` requires a multiple of the
/// page size, and this number is a multiple of every page size in common use.
const WINDOW_ALIGN_BYTES: u64 = 64 << 10;

/// The mechanism's state: the window of the file that is currently mapped, if any.
#[derive(Debug, Default)]
pub(crate) struct MmapWrite {
    window: Option<Window>,
}

#[derive(Debug)]
struct Window {
    /// The position in the file at which the window begins, in bytes.
    offset: u64,
    mapped: MappedWindow,
}

impl Window {
    fn contains(&self, offset: u64) -> bool {
        let end = self.offset + self.mapped.len() as u64;
        (self.offset..end).contains(&offset)
    }
}

impl MmapWrite {
    pub(crate) fn step(&mut self, kernel: &impl Kernel, step: FileStep<'_>) -> Outcome {
        let size = match kernel.file_size(step.source) {
            Ok(size) => size,
            Err(errno) => return Status::Unsupported(errno).in_call("fstat"),
        };
        if step.offset >= size {
            return at_the_end(kernel, step).in_call("pread");
        }
        let window = match self.window_at(kernel, step, size) {
            Ok(window) => window,
            Err(outcome) => return outcome,
        };
        let start = (step.offset - window.offset) as usize;
        let in_file = usize::try_from(size - step.offset).unwrap_or(usize::MAX);
        let bytes = window.mapped.bytes(start, step.want().min(in_file));
        match retry_on_intr(|| kernel.send_mapped(step.sink, bytes)) {
            Ok(0) => Status::Unsupported(Errno::IO).into(),
            Ok(moved) => after_send(kernel, step, moved),
            Err(Errno::FAULT) => match kernel.file_size(step.source) {
                Ok(now) if now < size => Outcome::moved(0),
                _ => Status::Unsupported(Errno::FAULT).into(),
            },
            Err(errno) => sink_failure(errno).into(),
        }
    }

    /// Returns a window that contains the first byte of the step. Maps it if necessary.
    fn window_at(
        &mut self,
        kernel: &impl Kernel,
        step: FileStep<'_>,
        size: u64,
    ) -> Result<&Window, Outcome> {
        let window = match self.window.take() {
            Some(window) if window.contains(step.offset) => window,
            _ => {
                let offset = step.offset / WINDOW_ALIGN_BYTES * WINDOW_ALIGN_BYTES;
                let end = step
                    .remaining
                    .map_or(size, |bytes| size.min(step.offset.saturating_add(bytes)));
                let len = (end - offset).min(WINDOW_BYTES) as usize;
                let mapped = kernel
                    .map_file(step.source, offset, len)
                    .map_err(|errno| Status::Unsupported(errno).in_call("mmap"))?;
                Window { offset, mapped }
            }
        };
        Ok(self.window.insert(window))
    }
}

/// Returns the status when the offset has reached the file's size. The file has ended only if a
/// read returns no bytes, because files of procfs and block devices contain more bytes than their
/// reported size.
fn at_the_end(kernel: &impl Kernel, step: FileStep<'_>) -> Status {
    match retry_on_intr(|| kernel.read_at(step.source, &mut [0], step.offset)) {
        Ok(0) => Status::Ended,
        Ok(_) => Status::Unsupported(Errno::NODEV),
        Err(Errno::AGAIN) => Status::Blocked(Side::Source),
        Err(errno) => Status::Failed(Side::Source, errno),
    }
}

/// Returns the outcome of a send that moved `moved` bytes. The status is a failure if the file is
/// now too short to contain all of these bytes, because some of them may then have been zeros.
fn after_send(kernel: &impl Kernel, step: FileStep<'_>, moved: usize) -> Outcome {
    let status = match kernel.file_size(step.source) {
        Ok(now) if now >= step.offset + moved as u64 => Status::Continue,
        Ok(_) => Status::Failed(Side::Source, Errno::NODATA),
        Err(errno) => Status::Failed(Side::Source, errno),
    };
    Outcome {
        moved: moved as u64,
        status,
        call: Some("fstat"),
    }
}
