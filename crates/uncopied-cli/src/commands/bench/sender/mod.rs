//! The sender: makes one measurement after the other with a listener.

mod scratch;
mod source;

use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use uncopied::{PagePayload, TcpFacts};
use uncopied_measure::{cpu, tcp};

use super::calls::{Shared, Times, pause};
use super::catalog::Case;
use super::error::{BenchError, CellError};
use super::network::Session;
use super::protocol::{Control, Mark, Moved, Received, Reply, Request, Setup, unexpected};
use crate::flags::BenchDirection;

use source::Source;

pub(super) use scratch::Scratch;

/// The first line of the second connection may take this long to be sent.
const STALL_LIMIT: Duration = Duration::from_secs(20);

/// How long the sender may take to end after it was told to.
const END_LIMIT: Duration = Duration::from_secs(20);

/// A measurement in which nothing arrives is repeated for this long.
const STILL_LIMIT: Duration = Duration::from_secs(10);

/// How long system calls are counted.
const COUNT_MILLIS: u64 = 30;

/// How long a measurement takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    /// Bytes move, but nothing is measured.
    pub(super) warm_up: Duration,
    pub(super) measured: Duration,
    /// Whether system calls are counted after the measurement.
    pub(super) counts_calls: bool,
}

/// What was measured once.
#[derive(Clone, Debug)]
pub(super) enum Sample {
    Refused(String),
    Measured(Box<Figures>),
}

/// The figures of one measurement.
#[derive(Clone, Debug, Default)]
pub(super) struct Figures {
    pub(super) gb_per_second: f64,
    pub(super) sender_cpu_s_per_gb: f64,
    pub(super) receiver_cpu_s_per_gb: f64,
    pub(super) moved: Moved,
    pub(super) calls_per_mb: Option<f64>,
    pub(super) call_us: Option<[f64; 3]>,
    /// Parts of the time: there was something to send, the window was full, the buffer was full.
    pub(super) limits: Option<[f64; 3]>,
    /// CPU time of the sender, the receiver and everything else, as parts of one CPU. The last one
    /// is not known for another machine.
    pub(super) sender_share: f64,
    pub(super) receiver_share: f64,
    pub(super) other_share: Option<f64>,
}

/// The state of the sender at one moment.
struct Moment {
    at: Instant,
    cpu_seconds: f64,
    facts: TcpFacts,
    remote: Mark,
}

/// Makes one measurement.
///
/// # Errors
///
/// The listener fails, or bytes were lost or changed. That a mechanism is refused is no error.
pub(super) fn measure(
    session: &mut Session,
    scratch: &mut Scratch,
    case: Case,
    window: Window,
) -> Result<Sample, BenchError> {
    if let Some(why) = case.impossible() {
        return Ok(Sample::Refused(why));
    }
    let sending = match Sending::begin(session, scratch, case)? {
        Ok(sending) => sending,
        Err(CellError::Refused(why)) => return Ok(Sample::Refused(why)),
        Err(CellError::Failed(why)) => return Err(failed(case, why)),
    };
    sending.measure(session, case, window)
}

fn failed(case: Case, why: String) -> BenchError {
    let (direction, mechanism) = (case.direction.name(), case.mechanism.name());
    let size = uncopied_measure::size::size_text(case.size);
    BenchError::Cell {
        cell: format!("{direction} with {mechanism} at {size}"),
        why,
    }
}

/// What the sending thread returns.
struct Done {
    moved: Moved,
    call_us: Option<[f64; 3]>,
}

/// A measurement whose bytes are being sent.
struct Sending {
    /// A second descriptor of the socket.
    socket: TcpStream,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<(u64, Result<Done, CellError>)>>,
}

impl Sending {
    /// Opens the connection for the bytes, and begins to send.
    fn begin(
        session: &mut Session,
        scratch: &mut Scratch,
        case: Case,
    ) -> Result<Result<Self, CellError>, BenchError> {
        let source = match Source::prepare(case, scratch) {
            Ok(source) => source,
            Err(error) => return Ok(Err(error)),
        };
        let setup = Setup {
            direction: case.direction,
            mechanism: case.mechanism,
            size: case.size,
            pattern: source.pattern(),
            period: source.period(),
            sink_cpu: session.sender_cpu(),
        };
        let number = match session.control().ask(&Request::Begin(setup))? {
            Reply::Expect { number } => number,
            other => return Err(unexpected(&other)),
        };
        let stream = open(session, case.direction, number)?;
        match session.control().ask(&Request::Ready)? {
            Reply::Ready => {}
            other => return Err(unexpected(&other)),
        }
        let socket = stream
            .try_clone()
            .map_err(BenchError::setup("share a socket"))?;
        let shared = Arc::new(Shared::default());
        let work = {
            let shared = Arc::clone(&shared);
            move || send(source, stream, &shared)
        };
        let thread = thread::Builder::new().name("sender".into()).spawn(work);
        Ok(Ok(Self {
            socket,
            shared,
            thread: Some(thread.map_err(BenchError::setup("start a thread"))?),
        }))
    }

