//! Times and counts of calls.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use perf_event::events::Tracepoint;
use perf_event::{Builder, Counter};
use uncopied_measure::interrupt;

/// Where tracefs is mounted.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Longer calls count as this long: a minute.
const MAX_NANOSECONDS: u64 = 60_000_000_000;

/// What the thread that moves bytes and the thread that measures share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Whether the times of calls count.
    pub(super) is_measuring: AtomicBool,
    /// Whether the sender shall end.
    pub(super) stop: AtomicBool,
    /// The number of the thread that moves bytes, once it runs.
    thread: AtomicI32,
}

impl Shared {
    /// Announces the calling thread as the one that moves bytes.
    pub(super) fn enter(&self) {
        let thread = rustix::thread::gettid().as_raw_nonzero().get();
        self.thread.store(thread, Ordering::Release);
    }

    /// Counts the system calls of the thread that moves bytes for some time. Returns `None` if the
    /// kernel does not let this user count them.
    pub(super) fn count_calls(&self, time: Duration) -> Option<u64> {
        let mut counter = counter_of(self.thread.load(Ordering::Acquire))?;
        pause(time);
        counter.read().ok()
    }
}

/// Opens a counter of system calls.
///
/// As long as it exists, each system call of every process takes longer, so the calls are not
/// counted while CPU time is measured.
fn counter_of(thread: i32) -> Option<Counter> {
    let id = TRACEFS.iter().find_map(|tracefs| {
        let path = Path::new(tracefs).join("events/raw_syscalls/sys_enter/id");
        fs::read_to_string(path).ok()?.trim().parse().ok()
    })?;
    Builder::new(Tracepoint::with_id(id))
        .include_kernel()
        .observe_pid(thread)
        .enabled(true)
        .build()
        .ok()
}

/// Waits, but not after an interruption.
pub(super) fn pause(time: Duration) {
    const TICK: Duration = Duration::from_millis(50);
    let end = Instant::now() + time;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || interrupt::is_interrupted() {
            return;
        }
        thread::sleep(left.min(TICK));
    }
}

/// The times of the calls that were made while measuring.
pub(super) struct Times<'a> {
    shared: &'a Shared,
    nanoseconds: Histogram<u64>,
}

impl<'a> Times<'a> {
    pub(super) fn new(shared: &'a Shared) -> Self {
        let nanoseconds =
            Histogram::new_with_max(MAX_NANOSECONDS, 2).expect("a valid maximum and precision");
        Self {
            shared,
            nanoseconds,
        }
    }

    /// Makes a call and records how long it takes.
    pub(super) fn record<T>(&mut self, call: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let result = call();
        if self.shared.is_measuring.load(Ordering::Relaxed) {
            let nanoseconds = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.nanoseconds.saturating_record(nanoseconds);
        }
        result
    }

    /// Returns the median, the 99th percentile and the maximum in microseconds, or `None` if no
    /// call was made while measuring.
    pub(super) fn microseconds(&self) -> Option<[f64; 3]> {
        let at = |quantile| self.nanoseconds.value_at_quantile(quantile) as f64 / 1000.0;
        let max = self.nanoseconds.max() as f64 / 1000.0;
        (!self.nanoseconds.is_empty()).then(|| [at(0.5).min(max), at(0.99).min(max), max])
    }
}
