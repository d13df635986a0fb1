//! Moves a file to a socket by mapping it and `send(2)` from the mapping.
//!
//! # Moves
//!
//! The kernel copies the mapped pages into the socket: one copy, where read + write makes two.
//!
//! # Needs
//!
//! A file that can be mapped, and room in the arena. Any stream socket.
//!
//! # Errno
//!
//! | step | errno | outcome |
//! |---|---|---|
//! | asking for the size | any | unsupported: reading may still work |
//! | reading past the size | `EAGAIN` | blocked on the source |
//! | reading past the size | any other (`ESPIPE`, …) | failed, of the source |
//! | mapping | any (`ENODEV`, `ENOMEM`, `EACCES`, `EMFILE`, …) | unsupported |
//! | sending | `EAGAIN` | blocked on the sink |
//! | sending | `EINTR` | again: no byte was moved |
//! | sending | `EFAULT` | again if the file is shorter now, otherwise unsupported |
//! | sending | any other | failed, of the sink |
//! | asking for the size again | any | failed, of the source |
//!
//! `EFAULT` means that a page is missing. Either the file was truncated, and the next step finds
//! the new end; or the page cannot be read from the disk, and a read reports the errno. If the size
//! cannot be determined after a send, the bytes have gone out and may not have been the file's.
//!
//! # Caveats
//!
//! - The well-known trap, a SIGBUS if the file is truncated, is not here: no code in user space
//!   reads the mapping, and the kernel's own access to a missing page fails with `EFAULT`.
//! - A file that is truncated in the middle of a page leaves zeroes in the rest of the page. So the
//!   size is determined before each send and again after it. If the file no longer reaches as far
//!   as what was sent, the transfer fails rather than pass the zeroes off as bytes of the file.
//! - The bytes are copied during the call, and cannot change afterwards.
//! - At the offset where the size says that the file ends, one byte is read: files of procfs and
//!   block devices have more bytes than their size says. They cannot be sent by this mechanism.
//! - A mapped window is at most 1 GiB; larger files go window by window.
//!
//! # References
//!
//! `mmap(2)`, `send(2)`.

use std::fs::File;
use std::sync::Arc;

use rustix::io::{Errno, Result};

use super::FileStep;
use crate::arena::FileMapping;
use crate::mechanism::{Outcome, Side, Status, retry_on_intr, sink_failure};
use crate::sys::Kernel;

/// The most that is mapped at a time.
const WINDOW_BYTES: u64 = 1 << 30;

/// Windows begin at a multiple of this, which is a multiple of every page size of Linux.
const WINDOW_ALIGN_BYTES: u64 = 64 << 10;

/// The part of the file that is mapped.
#[derive(Debug, Default)]
pub(crate) struct MmapWrite {
    window: Option<FileMapping>,
}

impl MmapWrite {
    /// Begins with a window that is already mapped, if there is one.
    pub(crate) fn new(window: Option<&FileMapping>) -> Self {
        Self {
            window: window.cloned(),
        }
    }

    pub(crate) fn step(&mut self, kernel: &impl Kernel, step: FileStep<'_>) -> Outcome {
        let size = match kernel.file_size(step.source) {
            Ok(size) => size,
            Err(errno) => return Status::Unsupported(errno).into(),
        };
        if step.offset >= size {
            return at_the_end(kernel, step).into();
        }
        let window = match self.window_at(kernel, step, size) {
            Ok(window) => window,
            Err(errno) => return Status::Unsupported(errno).into(),
        };
        let start = (step.offset - window.offset()) as usize;
        let in_file = usize::try_from(size - step.offset).unwrap_or(usize::MAX);
        let count = step.want().min(in_file).min(window.len() - start);
        let bytes = window.mapped(start, count);
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

    fn window_at(
        &mut self,
        kernel: &impl Kernel,
        step: FileStep<'_>,
        size: u64,
    ) -> Result<&FileMapping> {
        let has_it = |window: &FileMapping| {
            let end = window.offset() + window.len() as u64;
            (window.offset()..end).contains(&step.offset)
        };
        if !self.window.as_ref().is_some_and(has_it) {
            let start = step.offset / WINDOW_ALIGN_BYTES * WINDOW_ALIGN_BYTES;
            let end = step
                .remaining
                .map_or(size, |bytes| size.min(step.offset.saturating_add(bytes)));
            let len = (end - start).min(WINDOW_BYTES) as usize;
            self.window = None;
            let file = File::from(rustix::io::fcntl_dupfd_cloexec(step.source, 3)?);
            self.window = Some(FileMapping::map(kernel, Arc::new(file), start, len)?);
        }
        self.window.as_ref().ok_or(Errno::FAULT)
    }
}

/// Files of procfs and block devices have bytes although their size is 0: the end is where a read
/// returns none.
fn at_the_end(kernel: &impl Kernel, step: FileStep<'_>) -> Status {
    match retry_on_intr(|| kernel.read_at(step.source, &mut [0], step.offset)) {
        Ok(0) => Status::Ended,
        Ok(_) => Status::Unsupported(Errno::NODEV),
        Err(Errno::AGAIN) => Status::Blocked(Side::Source),
        Err(errno) => Status::Failed(Side::Source, errno),
    }
}

/// The bytes sent were the file's only if the file still reaches that far.
fn after_send(kernel: &impl Kernel, step: FileStep<'_>, moved: usize) -> Outcome {
    let status = match kernel.file_size(step.source) {
        Ok(now) if now >= step.offset + moved as u64 => Status::Continue,
        Ok(_) => Status::Failed(Side::Source, Errno::NODATA),
        Err(errno) => Status::Failed(Side::Source, errno),
    };
    Outcome {
        moved: moved as u64,
        status,
    }
}
