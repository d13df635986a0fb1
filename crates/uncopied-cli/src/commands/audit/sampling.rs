//! Samples of what processes do, taken by the kernel's CPU clock (`perf_event_open(2)`).
//!
//! Each thread has one event for each CPU: the kernel refuses a ring for an event that is inherited
//! by children and follows its thread to any CPU. All events of one CPU share a ring.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;

use perf_event::events::Software;
use perf_event::{Builder, Counter, SampleFlag, Sampler};
use rustix::io::Errno;

/// Samples per second of CPU time. Not a divisor of the timer's frequency, so that the samples do
/// not fall into step with the timer.
const SAMPLES_PER_SECOND: u64 = 1_999;

/// The size of a ring, in bytes: room for about 100 ms of samples. An ordinary user may have
/// 516 KiB for each CPU (`kernel.perf_event_mlock_kb`).
const RING_BYTES: usize = 128 << 10;

/// `PERF_CONTEXT_MAX`: addresses from here on are markers within a stack.
const FIRST_CONTEXT_MARKER: u64 = -4095_i64 as u64;

/// The bits of a record's flags that tell where the CPU was: `PERF_RECORD_MISC_CPUMODE_MASK`.
const CPU_MODE_MASK: u16 = 7;

/// `PERF_RECORD_MISC_USER`: in user code.
const CPU_MODE_USER: u16 = 2;

/// `PERF_RECORD_LOST`, `PERF_RECORD_COMM` and `PERF_RECORD_SAMPLE`: the kinds of records.
const PERF_RECORD_LOST: u32 = 2;
const PERF_RECORD_COMM: u32 = 3;
const PERF_RECORD_SAMPLE: u32 = 9;

/// Something that the kernel has recorded.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Observation {
    /// A sample of a thread.
    Sample {
        process: i32,
        thread: i32,
        /// The addresses on the kernel's stack, the innermost first. Empty if the thread was in
        /// user code.
        kernel_stack: Vec<u64>,
        is_user: bool,
    },
    /// A thread has a new name.
    Name { thread: i32, name: String },
    /// Records were lost because a ring was full, or cannot be parsed.
    Lost(u64),
}

/// Why nothing can be sampled.
#[derive(Debug, thiserror::Error)]
pub(super) enum SamplingError {
    /// `perf_event_open` was refused.
    #[error("the kernel does not let this user sample it")]
    Refused,
    /// The kernel has no `perf_event_open`, or a seccomp filter hides it.
    #[error("this kernel has no perf_event_open")]
    Missing,
    /// Anything else.
    #[error("perf_event_open failed: {0}")]
    Other(io::Error),
}

impl From<io::Error> for SamplingError {
    fn from(error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(Errno::ACCESS | Errno::PERM) => Self::Refused,
            Some(Errno::NOSYS) => Self::Missing,
            _ => Self::Other(error),
        }
    }
}

/// The events of all threads, and their rings.
pub(super) struct Sampling {
    /// One for each CPU: the number of the CPU, and the event that owns its ring.
    rings: Vec<(usize, Sampler)>,
    /// The other events, which write to these rings.
    others: Vec<Counter>,
    /// The thread for which each event was opened, by the identifier of the event.
    owners: HashMap<u64, i32>,
    /// The threads that have events of their own.
    attached: HashSet<i32>,
    sees_kernel: bool,
    frequency: u64,
}

impl Sampling {
    /// Watches the programs that this thread is going to start, from their `execve` on. This
    /// thread itself is not watched.
    pub(super) fn of_commands() -> Result<Self, SamplingError> {
        let this_thread = rustix::thread::gettid().as_raw_nonzero().get();
        Self::open(|sampling, sees_kernel| {
            let mut builder = sampling.builder(sees_kernel);
            builder.observe_self().enable_on_exec(true);
            sampling.add(&mut builder, this_thread)
        })
    }

    /// Watches threads, and the threads and processes that they are going to start.
    pub(super) fn of_threads(threads: &[i32]) -> Result<Self, SamplingError> {
        let mut sampling = Self::open(|sampling, sees_kernel| {
            let mut builder = sampling.builder(sees_kernel);
            for thread in threads {
                match sampling.add(builder.observe_pid(*thread), *thread) {
                    // The thread has ended since it was listed.
                    Err(error) if Errno::from_io_error(&error) == Some(Errno::SRCH) => {}
                    outcome => outcome?,
                }
            }
            Ok(())
        })?;
        for (_, ring) in &mut sampling.rings {
            ring.enable()?;
        }
        for event in &mut sampling.others {
            event.enable()?;
        }
        Ok(sampling)
    }

