//! What this project's contenders share: the same memory sent over and over by one mechanism, by the usual
//! options otherwise.

use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use uncopied::arena::{PageBuffer, Pages, Region};
use uncopied::{Mechanism, Memory, SendOptions, Sender};

use crate::error::{Context, Error};
use crate::machine::dependency_version;
use crate::memory::sender::{Job, Sent};

/// How long the last notices may take, once everything has been sent.
const NOTICES_LIMIT: Duration = Duration::from_secs(5);

/// Where the buffer lies.
#[derive(Clone, Copy)]
pub(super) enum From {
    /// In pages that are frozen, and can be written to again later.
    Frozen,
    /// In pages that are frozen and will never be written to again.
    FrozenForGood,
    /// In a region that may be overwritten at any time.
    Region,
}

/// The buffer.
enum Buffer {
    Pages(Pages),
    Region(Region),
}

/// Sends by one mechanism until it is told to stop, and waits until the kernel has said of everything
/// whether it was copied.
pub(super) fn send(job: Job, mechanism: Mechanism, from: From) -> Result<Sent, Error> {
    let buffer = buffer(&job.payload, from)?;
    let socket = job.stream.try_clone();
    let socket = socket.context(|| "cannot share the socket".into())?;
    let mut sender = sender(socket, mechanism);
    let mut last = None;
    while job.goes_on() {
        let sent = sender
            .send(buffer.memory())
            .map_err(|error| failed(mechanism, error))?;
        last = Some(sent.into_completion());
    }
    if let Some(last) = last {
        last.wait(Some(NOTICES_LIMIT))
            .context(|| "the last notice did not come".into())?;
    }
    wait_for_notices(&sender)?;
    let report = sender.report();
    Ok(Sent {
        bytes: report.bytes(),
        copied: report.copied_bytes(),
    })
}

/// NotificationSource may come out of order: the last one's need not be the last.
fn wait_for_notices(sender: &Sender<TcpStream>) -> Result<(), Error> {
    let deadline = Instant::now() + NOTICES_LIMIT;
    while sender.in_flight_bytes() > 0 {
        if Instant::now() > deadline {
            return Err(Error::WrongAnswer(format!(
                "{} bytes are still lent {} s after the last send",
                sender.in_flight_bytes(),
                NOTICES_LIMIT.as_secs()
            )));
        }
        sender.reap();
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// What exactly is run, after a try whether this machine lets it.
pub(super) fn version(mechanism: Mechanism, from: From) -> Result<String, Error> {
    let pair = || {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let stream = TcpStream::connect(listener.local_addr()?)?;
        Ok::<_, std::io::Error>((listener.accept()?.0, stream))
    };
    let (_peer, stream) = pair().context(|| "cannot connect to 127.0.0.1".into())?;
    let buffer = buffer(&[7; 4096], from)?;
    if let Buffer::Region(region) = &buffer {
        region
            .protection()
            .context(|| "regions cannot be protected on this machine, and are copied".into())?;
    }
    let sent = sender(stream, mechanism)
        .send(buffer.memory())
        .map_err(|error| failed(mechanism, error))?;
    if sent.report().by(mechanism) == 0 {
        return Err(Error::Unavailable(format!(
            "this machine does not send by {mechanism}: {}",
            sent.report()
        )));
    }
    Ok(dependency_version("uncopied"))
}

fn buffer(payload: &[u8], from: From) -> Result<Buffer, Error> {
    if matches!(from, From::Region) {
        let region = Region::new(payload.len());
        let (region, mut writer) = region.context(|| "cannot make a region".into())?;
        writer.copy_from_slice(payload);
        if !region.is_huge() {
            return Err(Error::Unavailable(
                "the kernel has no huge pages for it: see /sys/kernel/mm/transparent_hugepage/enabled"
                    .into(),
            ));
        }
        return Ok(Buffer::Region(region));
    }
    // What is sent many times is worth a huge page: the kernel looks up and counts one frame, not many.
    let pages = match from {
        From::FrozenForGood => PageBuffer::huge(payload.len()),
        From::Frozen | From::Region => PageBuffer::with_capacity(payload.len()),
    };
    let mut pages = pages.context(|| "cannot take a buffer from the arena".into())?;
    pages.set_len(payload.len());
    pages.copy_from_slice(payload);
    Ok(Buffer::Pages(match from {
        From::FrozenForGood => pages.freeze_permanently(),
        From::Frozen | From::Region => pages.freeze(),
    }))
}

impl Buffer {
    /// What one send takes. Of a region that is a new part each time, as for somebody who has written to
    /// it since.
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

fn failed(mechanism: Mechanism, error: uncopied::Error) -> Error {
    Error::Unavailable(format!("cannot send by {mechanism}: {error}"))
}
