//! What this project's contenders share: the same pages sent over and over by one mechanism, by the usual
//! options otherwise.

use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use uncopied::arena::{PageBuffer, Pages};
use uncopied::{Mechanism, SendOptions, Sender};

use crate::error::{Context, Error};
use crate::machine::dependency_version;
use crate::memory::sender::{Job, Sent};

/// How long the last notices may take, once everything has been sent.
const NOTICES_LIMIT: Duration = Duration::from_secs(5);

/// What is being done to the buffer before it is sent.
#[derive(Clone, Copy)]
pub(super) enum Freeze {
    /// It can be written to again later.
    ForNow,
    /// It never will be.
    ForGood,
}

/// Sends by one mechanism until it is told to stop, and waits until the kernel has said of everything
/// whether it was copied.
pub(super) fn send(job: Job, mechanism: Mechanism, freeze: Freeze) -> Result<Sent, Error> {
    let pages = pages(&job.payload, freeze)?;
    let socket = job.stream.try_clone();
    let socket = socket.context(|| "cannot share the socket".into())?;
    let mut sender = sender(socket, mechanism);
    let mut last = None;
    while job.goes_on() {
        let sent = sender
            .send(pages.clone())
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

/// Notices may come out of order: the last one's need not be the last.
fn wait_for_notices(sender: &Sender<TcpStream>) -> Result<(), Error> {
    let deadline = Instant::now() + NOTICES_LIMIT;
    while sender.leased() > 0 {
        if Instant::now() > deadline {
            return Err(Error::WrongAnswer(format!(
                "{} bytes are still lent {} s after the last send",
                sender.leased(),
                NOTICES_LIMIT.as_secs()
            )));
        }
        sender.reap();
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// What exactly is run, after a try whether this machine lets it.
pub(super) fn version(mechanism: Mechanism, freeze: Freeze) -> Result<String, Error> {
    let pair = || {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let stream = TcpStream::connect(listener.local_addr()?)?;
        Ok::<_, std::io::Error>((listener.accept()?.0, stream))
    };
    let (_peer, stream) = pair().context(|| "cannot connect to 127.0.0.1".into())?;
    let sent = sender(stream, mechanism)
        .send(pages(&[7; 4096], freeze)?)
        .map_err(|error| failed(mechanism, error))?;
    if sent.report().by(mechanism) == 0 {
        return Err(Error::Unavailable(format!(
            "this machine does not send by {mechanism}: {}",
            sent.report()
        )));
    }
    Ok(dependency_version("uncopied"))
}

fn pages(payload: &[u8], freeze: Freeze) -> Result<Pages, Error> {
    let buffer =
        PageBuffer::copy_of(payload).context(|| "cannot take a buffer from the arena".into())?;
    Ok(match freeze {
        Freeze::ForNow => buffer.freeze(),
        Freeze::ForGood => buffer.freeze_for_good(),
    })
}

fn sender(socket: TcpStream, mechanism: Mechanism) -> Sender<TcpStream> {
    Sender::with(socket, SendOptions::default().mechanisms(&[mechanism]))
}

fn failed(mechanism: Mechanism, error: uncopied::Error) -> Error {
    Error::Unavailable(format!("cannot send by {mechanism}: {error}"))
}
