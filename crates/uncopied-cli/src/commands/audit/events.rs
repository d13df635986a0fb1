//! Events that the kernel records about threads (`perf_event_open(2)`), and the rings from which
//! they are read.
//!
//! Each thread has one event of a kind for each CPU: the kernel refuses a ring for an event that is
//! inherited by children and follows its thread to any CPU. All events of one CPU share a ring.
//! Events are descriptors: nothing is left of them when the process ends, however it ends.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;

use perf_event::{Builder, Counter, SampleFlag, Sampler};
use rustix::io::Errno;

/// `PERF_RECORD_LOST`, `PERF_RECORD_COMM` and `PERF_RECORD_SAMPLE`: the kinds of records.
const PERF_RECORD_LOST: u32 = 2;
const PERF_RECORD_COMM: u32 = 3;
const PERF_RECORD_SAMPLE: u32 = 9;

/// The threads to watch.
#[derive(Clone, Copy)]
pub(super) enum Whom<'a> {
    /// Those of the programs that this thread is going to start, from their `execve` on. This
    /// thread itself is not watched.
    Commands,
    /// These, and the threads and processes that they are going to start.
    Threads(&'a [i32]),
}

/// A record of the kernel.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Record<'a> {
    /// A sample of a thread.
    Sample {
        process: i32,
        thread: i32,
        /// The identifier of the event.
        id: u64,
        /// The flags of the record.
        flags: u16,
        /// What else the event was opened for, as `perf_event_open(2)` lays it out.
        rest: &'a [u8],
    },
    /// A thread has a new name.
    Name { thread: i32, name: String },
    /// Records were lost because a ring was full, or cannot be parsed.
    Lost(u64),
}

/// Events of several kinds, and their rings.
pub(super) struct Events {
    /// One for each CPU: the number of the CPU, and the event that owns its ring.
    rings: Vec<(usize, Sampler)>,
    /// The size of each ring.
    ring_bytes: usize,
    /// The other events, which write to these rings.
    others: Vec<Counter>,
    /// The thread for which each event was opened and the kind of the event, by its identifier.
    owners: HashMap<u64, (i32, usize)>,
    /// The threads that have events of their own.
    attached: HashSet<i32>,
}