    fn measure(
        mut self,
        session: &mut Session,
        case: Case,
        window: Window,
    ) -> Result<Sample, BenchError> {
        self.pause(window.warm_up)?;
        let give_up = Instant::now() + STILL_LIMIT;
        let (before, after) = loop {
            let before = self.moment(session.control(), true)?;
            self.pause(window.measured)?;
            let after = self.moment(session.control(), false)?;
            let has_moved = after.remote.bytes > before.remote.bytes;
            // On a busy machine, a side may get no CPU time for as long as a short measurement.
            if has_moved || self.has_ended() || Instant::now() > give_up {
                break (before, after);
            }
        };
        let calls_per_mb = match window.counts_calls && !self.has_ended() {
            true => self.count_calls(session.control(), case.direction)?,
            false => None,
        };
        let (sent, done) = self.end();
        let received = match session.control().ask(&Request::End { bytes: sent })? {
            Reply::Ended(received) => received,
            other => return Err(unexpected(&other)),
        };
        self.sample(
            case,
            done,
            received,
            Figures {
                calls_per_mb,
                ..figures(&before, &after, session.is_local())
            },
        )
    }

    /// Decides what the measurement has shown.
    fn sample(
        &self,
        case: Case,
        done: Result<Done, CellError>,
        received: Received,
        mut figures: Figures,
    ) -> Result<Sample, BenchError> {
        // What the side says that uses the mechanism is the cause of what the other side says.
        match (case.direction.is_sent(), &done, received.refused) {
            (false, _, Some(why)) => return Ok(Sample::Refused(why)),
            (true, Err(CellError::Refused(why)), _) => return Ok(Sample::Refused(why.clone())),
            _ => {}
        }
        if let (false, Some(why)) = (case.direction.is_sent(), &received.failed) {
            return Err(failed(case, why.clone()));
        }
        let done = done.map_err(|error| match error {
            CellError::Refused(why) | CellError::Failed(why) => failed(case, why),
        })?;
        if let Some(why) = received.failed {
            return Err(failed(case, why));
        }
        if !(figures.gb_per_second.is_finite() && figures.gb_per_second > 0.0) {
            let why = "no bytes arrived for 10 s";
            return Err(failed(case, why.into()));
        }
        (figures.moved, figures.call_us) = match case.direction {
            BenchDirection::FileToTcp | BenchDirection::MemoryToTcp => (done.moved, done.call_us),
            // Nothing in a relay is a call; a message and its confirmation are.
            BenchDirection::TcpToTcp => (received.moved, done.call_us),
            _ => (received.moved, received.call_us),
        };
        Ok(Sample::Measured(Box::new(figures)))
    }

    /// Waits, unless the sending thread ends, which it does after an error.
    fn pause(&self, time: Duration) -> Result<(), BenchError> {
        const TICK: Duration = Duration::from_millis(50);
        let end = Instant::now() + time;
        while !self.has_ended() {
            if uncopied_measure::interrupt::is_interrupted() {
                return Err(BenchError::Interrupted);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            pause(left.min(TICK));
        }
        Ok(())
    }

    fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    fn moment(&self, control: &mut Control, is_measuring: bool) -> Result<Moment, BenchError> {
        let own = || {
            let facts = tcp::facts(&self.socket).map_err(BenchError::setup("read TCP_INFO"))?;
            Ok::<_, BenchError>((Instant::now(), cpu::process_seconds(), facts))
        };
        self.shared
            .is_measuring
            .store(is_measuring, Ordering::Relaxed);
        let (at, cpu_seconds, facts) = own()?;
        match control.ask(&Request::Mark { is_measuring })? {
            Reply::Marked(remote) => Ok(Moment {
                at,
                cpu_seconds,
                facts,
                remote,
            }),
            other => Err(unexpected(&other)),
        }
    }

    /// Counts the system calls of the side that uses the mechanism. Returns their number for
    /// 10⁶ bytes.
    fn count_calls(
        &self,
        control: &mut Control,
        direction: BenchDirection,
    ) -> Result<Option<f64>, BenchError> {
        let (calls, bytes) = if direction.is_sent() {
            let acknowledged = || {
                let facts = tcp::facts(&self.socket);
                let facts = facts.map_err(BenchError::setup("read TCP_INFO"));
                facts.map(|facts| facts.acknowledged_bytes)
            };
            let before = acknowledged()?;
            let calls = self.shared.count_calls(Duration::from_millis(COUNT_MILLIS));
            (calls, acknowledged()?.saturating_sub(before))
        } else {
            let millis = COUNT_MILLIS;
            match control.ask(&Request::Count { millis })? {
                Reply::Counted { calls, bytes } => (calls, bytes),
                other => return Err(unexpected(&other)),
            }
        };
        let megabytes = bytes as f64 / 1e6;
        Ok(calls
            .map(|calls| calls as f64 / megabytes)
            .filter(|it| it.is_finite()))
    }

    /// Tells the sending thread to end, and waits for it. Returns the number of bytes it has sent,
    /// and the rest of what it says.
    fn end(&mut self) -> (u64, Result<Done, CellError>) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + END_LIMIT;
        let Some(thread) = self.thread.take() else {
            return (0, Err(CellError::Failed("it has ended before".into())));
        };
        while !thread.is_finished() {
            if Instant::now() > deadline || uncopied_measure::interrupt::is_interrupted() {
                let _ = self.socket.shutdown(Shutdown::Both);
            }
            thread::sleep(Duration::from_micros(200));
        }
        thread.join().unwrap_or_else(|_| {
            let why = "the sender has panicked, which is a bug";
            (0, Err(CellError::Failed(why.into())))
        })
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            self.shared.stop.store(true, Ordering::Relaxed);
            let _ = thread.join();
        }
    }
}

