//! The code that this project's contenders in blocking code share. Each of them sends the same
//! memory over and over with one mechanism. All other options have their defaults.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use bytes::Bytes;
use uncopied::arena::{PageBuffer, Pages, Region};
use uncopied::{Mechanism, Memory, SendOptions, Sender};
use uncopied_measure::error::chain;

use crate::error::{Context, Error};
use crate::machine::dependency_version;
use crate::memory::job::{MemoryJob, SentBytes};

/// The time limit for the kernel's last notifications to arrive after everything has been sent.
const NOTIFICATION_LIMIT: Duration = Duration::from_secs(5);

/// The kind of memory that is sent.
#[derive(Clone, Copy)]
pub(super) enum BufferKind {
    /// Frozen pages that can become writable again later.
    Frozen,
    /// Frozen pages that never become writable again.
    FrozenPermanently,
    /// A region that may be overwritten at any time.
    Region,
    /// Bytes where the allocator has put them, which need not be at the start of a page.
    Heap,
}

/// The memory that is sent.
enum Buffer {
    Pages(Pages),
    Region(Region),
    Heap(Bytes),
}

/// Sends with `mechanism` until the job ends. Then waits until the kernel has reported for all
/// bytes whether they were copied.
pub(super) fn send(
    job: &MemoryJob,
    mechanism: Mechanism,
    kind: BufferKind,
) -> Result<SentBytes, Error> {
    let buffer = Buffer::new(&job.payload, kind)?;
    let socket = job.stream().try_clone();
    let socket = socket.context(|| "cannot share the socket".into())?;
    let mut sender = sender(socket, mechanism);
    let mut last = None;
    while job.continues() {
        let sent = sender
            .send(buffer.memory())
            .map_err(|error| send_failed(mechanism, error))?;
        last = Some(sent.into_completion());
    }
    if let Some(last) = last {
        last.wait(Some(NOTIFICATION_LIMIT))
            .context(|| "the last notification did not arrive".into())?;
    }
    wait_for_notifications(&sender)?;
    let report = sender.report();
    Ok(SentBytes {
        total: report.bytes(),
        copied: report.copied_bytes(),
    })
}

/// Waits until no bytes are in flight. Waiting for the last send is not enough: notifications may
/// arrive out of order, so those of earlier sends may arrive after that of the last send.
fn wait_for_notifications(sender: &Sender<TcpStream>) -> Result<(), Error> {
    let deadline = Instant::now() + NOTIFICATION_LIMIT;
    while sender.in_flight_bytes() > 0 {
        if Instant::now() > deadline {
            return Err(Error::WrongResult(format!(
                "{} bytes are still in flight {} s after the last send",
                sender.in_flight_bytes(),
                NOTIFICATION_LIMIT.as_secs()
            )));
        }
        sender.reap();
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Returns the version of the library. First sends one page, to find out whether this machine
/// supports `mechanism`.
pub(super) fn version(mechanism: Mechanism, kind: BufferKind) -> Result<String, Error> {
    let connect = || {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let stream = TcpStream::connect(listener.local_addr()?)?;
        Ok::<_, io::Error>((listener.accept()?.0, stream))
    };
    let (_peer, stream) = connect().context(|| "cannot connect to 127.0.0.1".into())?;
    let buffer = Buffer::new(&[7; 4096], kind)?;
    if let Buffer::Region(region) = &buffer {
        region
            .protection()
            .context(|| "this machine cannot protect regions, so they would be copied".into())?;
    }
    let sent = sender(stream, mechanism)
        .send(buffer.memory())
        .map_err(|error| send_failed(mechanism, error))?;
    if sent.report().by(mechanism) == 0 {
        return Err(Error::Unavailable(format!(
            "this machine does not send with {mechanism}: {}",
            sent.report()
        )));
    }
    Ok(dependency_version("uncopied"))
}

impl Buffer {
    /// Copies `payload` into new memory of the given kind.
    fn new(payload: &[u8], kind: BufferKind) -> Result<Self, Error> {
        Ok(match kind {
            BufferKind::Frozen => {
                Self::Pages(filled(PageBuffer::with_capacity(payload.len()), payload)?.freeze())
            }
            BufferKind::FrozenPermanently => Self::Pages(permanent_pages(payload)?),
            BufferKind::Region => Self::region(payload)?,
            BufferKind::Heap => Self::Heap(payload.to_vec().into()),
        })
    }

    fn region(payload: &[u8]) -> Result<Self, Error> {
        let region = Region::new(payload.len());
        let (region, mut writer) = region.context(|| "cannot create a region".into())?;
        writer.copy_from_slice(payload);
        if !region.is_huge() {
            return Err(Error::Unavailable(
                "the kernel has no huge pages for the region: see \
                 /sys/kernel/mm/transparent_hugepage/enabled"
                    .into(),
            ));
        }
        Ok(Self::Region(region))
    }

    /// Returns the memory for one send. For a region, each call creates a new part, as a program
    /// that writes to the region between sends would.
    fn memory(&self) -> Memory {
        match self {
            Self::Pages(pages) => pages.into(),
            Self::Region(region) => region.part(..).into(),
            Self::Heap(bytes) => bytes.into(),
        }
    }
}

/// Copies `payload` into new pages that never become writable again.
///
/// They are huge pages, because they are sent many times: in each send, the kernel then looks up
/// and counts one huge page instead of many small ones.
pub(super) fn permanent_pages(payload: &[u8]) -> Result<Pages, Error> {
    Ok(filled(PageBuffer::huge(payload.len()), payload)?.freeze_permanently())
}

/// Copies `payload` into a buffer that has just been allocated.
fn filled(buffer: io::Result<PageBuffer>, payload: &[u8]) -> Result<PageBuffer, Error> {
    let mut buffer = buffer.context(|| "cannot allocate a buffer from the arena".into())?;
    buffer.set_len(payload.len());
    buffer.copy_from_slice(payload);
    Ok(buffer)
}

fn sender(socket: TcpStream, mechanism: Mechanism) -> Sender<TcpStream> {
    Sender::with(
        socket,
        SendOptions::default().force_mechanisms(&[mechanism]),
    )
}

fn send_failed(mechanism: Mechanism, error: uncopied::Error) -> Error {
    Error::Unavailable(format!("cannot send with {mechanism}: {}", chain(&error)))
}
