//! How many bytes were copied between the program and its sockets, counted at each call.
//!
//! Tracepoints of the kernel tell how many bytes each call has sent and received, and how many were
//! copied out of packets. How many bytes a send has *not* copied is what two functions return:
//! `skb_splice_from_iter` (sendfile, splice) and `skb_zerocopy_iter_stream` (`MSG_ZEROCOPY`,
//! `send_zc`). They are probed through `perf_event_open(2)`, which needs no entry in tracefs, so
//! that nothing is left behind even after SIGKILL. A probe there cannot read memory, so the bytes
//! of `skb_copy_ubufs` and `skb_copy_and_csum_bits`, which copy what was sent without a copy after
//! all, are not known: only their calls are counted. They may run in any process, on behalf of
//! another one.
//!
//! The probes record all processes, and those that are not watched are left out here. A probe that
//! is inherited is opened again by each `fork(2)`, which fails if that process may not probe, or if
//! the name of the function is no longer at its address: it would break the program.
//!
//! Where kprobes are not available, the copies of sends are not known.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use perf_event::events::{KProbe, Tracepoint};
use perf_event::{Builder, SampleFlag};

use super::events::{Events, Record, Whom, long, number};

/// Where tracefs is mounted.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// The size of a ring, in bytes: room for 200 ms of records of the fastest program that was tried,
/// which was sendfile over loopback with 150,000 calls per second.
const RING_BYTES: usize = 2 << 20;

/// The bit of the register that holds the value that a function returns: `PERF_REG_X86_AX` of
/// `asm/perf_regs.h`, and `PERF_REG_ARM64_X0`.
const RETURN_REGISTER: u64 = 1;

/// Why bytes are not counted.
#[derive(Debug, thiserror::Error)]
pub(super) enum BytesError {
    #[error(
        "tracefs is not mounted, or this user may not read it: as root, run \
         `mount -t tracefs tracefs /sys/kernel/tracing`"
    )]
    NoTracefs,
    #[error("this kernel has no tracepoint {0}")]
    NoTracepoint(&'static str),
    #[error("the kernel refuses its tracepoints to this user ({0})")]
    Refused(io::Error),
}

/// What an event counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Count {
    /// Bytes that a call has sent.
    Sent,
    /// Bytes that a call has received.
    Received,
    /// Bytes that were copied from a packet.
    CopiedFromPacket,
    /// Bytes of a send that were not copied.
    Referenced,
    /// A packet of a send without a copy that was copied after all.
    CopiedLater,
}

/// The tracepoints, the fields of interest, and what they count.
const TRACEPOINTS: [(&str, &str, Count); 3] = [
    ("sock/sock_send_length", "ret", Count::Sent),
    ("sock/sock_recv_length", "ret", Count::Received),
    (
        "skb/skb_copy_datagram_iovec",
        "len",
        Count::CopiedFromPacket,
    ),
];

/// The functions that are probed, whether at their return, and what they count.
const PROBES: [(&str, bool, Count); 4] = [
    ("skb_splice_from_iter", true, Count::Referenced),
    ("skb_zerocopy_iter_stream", true, Count::Referenced),
    ("skb_copy_ubufs", false, Count::CopiedLater),
    ("skb_copy_and_csum_bits", false, Count::CopiedLater),
];

/// The bytes of one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bytes {
    /// Whether the process is one of those that are watched.
    is_watched: bool,
    pub(super) sent: u64,
    /// Of the bytes sent: those that the send did not copy.
    pub(super) referenced: u64,
    /// Packets that were copied after a send in this process, of itself or of another one.
    copied_later: u64,
    /// Bytes that calls such as `recv` have returned.
    pub(super) received: u64,
    /// Bytes that were copied from packets to the program.
    pub(super) copied_from_packets: u64,
}

/// Counts bytes.
pub(super) struct ByteCounts {
    /// The tracepoints, and the offset of each one's number.
    calls: Events,
    offsets: Vec<usize>,
    probes: Option<Events>,
    /// The bytes of all processes that were seen, watched or not.
    processes: BTreeMap<i32, Bytes>,
    lost: u64,
}