/// Opens the second connection.
fn open(
    session: &Session,
    direction: BenchDirection,
    number: u64,
) -> Result<TcpStream, BenchError> {
    let congestion = session.congestion();
    let stream = if direction == BenchDirection::TcpToMemory {
        let payload = PagePayload::new(1).map_err(BenchError::setup("limit payloads to a page"))?;
        let stream = payload
            .connect(session.address())
            .map_err(BenchError::Connection)?;
        tcp::set_congestion(&stream, congestion).map_err(|source| BenchError::Congestion {
            name: congestion.to_owned(),
            source,
        })?;
        stream
    } else {
        session.connect()?
    };
    stream
        .set_write_timeout(Some(STALL_LIMIT))
        .map_err(BenchError::Connection)?;
    let mut greeting = Control::new(stream)?;
    greeting.send(&Request::Data { number })?;
    let stream = greeting.into_stream()?;
    stream
        .set_read_timeout(Some(STALL_LIMIT))
        .and_then(|()| stream.set_nodelay(false))
        .map_err(BenchError::Connection)?;
    Ok(stream)
}

/// Sends until it is told to stop, and then ends the stream.
fn send(source: Source, stream: TcpStream, shared: &Shared) -> (u64, Result<Done, CellError>) {
    shared.enter();
    let socket = match stream.try_clone() {
        Ok(socket) => socket,
        Err(error) => return (0, Err(CellError::Failed(error.to_string()))),
    };
    let mut times = Times::new(shared);
    let mut source = source.connect(stream);
    let mut outcome = Ok(());
    while outcome.is_ok() && !shared.stop.load(Ordering::Relaxed) {
        outcome = source.send(&mut times);
    }
    let outcome = outcome.and_then(|()| {
        socket
            .shutdown(Shutdown::Write)
            .map_err(|error| CellError::Failed(format!("cannot end the stream: {error}")))
    });
    if outcome.is_err() {
        // Ends the receiver as well.
        let _ = socket.shutdown(Shutdown::Both);
    }
    let moved = outcome.and_then(|()| source.finish());
    let sent = source.sent_bytes();
    let done = moved.map(|moved| Done {
        moved,
        call_us: times.microseconds(),
    });
    (sent, done)
}

/// Computes the figures from the moments before and after a measurement.
fn figures(before: &Moment, after: &Moment, is_local: bool) -> Figures {
    let seconds = after.remote.at - before.remote.at;
    let own_seconds = (after.at - before.at).as_secs_f64();
    let gb_per_second =
        (after.remote.bytes.saturating_sub(before.remote.bytes)) as f64 / 1e9 / seconds;
    let sender_share = (after.cpu_seconds - before.cpu_seconds) / own_seconds;
    let receiver_share = (after.remote.cpu_seconds - before.remote.cpu_seconds) / seconds;
    let busy = after.remote.machine_busy_seconds - before.remote.machine_busy_seconds;
    let sink = after.remote.sink_cpu_seconds - before.remote.sink_cpu_seconds;
    let part = |of: fn(&TcpFacts) -> u64| {
        let microseconds = of(&after.facts).saturating_sub(of(&before.facts));
        (microseconds as f64 / 1e6 / own_seconds).min(1.0)
    };
    Figures {
        gb_per_second,
        sender_cpu_s_per_gb: sender_share / gb_per_second,
        receiver_cpu_s_per_gb: receiver_share / gb_per_second,
        limits: Some([
            part(|facts| facts.busy_us),
            part(|facts| facts.receive_window_us),
            part(|facts| facts.send_buffer_us),
        ]),
        sender_share,
        receiver_share,
        other_share: is_local
            .then_some(((busy - sink) / seconds - sender_share - receiver_share).max(0.0)),
        ..Figures::default()
    }
}
