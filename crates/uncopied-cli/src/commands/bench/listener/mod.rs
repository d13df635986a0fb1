//! The listener: the side that receives. It serves one run after another.

mod receiver;
mod relay;

use std::fs::File;
use std::io::{self, BufRead as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use uncopied_measure::{cpu, interrupt, machine};

use super::error::{BenchError, CellError};
use super::namespace;
use super::protocol::{Control, Mark, PROTOCOL, Reply, Request, Setup};
use crate::flags::{BenchFlags, MAX_BENCH_SIZE};
use crate::output::{print, say};

use receiver::Receiving;

/// How long a new connection may take to say what it is for.
const GREETING_LIMIT: Duration = Duration::from_secs(5);

/// How long a sender may pause between two requests.
const IDLE_LIMIT: Duration = Duration::from_secs(60);

/// How long the second connection may take.
const DATA_LIMIT: Duration = Duration::from_secs(10);

/// How many connections may be about to say what they are for.
const MAX_GREETINGS: usize = 32;

/// The longest time for which system calls are counted.
const MAX_COUNT_MILLIS: u64 = 1000;

/// Listens until the process is interrupted.
///
/// # Errors
///
/// The address cannot be used, or a child cannot enter its namespace.
pub(super) fn run(address: SocketAddr, flags: &BenchFlags) -> Result<(), BenchError> {
    if flags.child {
        let by_parent = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
        by_parent.map_err(|error| BenchError::setup("follow the sender's end")(error.into()))?;
    }
    if flags.own_namespace {
        namespace::enter_as_child()?;
        let mut line = String::new();
        let read = io::stdin().lock().read_line(&mut line);
        read.map_err(BenchError::setup("wait for the sender"))?;
        namespace::configure_receiver()?;
    }
    if let Some(cpu) = flags.cpu {
        machine::pin_to(cpu).map_err(BenchError::setup(format!("run on CPU {cpu}")))?;
    }
    interrupt::watch().map_err(BenchError::setup("watch for signals"))?;
    let listen = |source| BenchError::Listen { address, source };
    let listener = TcpListener::bind(address).map_err(listen)?;
    listener.set_nonblocking(true).map_err(listen)?;
    let bound = listener.local_addr().map_err(listen)?;
    if flags.child {
        let line = format!("{bound}\n");
        print(line.as_bytes()).map_err(BenchError::setup("tell the sender the address"))?;
    } else {
        say(&format_args!(
            "waiting for `uncopied bench --to HOST` at {bound}; Ctrl-C ends this"
        ));
    }
    accept_until_interrupted(&listener, flags)
}

fn accept_until_interrupted(listener: &TcpListener, flags: &BenchFlags) -> Result<(), BenchError> {
    const TICK: Timespec = Timespec {
        tv_sec: 0,
        tv_nsec: 100_000_000,
    };
    let shared = Arc::new(Listening {
        directory: flags.dir.clone().unwrap_or_else(std::env::temp_dir),
        is_child: flags.child,
        began: Instant::now(),
        greetings: AtomicUsize::new(0),
        runs: Mutex::new(Runs::default()),
    });
    while !interrupt::is_interrupted() {
        // An error, such as a signal, is only a reason to look again.
        let _ = poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&TICK));
        match listener.accept() {
            Ok((stream, peer)) => shared.greet(stream, peer),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
    Ok(())
}

/// What all connections share.
struct Listening {
    directory: PathBuf,
    is_child: bool,
    began: Instant,
    greetings: AtomicUsize,
    runs: Mutex<Runs>,
}

#[derive(Default)]
struct Runs {
    /// The sender that is being served.
    current: Option<SocketAddr>,
    /// The number that a second connection has to bring, and who waits for it.
    expected: Option<(u64, Sender<TcpStream>)>,
}

impl Listening {
    fn runs(&self) -> MutexGuard<'_, Runs> {
        // The values are valid after every statement that changes them.
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds out, on another thread, what a connection is for. Closes it if too many others have
    /// not said so yet.
    fn greet(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        if self.greetings.fetch_add(1, Ordering::Relaxed) >= MAX_GREETINGS {
            self.greetings.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let shared = Arc::clone(self);
        let spawned = thread::Builder::new().spawn(move || {
            let greeted = stream
                .set_nonblocking(false)
                .map_err(BenchError::Connection)
                .and_then(|()| Control::new(stream))
                .and_then(|mut control| Ok((control.receive::<Request>(GREETING_LIMIT)?, control)));
            shared.greetings.fetch_sub(1, Ordering::Relaxed);
            let outcome = greeted.and_then(|(request, control)| match request {
                Request::Data { number } => shared.hand_over(number, control),
                Request::Hello { protocol } => shared.begin_run(protocol, control, peer),
                _ => Err(BenchError::Protocol(
                    "it does not begin with a greeting".into(),
                )),
            });
            match outcome {
                Ok(()) | Err(BenchError::Closed | BenchError::Interrupted) => {}
                Err(error) if !shared.is_child => say(&format_args!("{peer}: {error}")),
                Err(_) => {}
            }
        });
        if spawned.is_err() {
            self.greetings.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Gives a second connection to the run that waits for it.
    fn hand_over(&self, number: u64, control: Control) -> Result<(), BenchError> {
        let mut runs = self.runs();
        match runs.expected.take() {
            Some((expected, waiting)) if expected == number => {
                let stream = control.into_stream()?;
                waiting.send(stream).map_err(|_| BenchError::Closed)
            }
            other => {
                runs.expected = other;
                Err(BenchError::Protocol("it belongs to no measurement".into()))
            }
        }
    }

    fn begin_run(
        &self,
        protocol: u32,
        mut control: Control,
        peer: SocketAddr,
    ) -> Result<(), BenchError> {
        if protocol != PROTOCOL {
            let why = format!(
                "it has version {PROTOCOL} of the protocol and the sender has {protocol}; use the \
                 same version of uncopied on both machines"
            );
            return control.send(&Reply::Refused { why });
        }
        let other = {
            let mut runs = self.runs();
            let other = runs.current;
            runs.current = other.or(Some(peer));
            other
        };
        if let Some(other) = other {
            let why = format!("it is serving {other}; try again later");
            return control.send(&Reply::Refused { why });
        }
        let outcome = control
            .send(&Reply::Welcome)
            .and_then(|()| self.serve(&mut control));
        *self.runs() = Runs::default();
        outcome
    }

    /// Serves one sender, one measurement after the other.
    fn serve(&self, control: &mut Control) -> Result<(), BenchError> {
        loop {
            match control.receive(IDLE_LIMIT)? {
                Request::Begin(setup) => self.receive(control, setup)?,
                _ => return Err(out_of_order()),
            }
        }
    }

    /// Makes one measurement.
    fn receive(&self, control: &mut Control, setup: Setup) -> Result<(), BenchError> {
        if !(1..=MAX_BENCH_SIZE).contains(&setup.size)
            || !(setup.size..=2 * MAX_BENCH_SIZE).contains(&setup.period)
        {
            return Err(BenchError::Protocol("a size is out of range".into()));
        }
        let number = fastrand::u64(..);
        let (sender, receiver) = mpsc::channel();
        self.runs().expected = Some((number, sender));
        control.send(&Reply::Expect { number })?;
        match control.receive(DATA_LIMIT)? {
            Request::Ready => {}
            _ => return Err(out_of_order()),
        }
        let stream = receiver
            .recv_timeout(DATA_LIMIT)
            .map_err(|_| BenchError::Silent(DATA_LIMIT.as_secs()))?;
        let receiving = Receiving::begin(stream, setup, &self.directory)?;
        control.send(&Reply::Ready)?;
        self.measure(control, receiving)
    }

    /// Responds to the sender while the bytes arrive, until it has sent the last one.
    fn measure(&self, control: &mut Control, mut receiving: Receiving) -> Result<(), BenchError> {
        loop {
            match control.receive(IDLE_LIMIT)? {
                Request::Mark { is_measuring } => {
                    let sink_cpu_seconds = receiving.sink_cpu_seconds();
                    let mark = Mark {
                        sink_cpu_seconds,
                        machine_busy_seconds: cpu::machine_busy_seconds()
                            .map_err(BenchError::setup("read /proc/stat"))?,
                        cpu_seconds: cpu::process_seconds() - sink_cpu_seconds,
                        at: self.began.elapsed().as_secs_f64(),
                        bytes: receiving.taken_bytes()?,
                    };
                    receiving.set_measuring(is_measuring);
                    control.send(&Reply::Marked(mark))?;
                }
                Request::Count { millis } => {
                    let before = receiving.taken_bytes()?;
                    let time = Duration::from_millis(millis.min(MAX_COUNT_MILLIS));
                    let calls = receiving.count_calls(time);
                    let bytes = receiving.taken_bytes()?.saturating_sub(before);
                    control.send(&Reply::Counted { calls, bytes })?;
                }
                Request::End { bytes } => {
                    let received = receiving.end(bytes);
                    return control.send(&Reply::Ended(received));
                }
                _ => return Err(out_of_order()),
            }
        }
    }
}

fn out_of_order() -> BenchError {
    BenchError::Protocol("a request is out of order".into())
}

/// Returns a temporary file that has no name, and vanishes with its descriptor.
fn temporary_file(directory: &std::path::Path) -> Result<File, CellError> {
    tempfile::tempfile_in(directory).map_err(|error| {
        CellError::Failed(format!(
            "cannot create a file in {}: {error}; choose another directory with --dir",
            directory.display()
        ))
    })
}