    /// Opens events that see the kernel, or, if that is refused, events that see user code only.
    fn open(add_all: impl Fn(&mut Self, bool) -> io::Result<()>) -> Result<Self, SamplingError> {
        let frequency = SAMPLES_PER_SECOND.min(max_sample_rate());
        let attempt = |sees_kernel| -> Result<Self, SamplingError> {
            let mut sampling = Self {
                rings: Vec::new(),
                others: Vec::new(),
                owners: HashMap::new(),
                attached: HashSet::new(),
                sees_kernel,
                frequency,
            };
            add_all(&mut sampling, sees_kernel)?;
            Ok(sampling)
        };
        match attempt(true) {
            Err(SamplingError::Refused) => attempt(false),
            outcome => outcome,
        }
    }

    fn builder(&self, sees_kernel: bool) -> Builder<'static> {
        let mut builder = Builder::new(Software::CPU_CLOCK);
        builder
            .sample_frequency(self.frequency)
            .sample(SampleFlag::TID)
            .sample(SampleFlag::ID)
            .sample(SampleFlag::CALLCHAIN)
            .exclude_kernel(!sees_kernel)
            .exclude_callchain_user(true)
            .inherit(true)
            .comm(true);
        builder
    }

    /// Opens the events of one thread.
    fn add(&mut self, builder: &mut Builder<'_>, thread: i32) -> io::Result<()> {
        for cpu in online_cpus() {
            let event = match builder.one_cpu(cpu).build() {
                Ok(event) => event,
                // The CPU has been switched off since it was listed.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::NODEV) => continue,
                Err(error) => return Err(error),
            };
            self.owners.insert(event.id(), thread);
            match self.rings.iter().find(|(other, _)| *other == cpu) {
                Some((_, ring)) => {
                    uncopied::share_perf_ring(&event, ring)?;
                    self.others.push(event);
                }
                None => self.rings.push((cpu, event.sampled(RING_BYTES)?)),
            }
        }
        self.attached.insert(thread);
        Ok(())
    }

    /// Whether the samples include those in the kernel.
    pub(super) fn sees_kernel(&self) -> bool {
        self.sees_kernel
    }

    /// Samples per second of CPU time.
    pub(super) fn frequency(&self) -> u64 {
        self.frequency
    }

    /// Passes what has been recorded since the last call to `visit`.
    pub(super) fn drain(&mut self, mut visit: impl FnMut(Observation)) {
        for (_, ring) in &mut self.rings {
            while let Some(record) = ring.next_record() {
                match Parsed::from_record(record.ty(), record.misc(), &record.to_contiguous()) {
                    // A thread that was started while the events were opened has inherited events,
                    // and also has its own. Only its own count.
                    Parsed::Event(id, Observation::Sample { thread, .. })
                        if self.attached.contains(&thread)
                            && self.owners.get(&id) != Some(&thread) => {}
                    Parsed::Event(_, observation) => visit(observation),
                    Parsed::Irrelevant => {}
                }
            }
        }
    }
}

/// A record of the kernel.
enum Parsed {
    /// What it says, and the identifier of its event, or 0.
    Event(u64, Observation),
    /// One that is not needed.
    Irrelevant,
}

impl Parsed {
    /// Parses a record without its header, as `perf_event_open(2)` describes it for the events of
    /// [`Sampling::builder`]. One that is cut off counts as lost.
    ///
    /// perf-event-data is not used here: it fails on a stack without addresses at the end of a
    /// record, which is what samples of user code have.
    fn from_record(kind: u32, flags: u16, bytes: &[u8]) -> Self {
        match kind {
            PERF_RECORD_SAMPLE => Self::sample(flags, bytes),
            PERF_RECORD_COMM => number(bytes, 4).map(|thread| {
                let name = bytes.get(8..).unwrap_or_default();
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                let name = String::from_utf8_lossy(name).into_owned();
                Self::Event(0, Observation::Name { thread, name })
            }),
            PERF_RECORD_LOST => long(bytes, 8).map(|lost| Self::Event(0, Observation::Lost(lost))),
            _ => Some(Self::Irrelevant),
        }
        .unwrap_or(Self::Event(0, Observation::Lost(1)))
    }

