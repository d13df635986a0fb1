//! Copying from anything to anything: the call that replaces `std::io::copy`.

mod ends;
mod through;
#[cfg(feature = "tokio")]
pub(crate) mod tokio;

use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicBool;

use rustix::io::Errno;

use crate::driver;
use crate::endpoint::{self, Side};
use crate::error::{Error, ErrorKind};
use crate::policy::{CopyPlanInput, DescriptorKind, Direction, SinkKind, Support, plan_copy};
use crate::receive::ReceiveFile;
use crate::relay::RelayOptions;
use crate::report::Report;
use crate::send::SendFile;
use crate::transfer::{AnyTransfer, DescriptorTransfer};

pub use ends::{CopySink, CopySource, Through};
use ends::{SinkEnd, SourceEnd};

/// Copies everything from a source to a sink, up to the end of the source, with the best mechanism
/// for the two. Returns a report, which says how many bytes each mechanism moved.
///
/// This replaces [`std::io::copy`]: the arguments are the same, and the result has more to say. A
/// source or a sink may be a file, a socket, a pipe, a device or memory, by value or as a `&mut` or
/// a shared reference. Anything else that implements [`Read`](std::io::Read) or
/// [`Write`](std::io::Write), such as a compressor, is wrapped in [`Through`].
///
/// ```
/// use std::{fs::File, net::{TcpListener, TcpStream}};
///
/// # let listener = TcpListener::bind("127.0.0.1:0")?;
/// # let address = listener.local_addr()?;
/// let mut file = File::open("Cargo.toml")?;
/// let mut socket = TcpStream::connect(address)?;
/// // std::io::copy(&mut file, &mut socket)?;
/// let report = uncopied::copy(&mut file, &mut socket)?;
/// println!("{report}");
/// # assert_eq!(report.by(uncopied::Mechanism::Sendfile), report.bytes());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Mechanisms
///
/// | from | to | mechanism |
/// |---|---|---|
/// | a file | a socket | as [`send_file`](crate::send_file()) |
/// | a socket | a file, a pipe, a device | as [`receive_file`](crate::receive_file()) |
/// | a socket | a socket | as [`relay`](crate::relay), in one direction |
/// | a file | a file | `copy_file_range`, or else `sendfile` |
/// | a pipe | a file, a socket, a pipe, `/dev/null` | `splice`, in one call |
/// | a file | a pipe | `splice`, in one call |
/// | anything else | | `copy` |
///
/// A file that was opened with `O_APPEND` gets copies. If a mechanism is refused, the next best one
/// takes over, as the report says.
///
/// Memory is copied to a socket, because it is only borrowed. To send it without a copy, use a
/// [`Sender`](crate::Sender).
///
/// # Positions and ends
///
/// As with [`std::io::copy`], reading and writing begin where a file stands, and its position is
/// moved on. After an error, the position of each file is that of the first byte that was not
/// copied. Nothing is truncated, closed or shut down.
///
/// If source and sink are the same file, only the bytes that it has at the start are copied.
/// [`std::io::copy`] would go on for as long as there is space.
///
/// Blocking and non-blocking descriptors may be used. The timeouts of a socket apply
/// (`SO_RCVTIMEO`, `SO_SNDTIMEO`). The descriptor of a buffered object, such as a
/// [`BufReader`](std::io::BufReader), knows nothing of what is in the buffer, so pass the object
/// itself, in [`Through`].
///
/// # Errors
///
/// See [`ErrorKind`]. The error says how many bytes the sink has accepted, and which of the two
/// ends has failed ([`Error::side`]). Bytes that were taken from a socket, a pipe or a reader and
/// that the sink has not accepted, at most 2 MiB, are lost.
///
/// # Stability of the bytes
///
/// Sockets and pipes may get references to the pages of a file, as with
/// [`send_file`](crate::send_file()): a later write to the file may still change what is received.
pub fn copy(mut source: impl CopySource, mut sink: impl CopySink) -> Result<Report, Error> {
    match (source.end(), sink.end()) {
        (SourceEnd::Descriptor(source), SinkEnd::Descriptor(sink)) => {
            copy_descriptors(source, sink, &AtomicBool::new(false))
        }
        (source, sink) => through::copy(source, sink),
    }
}

/// Copies between two descriptors, until the end of the source or until `is_stopped` becomes true.
fn copy_descriptors(
    source: BorrowedFd<'_>,
    sink: BorrowedFd<'_>,
    is_stopped: &AtomicBool,
) -> Result<Report, Error> {
    let mut running = Running::new(source, sink)?;
    driver::blocking::run_any(&mut running.transfer, source, sink, is_stopped)?;
    Ok(running.report())
}

/// A transfer that is running. However it ends, also if a future is dropped, the positions of the
/// files then say what was copied.
struct Running<'a> {
    transfer: AnyTransfer,
    source: BorrowedFd<'a>,
    sink: BorrowedFd<'a>,
}

impl<'a> Running<'a> {
    fn new(source: BorrowedFd<'a>, sink: BorrowedFd<'a>) -> Result<Self, Error> {
        Ok(Self {
            transfer: transfer(source, sink)?,
            source,
            sink,
        })
    }

    fn report(&self) -> Report {
        self.transfer.report().clone()
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.transfer.store_positions(self.source, self.sink);
    }
}

/// Returns the transfer that is best for these two descriptors.
fn transfer(source: BorrowedFd<'_>, sink: BorrowedFd<'_>) -> Result<AnyTransfer, Error> {
    let source_kind =
        endpoint::descriptor_kind_of_source(source).map_err(|errno| failed("fstat", errno))?;
    let sink_kind = endpoint::descriptor_kind_of_sink(sink);
    Ok(match (source_kind, sink_kind) {
        (DescriptorKind::Socket, DescriptorKind::Socket) => {
            AnyTransfer::Relay(RelayOptions::new().transfer(&[]))
        }
        (DescriptorKind::File, DescriptorKind::Socket) => {
            let position = endpoint::position(source).map_err(|errno| failed("lseek", errno))?;
            AnyTransfer::Send(SendFile::new(&source).range(position..).transfer(sink)?)
        }
        (DescriptorKind::Socket, _) => {
            let receive = ReceiveFile::new(&sink);
            let has_offsets =
                matches!(endpoint::sink_kind(sink), SinkKind::File | SinkKind::Direct);
            let receive = match endpoint::position(sink) {
                Ok(position) if has_offsets => receive.at(position),
                _ => receive,
            };
            AnyTransfer::Receive(receive.transfer(source)?)
        }
        (source_kind, sink_kind) => {
            let input = CopyPlanInput::new(source_kind, sink_kind);
            let plan = plan_copy(&input, &Support::of_process());
            let mut transfer = DescriptorTransfer::new(source_kind, sink_kind, plan);
            if !input.zero_copy_enabled {
                transfer.set_switched_off();
            }
            AnyTransfer::Descriptors(match endpoint::rest_of_same_file(source, sink) {
                Some(bytes) => transfer.at_most(bytes),
                None => transfer,
            })
        }
    })
}

fn failed(call: &'static str, errno: Errno) -> Error {
    Error::before_transfer(ErrorKind::Source, Some(call), Some(errno.into()))
        .in_direction(Direction::DescriptorToDescriptor)
        .at_side(Side::Source)
}