impl ByteCounts {
    /// Opens the events.
    pub(super) fn open(whom: Whom<'_>) -> Result<Self, BytesError> {
        let events_folder = TRACEFS
            .iter()
            .map(|tracefs| Path::new(tracefs).join("events"))
            .find(|folder| folder.is_dir())
            .ok_or(BytesError::NoTracefs)?;
        let mut offsets = Vec::new();
        let mut builders = Vec::new();
        for (name, field, _) in TRACEPOINTS {
            let (builder, offset) =
                tracepoint(&events_folder, name, field).ok_or(BytesError::NoTracepoint(name))?;
            builders.push(builder);
            offsets.push(offset);
        }
        let calls = Events::open(whom, &mut builders, RING_BYTES).map_err(BytesError::Refused)?;
        // All of the probes are needed for a figure. They must be there before the program starts.
        let probes = PROBES
            .iter()
            .map(|(name, at_return, _)| probe(name, *at_return));
        let probes: io::Result<Vec<_>> = probes.collect();
        let probes =
            probes.and_then(|mut probes| Events::open(Whom::Everyone, &mut probes, RING_BYTES));
        Ok(Self {
            calls,
            offsets,
            probes: probes.ok(),
            processes: BTreeMap::new(),
            lost: 0,
        })
    }

    /// Adds what has been recorded since the last call.
    pub(super) fn drain(&mut self) {
        let Self {
            calls,
            offsets,
            probes,
            processes,
            lost,
        } = self;
        calls.drain(|kind, record| match record {
            Record::Sample { process, rest, .. } => {
                let value = offsets.get(kind).and_then(|offset| field(rest, *offset));
                match (TRACEPOINTS.get(kind), value) {
                    (Some((_, _, count)), Some(value)) => {
                        let bytes = processes.entry(process).or_default();
                        bytes.is_watched = true;
                        bytes.add(*count, value);
                    }
                    _ => *lost += 1,
                }
            }
            Record::Lost(more) => *lost += more,
            Record::Name { .. } => {}
        });
        let Some(probes) = probes else {
            return;
        };
        probes.drain(|kind, record| match record {
            Record::Sample { process, rest, .. } => match (PROBES.get(kind), register(rest)) {
                (Some((_, _, count)), Some(value)) => {
                    processes.entry(process).or_default().add(*count, value);
                }
                _ => *lost += 1,
            },
            Record::Lost(more) => *lost += more,
            Record::Name { .. } => {}
        });
    }

    /// Whether the copies of sends are counted.
    pub(super) fn counts_send_copies(&self) -> bool {
        self.probes.is_some()
    }

    /// How many packets were copied after a send that did not copy them, on the whole machine.
    pub(super) fn packets_copied_later(&self) -> u64 {
        self.processes
            .values()
            .map(|bytes| bytes.copied_later)
            .sum()
    }

    /// How many of the bytes that a process has sent were copied, if that is known: bytes that the
    /// send did not copy may be among those that were copied later.
    pub(super) fn sent_copied(&self, bytes: &Bytes) -> Option<u64> {
        let is_known = bytes.referenced == 0 || self.packets_copied_later() == 0;
        (self.counts_send_copies() && is_known).then(|| bytes.sent.saturating_sub(bytes.referenced))
    }

    /// The bytes of each process that is watched. `None` if records were lost, so that the sums
    /// would be wrong.
    pub(super) fn processes(&self) -> Option<BTreeMap<i32, Bytes>> {
        let watched = self.processes.iter().filter(|(_, bytes)| bytes.is_watched);
        (self.lost == 0).then(|| watched.map(|(process, bytes)| (*process, *bytes)).collect())
    }
}

impl Bytes {
    /// Adds the value of an event, which is negative if the call has failed.
    fn add(&mut self, count: Count, value: i32) {
        let bytes = u64::try_from(value).unwrap_or(0);
        match count {
            Count::Sent => self.sent += bytes,
            Count::Received => self.received += bytes,
            Count::CopiedFromPacket => self.copied_from_packets += bytes,
            Count::Referenced => self.referenced += bytes,
            Count::CopiedLater => self.copied_later += 1,
        }
    }
}

