//! Where the bytes come from, and how they are sent.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::SockRef;
use uncopied::arena::{PageBuffer, Pages, Region};
use uncopied::{LimitAction, Mechanism, Memory, SendFile, SendOptions, Sender};
use uncopied_measure::pattern;

use super::scratch::Scratch;
use crate::commands::bench::calls::Times;
use crate::commands::bench::catalog::Case;
use crate::commands::bench::error::CellError;
use crate::commands::bench::protocol::Moved;
use crate::flags::{BenchDirection, BenchMechanism};

/// How many bytes are sent at once to a receiver that is measured.
const PIECE_BYTES: u64 = 256 << 10;

/// The sender waits if at least this number of bytes has been written to its socket but not been
/// sent (`TCP_NOTSENT_LOWAT`).
///
/// Such bytes are sent as soon as the receiver acknowledges earlier ones, and on loopback this
/// happens on the receiver's CPU, within the call that receives. Without a limit, there would be
/// megabytes of them whenever the receiver is slower than the sender, and whether a receiver pays
/// for sending the bytes that it receives would be a matter of luck.
const MAX_UNSENT_BYTES: u32 = 64 << 10;

/// How long the kernel may take for its last notification.
const NOTIFICATION_LIMIT: Duration = Duration::from_secs(10);

/// What is sent, before there is a connection.
pub(super) struct Source {
    case: Case,
    bytes: SourceBytes,
}

enum SourceBytes {
    File(Arc<File>),
    Pages(Pages),
    Region(Region),
}

impl Source {
    /// Prepares the bytes.
    pub(super) fn prepare(case: Case, scratch: &mut Scratch) -> Result<Self, CellError> {
        let failed = |error: io::Error| CellError::Failed(format!("cannot prepare: {error}"));
        let bytes = match (case.direction, case.mechanism) {
            (BenchDirection::FileToTcp, _) => SourceBytes::File(scratch.file().map_err(failed)?),
            (BenchDirection::MemoryToTcp, BenchMechanism::RegionVmsplice) => region(case.size)?,
            _ => pages(piece(case)).map_err(failed)?,
        };
        Ok(Self { case, bytes })
    }

    /// The pattern that the stream begins with.
    pub(super) fn pattern(&self) -> u64 {
        match &self.bytes {
            SourceBytes::File(_) => Scratch::FILE_BYTES,
            SourceBytes::Pages(_) | SourceBytes::Region(_) => piece(self.case),
        }
    }

    /// After how many bytes the stream begins again.
    pub(super) fn period(&self) -> u64 {
        match &self.bytes {
            SourceBytes::File(_) => Scratch::FILE_BYTES / self.case.size * self.case.size,
            SourceBytes::Pages(_) | SourceBytes::Region(_) => piece(self.case),
        }
    }

    /// Prepares to send over a connection.
    pub(super) fn connect(self, stream: TcpStream) -> Connected {
        let period = self.period();
        let size = self.case.size;
        let how = match (self.bytes, self.case.direction) {
            (SourceBytes::File(file), _) => How::File {
                file,
                offset: 0,
                period,
                stream,
                moved: Moved::default(),
                mechanism: self.case.mechanism,
            },
            (SourceBytes::Region(region), _) => How::Memory {
                sender: sender(stream, self.case.mechanism),
                memory: Repeated::Region(region),
            },
            (SourceBytes::Pages(pages), BenchDirection::MemoryToTcp) => How::Memory {
                sender: sender(stream, self.case.mechanism),
                memory: Repeated::Pages(pages),
            },
            (SourceBytes::Pages(pages), direction) => {
                // Without the limit, the figures are only less exact.
                let _ = SockRef::from(&stream).set_tcp_notsent_lowat(MAX_UNSENT_BYTES);
                let mechanism = match direction {
                    // The kernel puts such bytes into pages of their own, which can be mapped.
                    BenchDirection::TcpToMemory => BenchMechanism::MsgZerocopy,
                    _ => BenchMechanism::Copy,
                };
                How::Memory {
                    sender: sender(stream, mechanism),
                    memory: Repeated::Pages(pages),
                }
            }
        };
        Connected {
            how,
            size,
            awaits_confirmation: self.case.direction == BenchDirection::TcpToTcp,
            sent: 0,
        }
    }
}

/// How many bytes are sent at once.
fn piece(case: Case) -> u64 {
    match case.direction {
        BenchDirection::FileToTcp | BenchDirection::MemoryToTcp | BenchDirection::TcpToTcp => {
            case.size
        }
        // The receiver takes `size` bytes at a time, however they were sent.
        BenchDirection::TcpToMemory | BenchDirection::TcpToFile | BenchDirection::TcpToNull => {
            PIECE_BYTES.max(case.size)
        }
    }
}

