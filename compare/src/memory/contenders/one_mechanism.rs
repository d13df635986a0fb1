//! What this project's contenders share: the same memory sent over and over by one mechanism, with
//! the default options otherwise.

use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use uncopied::arena::{PageBuffer, Pages, Region};
use uncopied::{Mechanism, Memory, SendOptions, Sender};

use crate::error::{Context, Error};
use crate::machine::dependency_version;
use crate::memory::job::{MemoryJob, SentBytes};

/// How long the last notifications may take once everything has been sent.
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
}

/// The memory that is sent.
enum Buffer {
    Pages(Pages),
    Region(Region),
}

/// Sends by one mechanism until the job ends, and waits until the kernel has reported for every
/// byte whether it was copied.
pub(super) fn send(
    job: &MemoryJob,
    mechanism: Mechanism,
    kind: BufferKind,
) -> Result<SentBytes, Error> {
    let buffer = Buffer::new(&job.payload, kind)?;
    let socket = job.stream.try_clone();
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

/// Notifications may arrive out of order, so that of the last send need not be the last one.
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

/// What exactly is run. Sends a page to find out whether this machine supports the mechanism.
pub(super) fn version(mechanism: Mechanism, kind: BufferKind) -> Result<String, Error> {
    let connect = || {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let stream = TcpStream::connect(listener.local_addr()?)?;
        Ok::<_, std::io::Error>((listener.accept()?.0, stream))
    };
    let (_peer, stream) = connect().context(|| "cannot connect to 127.0.0.1".into())?;
    let buffer = Buffer::new(&[7; 4096], kind)?;
    if let Buffer::Region(region) = &buffer {
        region
            .protection()
            .context(|| "regions cannot be protected on this machine, and are copied".into())?;
    }
    let sent = sender(stream, mechanism)
        .send(buffer.memory())
        .map_err(|error| send_failed(mechanism, error))?;
    if sent.report().by(mechanism) == 0 {
        return Err(Error::Unavailable(format!(
            "this machine does not send by {mechanism}: {}",
            sent.report()
        )));
    }
    Ok(dependency_version("uncopied"))
}

impl Buffer {
    /// Copies `payload` into new memory of that kind.
    fn new(payload: &[u8], kind: BufferKind) -> Result<Self, Error> {
        // Memory that is sent many times is worth a huge page: the kernel looks up and counts one
        // frame instead of many.
        let pages = match kind {
            BufferKind::Region => return Self::region(payload),
            BufferKind::Frozen => PageBuffer::with_capacity(payload.len()),
            BufferKind::FrozenPermanently => PageBuffer::huge(payload.len()),
        };
        let mut pages = pages.context(|| "cannot allocate a buffer from the arena".into())?;
        pages.set_len(payload.len());
        pages.copy_from_slice(payload);
        Ok(Self::Pages(match kind {
            BufferKind::FrozenPermanently => pages.freeze_permanently(),
            BufferKind::Frozen | BufferKind::Region => pages.freeze(),
        }))
    }

    fn region(payload: &[u8]) -> Result<Self, Error> {
        let region = Region::new(payload.len());
        let (region, mut writer) = region.context(|| "cannot create a region".into())?;
        writer.copy_from_slice(payload);
        if !region.is_huge() {
            return Err(Error::Unavailable(
                "the kernel has no huge pages for it: see \
                 /sys/kernel/mm/transparent_hugepage/enabled"
                    .into(),
            ));
        }
        Ok(Self::Region(region))
    }

    /// What one send takes. For a region it is a new part each time, as for a program that has
    /// written to the region since the last send.
    fn memory(&self) -> Memory {
        match self {
            Self::Pages(pages) => pages.into(),
            Self::Region(region) => region.part(..).into(),
        }
    }
}

fn sender(socket: TcpStream, mechanism: Mechanism) -> Sender<TcpStream> {
    Sender::with(
        socket,
        SendOptions::default().force_mechanisms(&[mechanism]),
    )
}

fn send_failed(mechanism: Mechanism, error: uncopied::Error) -> Error {
    Error::Unavailable(format!("cannot send by {mechanism}: {error}"))
}
