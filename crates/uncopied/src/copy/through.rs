//! Copying through the `read` or the `write` of an end that is no descriptor, and from memory.

use std::io;
use std::os::fd::BorrowedFd;

use bytes::Buf;
use rustix::io::Errno;

use super::{SinkEnd, SourceEnd};
use crate::driver;
use crate::endpoint::{self, Side};
use crate::error::{Error, ErrorKind};
use crate::policy::{DescriptorKind, Direction, Mechanism};
use crate::report::Report;
use crate::sys::{Kernel, Linux};

/// The size of the buffer: large enough that the system calls cost little compared with the copies,
/// and small enough that the bytes stay in a core's cache between the two copies.
pub(super) const BUFFER_BYTES: usize = 128 << 10;

/// Copies until the end of the source. At least one of the two is no descriptor.
pub(super) fn copy(source: SourceEnd<'_>, mut sink: SinkEnd<'_>) -> Result<Report, Error> {
    let sink_descriptor = match &sink {
        SinkEnd::Descriptor(sink) => Some(*sink),
        SinkEnd::Writer(_) => None,
    };
    let count = |source| Count::new(source, sink_descriptor);
    match source {
        SourceEnd::Descriptor(source) => {
            let read = |buffer: &mut [u8]| read_descriptor(source, buffer);
            let on_error = |unwritten| give_back(source, unwritten);
            copy_reads(count(Some(source)), read, &mut sink, on_error)
        }
        SourceEnd::Reader(reader) => {
            copy_reads(count(None), |buffer| reader.read(buffer), &mut sink, |_| ())
        }
        SourceEnd::Memory(memory) => {
            let mut count = count(None);
            while memory.has_remaining() {
                let chunk = memory.chunk();
                let written = count.written(write(&mut sink, chunk), chunk.len())?;
                memory.advance(written);
            }
            Ok(count.report)
        }
    }
}

/// Copies until `read` returns 0. If the sink fails, calls `on_error` with the number of bytes that
/// it has not accepted.
fn copy_reads(
    mut count: Count,
    mut read: impl FnMut(&mut [u8]) -> io::Result<usize>,
    sink: &mut SinkEnd<'_>,
    on_error: impl Fn(usize),
) -> Result<Report, Error> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = match read(&mut buffer) {
            Ok(0) => return Ok(count.report),
            Ok(read) => read.min(BUFFER_BYTES),
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => continue,
            Err(cause) => return Err(count.read_error(cause)),
        };
        let mut rest = &buffer[..read];
        while !rest.is_empty() {
            match count.written(write(sink, rest), rest.len()) {
                Ok(written) => rest = &rest[written..],
                Err(error) => {
                    on_error(rest.len());
                    return Err(error);
                }
            }
        }
    }
}

/// Moves the position of a file back, so that the bytes that the sink has not accepted are read
/// again.
pub(super) fn give_back(source: BorrowedFd<'_>, unwritten: usize) {
    if let Ok(bytes) = i64::try_from(unwritten) {
        // A source without a position fails, with `ESPIPE`.
        let _ = rustix::fs::seek(source, rustix::fs::SeekFrom::Current(-bytes));
    }
}

fn read_descriptor(source: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match Linux.read(source, buffer) {
            Err(Errno::AGAIN) => wait(source, Side::Source)?,
            read => return Ok(read?),
        }
    }
}

fn write(sink: &mut SinkEnd<'_>, bytes: &[u8]) -> io::Result<usize> {
    loop {
        let written = match sink {
            SinkEnd::Descriptor(sink) => match Linux.write(*sink, bytes, None) {
                Err(Errno::AGAIN) => {
                    wait(*sink, Side::Sink)?;
                    continue;
                }
                written => written.map_err(Into::into),
            },
            SinkEnd::Writer(writer) => writer.write(bytes),
        };
        match written {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            written => return written,
        }
    }
}

/// Waits until a non-blocking descriptor is ready. If it is a blocking socket, its timeout has
/// expired.
fn wait(descriptor: BorrowedFd<'_>, side: Side) -> io::Result<()> {
    match endpoint::is_blocking(descriptor) {
        true => Err(io::ErrorKind::TimedOut.into()),
        false => driver::blocking::wait_until_ready(descriptor, side),
    }
}

/// What was copied, and what the errors depend on.
pub(super) struct Count {
    pub(super) report: Report,
    source: Direction,
    sink: Direction,
    is_sink_socket: bool,
}

impl Count {
    /// Counts what is copied between these descriptors. `None` stands for an end that is none.
    pub(super) fn new(source: Option<BorrowedFd<'_>>, sink: Option<BorrowedFd<'_>>) -> Self {
        let is_socket =
            |fd: BorrowedFd<'_>| endpoint::descriptor_kind_of_sink(fd) == DescriptorKind::Socket;
        let other = Direction::DescriptorToDescriptor;
        Self {
            report: Report::default(),
            source: match source.is_some_and(is_socket) {
                true => Direction::SocketToMemory,
                false => other,
            },
            sink: other,
            is_sink_socket: sink.is_some_and(is_socket),
        }
    }

    /// Counts what a write of some bytes has moved. A write that moves nothing is an error.
    pub(super) fn written(
        &mut self,
        written: io::Result<usize>,
        of: usize,
    ) -> Result<usize, Error> {
        match written {
            Ok(0) => Err(self.write_error(io::ErrorKind::WriteZero.into())),
            Ok(written) => {
                // A writer of the program may return anything.
                let written = written.min(of);
                self.report.count(Mechanism::Copy, written as u64);
                Ok(written)
            }
            Err(cause) => Err(self.write_error(cause)),
        }
    }

    pub(super) fn read_error(&self, cause: io::Error) -> Error {
        self.error(Side::Source, "read", cause)
            .in_direction(self.source)
    }

    pub(super) fn write_error(&self, cause: io::Error) -> Error {
        let error = self
            .error(Side::Sink, "write", cause)
            .in_direction(self.sink);
        match self.is_sink_socket {
            true => error.of_socket_sink(),
            false => error,
        }
    }

    fn error(&self, side: Side, call: &'static str, cause: io::Error) -> Error {
        let kind = match (side, cause.kind()) {
            (_, io::ErrorKind::TimedOut) => ErrorKind::TimedOut,
            (Side::Source, _) => ErrorKind::Source,
            (Side::Sink, _) => ErrorKind::Sink,
        };
        Error::of_transfer(
            kind,
            Mechanism::Copy,
            call,
            self.report.clone(),
            Some(cause),
        )
        .at_side(side)
    }
}
