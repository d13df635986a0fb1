//! Samples of what processes do, taken by the kernel's CPU clock.

use std::fs;
use std::io;

use perf_event::events::Software;
use perf_event::{Builder, SampleFlag};
use rustix::io::Errno;

use super::events::{Events, Record, Whom, long};

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

/// The samples of all threads.
pub(super) struct Sampling {
    events: Events,
    sees_kernel: bool,
    frequency: u64,
}

impl Sampling {
    /// Opens events that see the kernel, or, if that is refused, events that see user code only.
    pub(super) fn open(whom: Whom<'_>) -> Result<Self, SamplingError> {
        let frequency = SAMPLES_PER_SECOND.min(max_sample_rate());
        let attempt = |sees_kernel: bool| -> Result<Self, SamplingError> {
            let mut builder = Builder::new(Software::CPU_CLOCK);
            builder
                .sample_frequency(frequency)
                .sample(SampleFlag::CALLCHAIN)
                .exclude_kernel(!sees_kernel)
                .exclude_callchain_user(true)
                .comm(true);
            Ok(Self {
                events: Events::open(whom, &mut [builder], RING_BYTES)?,
                sees_kernel,
                frequency,
            })
        };
        match attempt(true) {
            Err(SamplingError::Refused) => attempt(false),
            outcome => outcome,
        }
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
        self.events
            .drain(|_, record| visit(Observation::from_record(record)));
    }
}

impl Observation {
    fn from_record(record: Record<'_>) -> Self {
        match record {
            Record::Name { thread, name } => Self::Name { thread, name },
            Record::Lost(lost) => Self::Lost(lost),
            Record::Sample {
                process,
                thread,
                flags,
                rest,
                ..
            } => match stack(rest) {
                Some(kernel_stack) => Self::Sample {
                    process,
                    thread,
                    kernel_stack,
                    is_user: flags & CPU_MODE_MASK == CPU_MODE_USER,
                },
                None => Self::Lost(1),
            },
        }
    }
}

/// Parses a stack: the number of addresses, and the addresses. `None` if it is cut off.
fn stack(bytes: &[u8]) -> Option<Vec<u64>> {
    let addresses = usize::try_from(long(bytes, 0)?).ok()?;
    let bytes = bytes.get(8..)?.get(..addresses.checked_mul(8)?)?;
    let addresses = bytes.chunks_exact(8).filter_map(|chunk| long(chunk, 0));
    Some(
        addresses
            .filter(|address| *address < FIRST_CONTEXT_MARKER)
            .collect(),
    )
}

/// The most samples per second that the kernel allows.
fn max_sample_rate() -> u64 {
    let text = fs::read_to_string("/proc/sys/kernel/perf_event_max_sample_rate");
    text.ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(SAMPLES_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn stacks_are_parsed_without_their_markers() {
        // A marker (PERF_CONTEXT_KERNEL), and two addresses.
        let kernel = [
            3,
            -128_i64 as u64,
            0xffff_ffff_8100_0000,
            0xffff_ffff_8200_0000,
        ];
        assert_eq!(stack(&words(&kernel)), Some(kernel[2..].to_vec()));
        // In user code, the stack is empty.
        assert_eq!(stack(&words(&[0])), Some(vec![]));
        let whole = words(&[2, 0x1000, 0x2000]);
        for length in 0..whole.len() {
            assert_eq!(stack(&whole[..length]), None, "{length} bytes");
        }
        assert_eq!(stack(&words(&[u64::MAX])), None);
    }

    #[test]
    fn the_flags_tell_user_code_from_the_kernel() {
        for (flags, expected) in [(1, false), (2, true), (2 | 1 << 13, true)] {
            let record = Record::Sample {
                process: 7,
                thread: 8,
                id: 9,
                flags,
                rest: &words(&[0]),
            };
            let expected = Observation::Sample {
                process: 7,
                thread: 8,
                kernel_stack: vec![],
                is_user: expected,
            };
            assert_eq!(Observation::from_record(record), expected);
        }
    }
}