/// Prepares the event of a tracepoint, and returns the offset of one of its fields.
fn tracepoint(events: &Path, name: &str, field: &str) -> Option<(Builder<'static>, usize)> {
    let folder: PathBuf = events.join(name);
    let id = fs::read_to_string(folder.join("id"))
        .ok()?
        .trim()
        .parse()
        .ok()?;
    let format = fs::read_to_string(folder.join("format")).ok()?;
    let mut builder = Builder::new(Tracepoint::with_id(id));
    builder
        .include_kernel()
        .sample_period(1)
        .sample(SampleFlag::RAW);
    Some((builder, field_offset(&format, field)?))
}

/// Returns the offset of a field of 4 bytes in the description of a tracepoint. Its lines are like
/// `field:int ret; offset:20; size:4; signed:1;`, with tabs.
fn field_offset(format: &str, field: &str) -> Option<usize> {
    let declaration = format!("field:int {field};");
    let line = format
        .lines()
        .find(|line| line.trim().starts_with(&declaration))?;
    let offset = line.split("offset:").nth(1)?.split(';').next()?;
    line.contains("size:4;").then(|| offset.parse().ok())?
}

/// Prepares the event of a probe.
fn probe(function: &str, at_return: bool) -> io::Result<Builder<'static>> {
    let event = match at_return {
        true => KProbe::retprobe(function, 0)?,
        false => KProbe::probe(function, 0)?,
    };
    let mut builder = Builder::new(event);
    builder
        .include_kernel()
        .sample_period(1)
        .sample(SampleFlag::REGS_INTR);
    // The method sample_regs_intr of perf-event2 0.7.4 sets another field.
    builder.attrs_mut().sample_regs_intr = RETURN_REGISTER;
    Ok(builder)
}

/// Returns a field of what a tracepoint has recorded, which begins with its length.
fn field(rest: &[u8], offset: usize) -> Option<i32> {
    number(rest.get(4..)?, offset)
}

/// Returns the register of a probe, as the `int` or `ssize_t` of a function. The registers begin
/// with the ABI, which is 0 if there are none.
fn register(rest: &[u8]) -> Option<i32> {
    (long(rest, 0)? != 0).then(|| number(rest, 8))?
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: &str = "name: sock_send_length\n\
        format:\n\
        \tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\
        \n\
        \tfield:void * sk;\toffset:8;\tsize:8;\tsigned:0;\n\
        \tfield:int ret;\toffset:20;\tsize:4;\tsigned:1;\n";

    #[test]
    fn fields_are_found_in_a_description() {
        assert_eq!(field_offset(FORMAT, "ret"), Some(20));
        assert_eq!(field_offset(FORMAT, "sk"), None);
        assert_eq!(field_offset("", "ret"), None);
    }

    #[test]
    fn values_of_failed_calls_are_not_counted() {
        let mut bytes = Bytes::default();
        for (count, value) in [
            (Count::Sent, 100),
            (Count::Sent, -11),
            (Count::Referenced, 60),
            (Count::Referenced, -14),
            (Count::Received, 5),
            (Count::CopiedFromPacket, 4),
            (Count::CopiedLater, 1 << 20),
        ] {
            bytes.add(count, value);
        }
        let expected = Bytes {
            is_watched: false,
            sent: 100,
            referenced: 60,
            copied_later: 1,
            received: 5,
            copied_from_packets: 4,
        };
        assert_eq!(bytes, expected);
    }

    #[test]
    fn values_are_parsed() {
        // The length of what the tracepoint has recorded, and then that.
        let mut raw = 12_u32.to_ne_bytes().to_vec();
        raw.extend([0; 8]);
        raw.extend(65_536_i32.to_ne_bytes());
        assert_eq!(field(&raw, 8), Some(65_536));
        assert_eq!(field(&raw, 12), None);
        let registers = |abi: u64, value: i64| [abi.to_ne_bytes(), value.to_ne_bytes()].concat();
        assert_eq!(register(&registers(2, 4096)), Some(4096));
        assert_eq!(register(&registers(2, -11)), Some(-11));
        assert_eq!(register(&registers(0, 4096)), None);
        assert_eq!(register(&[2, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}