impl Events {
    /// Opens events of several kinds. What each records begins with the fields of
    /// [`SampleFlag::TID`] and [`SampleFlag::ID`]. The size of a ring is a power of two.
    pub(super) fn open(
        whom: Whom<'_>,
        kinds: &mut [Builder<'static>],
        ring_bytes: usize,
    ) -> io::Result<Self> {
        let mut events = Self {
            rings: Vec::new(),
            ring_bytes,
            others: Vec::new(),
            owners: HashMap::new(),
            attached: HashSet::new(),
        };
        for (kind, builder) in kinds.iter_mut().enumerate() {
            let builder = builder.sample(SampleFlag::TID).sample(SampleFlag::ID);
            builder.inherit(true);
            match whom {
                Whom::Commands => {
                    let this_thread = rustix::thread::gettid().as_raw_nonzero().get();
                    builder.observe_self().enable_on_exec(true);
                    events.add(builder, kind, this_thread)?;
                }
                Whom::Threads(threads) => {
                    for thread in threads {
                        match events.add(builder.observe_pid(*thread), kind, *thread) {
                            // The thread has ended since it was listed.
                            Err(error) if Errno::from_io_error(&error) == Some(Errno::SRCH) => {}
                            outcome => outcome?,
                        }
                    }
                }
            }
        }
        if !matches!(whom, Whom::Commands) {
            for (_, ring) in &mut events.rings {
                ring.enable()?;
            }
            for event in &mut events.others {
                event.enable()?;
            }
        }
        Ok(events)
    }

    /// Opens the events of one kind for one thread.
    fn add(&mut self, builder: &mut Builder<'_>, kind: usize, thread: i32) -> io::Result<()> {
        for cpu in online_cpus() {
            let event = match builder.one_cpu(cpu).build() {
                Ok(event) => event,
                // The CPU has been switched off since it was listed.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::NODEV) => continue,
                Err(error) => return Err(error),
            };
            self.owners.insert(event.id(), (thread, kind));
            match self.rings.iter().find(|(other, _)| *other == cpu) {
                Some((_, ring)) => {
                    uncopied::share_perf_ring(&event, ring)?;
                    self.others.push(event);
                }
                None => self.rings.push((cpu, event.sampled(self.ring_bytes)?)),
            }
        }
        self.attached.insert(thread);
        Ok(())
    }

    /// Passes what has been recorded since the last call to `visit`, and for a sample the kind of
    /// its event.
    pub(super) fn drain(&mut self, mut visit: impl FnMut(usize, Record<'_>)) {
        for (_, ring) in &mut self.rings {
            while let Some(record) = ring.next_record() {
                let bytes = record.to_contiguous();
                let Some(parsed) = Record::parse(record.ty(), record.misc(), &bytes) else {
                    continue;
                };
                let Record::Sample { thread, id, .. } = parsed else {
                    visit(0, parsed);
                    continue;
                };
                let Some((owner, kind)) = self.owners.get(&id) else {
                    continue;
                };
                // A thread that was started while the events were opened has inherited events, and
                // also has its own. Only its own count.
                if *owner == thread || !self.attached.contains(&thread) {
                    visit(*kind, parsed);
                }
            }
        }
    }
}

impl<'a> Record<'a> {
    /// Parses a record without its header, as `perf_event_open(2)` describes it. `None` if it is
    /// of no interest. One that is cut off counts as lost.
    ///
    /// perf-event-data is not used here: it fails on a stack without addresses at the end of a
    /// record, which is what samples of user code have.
    fn parse(kind: u32, flags: u16, bytes: &'a [u8]) -> Option<Self> {
        let parsed = match kind {
            PERF_RECORD_SAMPLE => Self::sample(flags, bytes),
            PERF_RECORD_COMM => number(bytes, 4).map(|thread| {
                let name = bytes.get(8..).unwrap_or_default();
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                let name = String::from_utf8_lossy(name).into_owned();
                Self::Name { thread, name }
            }),
            PERF_RECORD_LOST => long(bytes, 8).map(Self::Lost),
            _ => return None,
        };
        Some(parsed.unwrap_or(Self::Lost(1)))
    }

    fn sample(flags: u16, bytes: &'a [u8]) -> Option<Self> {
        Some(Self::Sample {
            process: number(bytes, 0)?,
            thread: number(bytes, 4)?,
            id: long(bytes, 8)?,
            flags,
            rest: bytes.get(16..)?,
        })
    }
}

/// Returns the number of 4 bytes at an offset.
pub(super) fn number(bytes: &[u8], at: usize) -> Option<i32> {
    let end = at.checked_add(4)?;
    Some(i32::from_ne_bytes(bytes.get(at..end)?.try_into().ok()?))
}

/// Returns the number of 8 bytes at an offset.
pub(super) fn long(bytes: &[u8], at: usize) -> Option<u64> {
    let end = at.checked_add(8)?;
    Some(u64::from_ne_bytes(bytes.get(at..end)?.try_into().ok()?))
}

/// Returns the CPUs that are switched on.
pub(super) fn online_cpus() -> Vec<usize> {
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

    #[test]
    fn records_are_parsed() {
        let mut sample = [7_i32.to_ne_bytes(), 8_i32.to_ne_bytes()].concat();
        sample.extend(99_u64.to_ne_bytes());
        sample.extend([1, 2, 3]);
        let expected = Record::Sample {
            process: 7,
            thread: 8,
            id: 99,
            flags: 2,
            rest: &[1, 2, 3],
        };
        assert_eq!(
            Record::parse(PERF_RECORD_SAMPLE, 2, &sample),
            Some(expected)
        );
        let mut name = [7_i32.to_ne_bytes(), 8_i32.to_ne_bytes()].concat();
        name.extend(b"nginx\0\0\0");
        let expected = Record::Name {
            thread: 8,
            name: "nginx".to_owned(),
        };
        assert_eq!(Record::parse(PERF_RECORD_COMM, 0, &name), Some(expected));
        let lost = [99_u64.to_ne_bytes(), 5_u64.to_ne_bytes()].concat();
        assert_eq!(
            Record::parse(PERF_RECORD_LOST, 0, &lost),
            Some(Record::Lost(5))
        );
        assert_eq!(Record::parse(1, 0, &lost), None);
    }

    #[test]
    fn records_that_are_cut_off_count_as_lost() {
        let lost = Some(Record::Lost(1));
        for length in 0..16 {
            assert_eq!(Record::parse(PERF_RECORD_SAMPLE, 0, &vec![0; length]), lost);
            assert_eq!(Record::parse(PERF_RECORD_LOST, 0, &vec![0; length]), lost);
        }
        assert_eq!(Record::parse(PERF_RECORD_COMM, 0, &[0; 7]), lost);
    }
}