    fn sample(flags: u16, bytes: &[u8]) -> Option<Self> {
        let addresses = usize::try_from(long(bytes, 16)?).ok()?;
        let stack = bytes.get(24..)?.get(..addresses.checked_mul(8)?)?;
        let kernel_stack = stack
            .chunks_exact(8)
            .filter_map(|chunk| Some(u64::from_ne_bytes(chunk.try_into().ok()?)))
            .filter(|address| *address < FIRST_CONTEXT_MARKER)
            .collect();
        let sample = Observation::Sample {
            process: number(bytes, 0)?,
            thread: number(bytes, 4)?,
            kernel_stack,
            is_user: flags & CPU_MODE_MASK == CPU_MODE_USER,
        };
        Some(Self::Event(long(bytes, 8)?, sample))
    }
}

/// Returns the number of 4 bytes at an offset.
fn number(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Returns the number of 8 bytes at an offset.
fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// The most samples per second that the kernel allows.
fn max_sample_rate() -> u64 {
    let text = fs::read_to_string("/proc/sys/kernel/perf_event_max_sample_rate");
    text.ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(SAMPLES_PER_SECOND)
}

fn online_cpus() -> Vec<usize> {
    let text = fs::read_to_string("/sys/devices/system/cpu/online");
    let cpus = text.map(|text| parse_cpus(&text)).unwrap_or_default();
    if cpus.is_empty() { vec![0] } else { cpus }
}

/// Parses a list like `0-3,8`.
fn parse_cpus(text: &str) -> Vec<usize> {
    text.trim()
        .split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse().ok()?..=last.parse().ok()?)
        })
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_parsed() {
        assert_eq!(parse_cpus("0-3,8\n"), [0, 1, 2, 3, 8]);
        assert_eq!(parse_cpus("0\n"), [0]);
        assert!(parse_cpus("").is_empty());
    }

    /// The bytes of a sample's record.
    fn sample(id: u64, addresses: u64, stack: &[u64]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(7_i32.to_ne_bytes());
        bytes.extend(8_i32.to_ne_bytes());
        for word in [id, addresses].iter().chain(stack) {
            bytes.extend(word.to_ne_bytes());
        }
        bytes
    }

    fn observed(kind: u32, flags: u16, bytes: &[u8]) -> (u64, Observation) {
        match Parsed::from_record(kind, flags, bytes) {
            Parsed::Event(id, observation) => (id, observation),
            Parsed::Irrelevant => panic!("the record is needed"),
        }
    }

    #[test]
    fn records_are_parsed() {
        // In the kernel: a marker (PERF_CONTEXT_KERNEL), and two addresses.
        let kernel = sample(
            99,
            3,
            &[
                -128_i64 as u64,
                0xffff_ffff_8100_0000,
                0xffff_ffff_8200_0000,
            ],
        );
        let expected = |kernel_stack: &[u64], is_user| Observation::Sample {
            process: 7,
            thread: 8,
            kernel_stack: kernel_stack.to_vec(),
            is_user,
        };
        assert_eq!(
            observed(PERF_RECORD_SAMPLE, 1, &kernel),
            (
                99,
                expected(&[0xffff_ffff_8100_0000, 0xffff_ffff_8200_0000], false)
            )
        );
        // In user code, the stack is empty.
        assert_eq!(
            observed(PERF_RECORD_SAMPLE, 2, &sample(99, 0, &[])),
            (99, expected(&[], true))
        );
        let mut name = [7_i32.to_ne_bytes(), 8_i32.to_ne_bytes()].concat();
        name.extend(b"nginx\0\0\0");
        let expected = Observation::Name {
            thread: 8,
            name: "nginx".to_owned(),
        };
        assert_eq!(observed(PERF_RECORD_COMM, 0, &name), (0, expected));
        let lost = [99_u64.to_ne_bytes(), 5_u64.to_ne_bytes()].concat();
        assert_eq!(
            observed(PERF_RECORD_LOST, 0, &lost),
            (0, Observation::Lost(5))
        );
    }

    #[test]
    fn records_that_are_cut_off_count_as_lost() {
        let whole = sample(99, 2, &[0x1000, 0x2000]);
        for length in 0..whole.len() {
            let (_, observation) = observed(PERF_RECORD_SAMPLE, 1, &whole[..length]);
            assert_eq!(observation, Observation::Lost(1), "{length} bytes");
        }
        let (_, observation) = observed(PERF_RECORD_SAMPLE, 1, &sample(99, u64::MAX, &[]));
        assert_eq!(observation, Observation::Lost(1));
        assert_eq!(observed(PERF_RECORD_COMM, 0, &[]).1, Observation::Lost(1));
        assert_eq!(
            observed(PERF_RECORD_LOST, 0, &[0; 15]).1,
            Observation::Lost(1)
        );
    }
}
