//! `uncopied audit`: how much of a program's CPU time goes into copying payload.
//!
//! | module | what it does |
//! |---|---|
//! | `target`, `process` | the program that is watched; processes, their threads and CPU time |
//! | `events` | records of the kernel about threads, and their rings |
//! | `sampling` | samples of what the program does |
//! | `bytes`, `probes` | bytes that were sent, received and copied |
//! | `symbols`, `classify` | the names of the kernel's functions; what a stack shows |
//! | `profile`, `report` | counts of samples; what the user sees |

mod bytes;
mod classify;
mod events;
mod probes;
mod process;
mod profile;
mod report;
mod sampling;
mod symbols;
mod target;

use std::fs;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use crate::descriptor_limit::raise_descriptor_limit;
use crate::error::Error;
use crate::flags::AuditFlags;
use crate::output::print;
use crate::result_file::ResultFile;

use bytes::{ByteCounts, BytesError};
use events::Whom;
use process::CpuTime;
use profile::Profile;
use report::{Basis, Report};
use sampling::{Sampling, SamplingError};
use symbols::KernelSymbols;
use target::Target;

/// How long a process is watched by default.
const DEFAULT_TIME: Duration = Duration::from_secs(10);

/// How often the rings are emptied, and how often the CPU time is read.
const DRAIN_INTERVAL: Duration = Duration::from_millis(25);
const CPU_TIME_INTERVAL: Duration = Duration::from_secs(1);

/// Watches a program and prints the report.
///
/// # Errors
///
/// The program cannot be started, the process does not exist, or the report cannot be written.
/// That the kernel refuses to be sampled is no error: the report says so.
pub(crate) fn run(flags: &AuditFlags) -> Result<(), Error> {
    let output = flags.output.as_deref().map(ResultFile::open).transpose()?;
    // A runtime with a single thread: a program inherits the events of the thread that starts it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::setup("start an event loop"))?;
    let text = runtime.block_on(audit(flags))?;
    match output {
        Some(file) => file.write(text.as_bytes()),
        None => print(text.as_bytes()).map_err(Error::Output),
    }
}

/// Watches a program, and returns the report.
async fn audit(flags: &AuditFlags) -> Result<String, Error> {
    let signals = Signals::new()?;
    // Read first, because it takes a while, in which records could be lost. A file that cannot be
    // read is as good as one without addresses.
    let symbols = KernelSymbols::read().ok().flatten();
    let (observers, mut target) = match flags.pid {
        Some(process) => attach(process, symbols.as_ref())?,
        None => {
            let observers = Observers::open(Whom::Commands, symbols.as_ref());
            (observers, Target::start(&flags.command)?)
        }
    };
    let subject = match flags.command.first() {
        Some(program) => program.display().to_string(),
        None => process::name(target.process()).unwrap_or_default(),
    };
    let limit = match (flags.seconds, flags.pid) {
        (Some(seconds), _) => Some(Duration::from_secs(seconds.into())),
        (None, Some(_)) => Some(DEFAULT_TIME),
        (None, None) => None,
    };
    let Observers {
        mut sampling,
        mut bytes,
    } = observers;
    let sees_kernel = sampling.as_ref().is_ok_and(Sampling::sees_kernel);
    let mut profile = Profile::new(symbols.filter(|_| sees_kernel));
    let began = Instant::now();
    let drain = || {
        if let Ok(sampling) = &mut sampling {
            sampling.drain(|observation| profile.add(observation));
        }
        if let Ok(bytes) = &mut bytes {
            bytes.drain();
        }
    };
    let cpu_time = watch(&mut target, drain, limit, signals).await;
    if let Ok(bytes) = &mut bytes {
        bytes.finish();
    }
    let report = Report {
        subject: &subject,
        process: target.process(),
        failure: target.failure(),
        time: began.elapsed(),
        cpu_time,
        frequency: sampling.as_ref().map_or(0, Sampling::frequency),
        basis: match sampling {
            Err(error) => Basis::CpuTime(error),
            Ok(_) if !sees_kernel => Basis::UserSamples,
            Ok(_) if !profile.has_symbols() => Basis::UnnamedSamples,
            Ok(_) => Basis::Samples,
        },
        profile: &profile,
        bytes: &bytes,
        paranoid: paranoid(),
    };
    Ok(match (flags.json, flags.folded) {
        (true, _) => report.json(),
        (_, true) => profile.folded(),
        _ => report.to_string(),
    })
}

/// What records the program, or why it does not.
struct Observers {
    sampling: Result<Sampling, SamplingError>,
    bytes: Result<ByteCounts, BytesError>,
}

impl Observers {
    fn open(whom: Whom<'_>, symbols: Option<&KernelSymbols>) -> Self {
        Self {
            sampling: Sampling::open(whom),
            bytes: ByteCounts::open(whom, symbols),
        }
    }
}

/// Watches the threads of a process and of its descendants.
fn attach(process: i32, symbols: Option<&KernelSymbols>) -> Result<(Observers, Target), Error> {
    // Each thread needs a descriptor for each CPU. If this is refused, watching many threads fails,
    // and the report says so.
    raise_descriptor_limit();
    let target = Target::running(process);
    let tree = process::tree(process);
    if tree.is_empty() {
        return Err(Error::NoProcess(process));
    }
    let threads: Vec<i32> = tree.into_iter().flat_map(process::threads).collect();
    let observers = Observers::open(Whom::Threads(&threads), symbols);
    Ok((observers, target))
}

/// Collects records with `drain` until the time is over, the program has ended, or a signal
/// arrives. Returns the CPU time.
async fn watch(
    target: &mut Target,
    mut drain: impl FnMut(),
    limit: Option<Duration>,
    mut signals: Signals,
) -> CpuTime {
    let mut ticks = interval(DRAIN_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let began = Instant::now();
    let mut is_over = false;
    let mut cpu_time = CpuTime::default();
    let mut cpu_time_due = began + CPU_TIME_INTERVAL;
    loop {
        let waits_for_exit = tokio::select! {
            _ = ticks.tick() => {
                let is_due = limit.is_some_and(|limit| began.elapsed() >= limit);
                if is_due && !is_over {
                    is_over = true;
                    target.end(false)
                } else {
                    true
                }
            }
            // A terminal sends SIGINT to the program as well.
            _ = signals.interrupt.recv() => target.end(true),
            _ = signals.terminate.recv() => target.end(false),
        };
        drain();
        let has_ended = target.has_ended();
        if has_ended || !waits_for_exit || Instant::now() >= cpu_time_due {
            cpu_time_due = Instant::now() + CPU_TIME_INTERVAL;
            cpu_time = cpu_time.max(target.cpu_time());
        }
        if has_ended || !waits_for_exit {
            drain();
            return cpu_time;
        }
    }
}

/// The signals that end the command.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self, Error> {
        let handle = |kind| signal(kind).map_err(Error::setup("handle signals"));
        Ok(Self {
            interrupt: handle(SignalKind::interrupt())?,
            terminate: handle(SignalKind::terminate())?,
        })
    }
}

/// The value of `kernel.perf_event_paranoid`.
fn paranoid() -> Option<i32> {
    let text = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").ok()?;
    text.trim().parse().ok()
}