/// Returns pages that never become writable again.
///
/// They are huge pages, because they are sent many times: in each send, the kernel then looks up
/// and counts one huge page instead of many small ones.
fn pages(size: u64) -> io::Result<SourceBytes> {
    let content = pattern::bytes(size);
    let mut buffer = PageBuffer::huge(content.len())?;
    buffer.set_len(content.len());
    buffer.copy_from_slice(&content);
    Ok(SourceBytes::Pages(buffer.freeze_permanently()))
}

fn region(size: u64) -> Result<SourceBytes, CellError> {
    let content = pattern::bytes(size);
    let refused = |why: &str, error: io::Error| CellError::Refused(format!("{why}: {error}"));
    let (region, mut writer) =
        Region::new(content.len()).map_err(|error| refused("a region cannot be created", error))?;
    writer.copy_from_slice(&content);
    region
        .protection()
        .map_err(|error| refused("a region cannot be protected", error.into()))?;
    Ok(SourceBytes::Region(region))
}

fn sender(stream: TcpStream, mechanism: BenchMechanism) -> Box<Sender<TcpStream>> {
    let mut options = SendOptions::default();
    if let Some(plan) = mechanism.plan() {
        options = options.force_mechanisms(plan.mechanisms());
    }
    if matches!(
        mechanism.forced(),
        Some(Mechanism::MsgZerocopy | Mechanism::SendZc)
    ) {
        // Otherwise, what exceeds the limit would be copied, and two mechanisms would be measured.
        options = options.at_limit(LimitAction::Wait);
    }
    Box::new(Sender::with(stream, options))
}

/// What is sent over a connection.
pub(super) struct Connected {
    how: How,
    size: u64,
    /// Whether the receiver confirms each transfer with a byte.
    awaits_confirmation: bool,
    sent: u64,
}

enum How {
    File {
        file: Arc<File>,
        offset: u64,
        period: u64,
        stream: TcpStream,
        moved: Moved,
        mechanism: BenchMechanism,
    },
    Memory {
        sender: Box<Sender<TcpStream>>,
        memory: Repeated,
    },
}

enum Repeated {
    Pages(Pages),
    Region(Region),
}

impl Repeated {
    /// Returns the memory for one send. For a region, each call creates a new part, as a program
    /// that writes to the region between sends would.
    fn memory(&self) -> Memory {
        match self {
            Self::Pages(pages) => pages.into(),
            Self::Region(region) => region.part(..).into(),
        }
    }
}

impl Connected {
    /// Sends once.
    pub(super) fn send(&mut self, times: &mut Times<'_>) -> Result<(), CellError> {
        let sent_before = self.sent;
        let failed = |error: &uncopied::Error| CellError::of_transfer(error, sent_before);
        match &mut self.how {
            How::File {
                file,
                offset,
                period,
                stream,
                moved,
                mechanism,
            } => {
                let mut transfer = SendFile::new(file).range(*offset..*offset + self.size);
                if let Some(plan) = mechanism.plan() {
                    transfer = transfer.force_mechanisms(plan.mechanisms());
                }
                let report = times.record(|| transfer.to(stream));
                let report = report.map_err(|error| failed(&error))?;
                moved.add(&report);
                self.sent += report.bytes();
                *offset = (*offset + self.size) % *period;
            }
            How::Memory { sender, memory } => {
                let awaits_confirmation = self.awaits_confirmation;
                let sent = times.record(|| {
                    let sent = sender.send(memory.memory());
                    let sent = sent.map_err(|error| failed(&error))?;
                    if awaits_confirmation {
                        let mut socket = sender.get_ref();
                        socket.read_exact(&mut [0]).map_err(|error| {
                            CellError::Failed(format!("the relay does not go on: {error}"))
                        })?;
                    }
                    Ok(sent.bytes())
                });
                self.sent += sent?;
            }
        }
        Ok(())
    }

    /// Waits for the last notification of the kernel. Returns how the bytes were moved.
    pub(super) fn finish(&mut self) -> Result<Moved, CellError> {
        match &mut self.how {
            How::File { moved, .. } => Ok(std::mem::take(moved)),
            How::Memory { sender, .. } => {
                let deadline = Instant::now() + NOTIFICATION_LIMIT;
                // Notifications may arrive out of order, so that of the last send is not enough.
                while sender.in_flight_bytes() > 0 && Instant::now() < deadline {
                    sender.reap();
                    std::thread::sleep(Duration::from_millis(1));
                }
                let mut moved = Moved::default();
                moved.add(&sender.report());
                Ok(moved)
            }
        }
    }

    /// Returns how many bytes were sent.
    pub(super) fn sent_bytes(&self) -> u64 {
        self.sent
    }
}
