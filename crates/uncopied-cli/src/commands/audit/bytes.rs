//! How many bytes were copied between the program and its sockets, counted at each call.
//!
//! Tracepoints of the kernel tell how many bytes each call of the program has sent and received,
//! and how many were copied out of packets. Which of the sent bytes were copied is counted by
//! [probes](super::probes), for all processes. Where these are not available, it is not known.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use perf_event::events::Tracepoint;
use perf_event::{Builder, SampleFlag};

use super::events::{Events, Record, Whom, number};
use super::probes::{Probes, ProbesError, SendCounts};
use super::symbols::KernelSymbols;

/// Where tracefs is mounted.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// The size of a ring, in bytes: room for 200 ms of records of the fastest program that was tried,
/// which was sendfile over loopback with 150,000 calls per second.
const RING_BYTES: usize = 2 << 20;

/// The most copied bytes with unknown senders for which the copies of a process are shown, as a
/// part of what it has sent: so few that they cannot change the figure that is shown.
const UNATTRIBUTED_PART: u64 = 2_000;

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

/// The bytes of one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bytes {
    pub(super) sent: u64,
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
    probes: Result<Probes, ProbesError>,
    /// The bytes of each process that is watched.
    processes: BTreeMap<i32, Bytes>,
    lost: u64,
    /// What the probes have counted, once it is over.
    sends: Option<SendCounts>,
}

impl ByteCounts {
    /// Opens the events.
    pub(super) fn open(
        whom: Whom<'_>,
        symbols: Option<&KernelSymbols>,
    ) -> Result<Self, BytesError> {
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
        // Opened first, because it takes a while, in which a process that runs may send.
        let mut probes = Probes::open(symbols);
        let calls = Events::open(whom, &mut builders, RING_BYTES).map_err(BytesError::Refused)?;
        if let Ok(Err(error)) = probes.as_mut().map(Probes::begin) {
            probes = Err(ProbesError::Counts(error));
        }
        Ok(Self {
            calls,
            offsets,
            probes,
            processes: BTreeMap::new(),
            lost: 0,
            sends: None,
        })
    }

    /// Adds what has been recorded since the last call.
    pub(super) fn drain(&mut self) {
        let Self {
            calls,
            offsets,
            processes,
            lost,
            ..
        } = self;
        calls.drain(|kind, record| match record {
            Record::Sample { process, rest, .. } => {
                let value = offsets.get(kind).and_then(|offset| field(rest, *offset));
                match (TRACEPOINTS.get(kind), value) {
                    (Some((_, _, count)), Some(value)) => {
                        processes.entry(process).or_default().add(*count, value);
                    }
                    _ => *lost += 1,
                }
            }
            Record::Lost(more) => *lost += more,
            Record::Name { .. } => {}
        });
    }

    /// Reads what the probes have counted. To be called once, at the end.
    pub(super) fn finish(&mut self) {
        let Ok(probes) = &self.probes else {
            return;
        };
        match probes.counts() {
            Ok(counts) => self.sends = Some(counts),
            Err(error) => self.probes = Err(ProbesError::Counts(error)),
        }
    }

    /// Why the copies of sends are not counted, if they are not.
    pub(super) fn probes_error(&self) -> Option<&ProbesError> {
        self.probes.as_ref().err()
    }

    /// What the probes have counted.
    pub(super) fn sends(&self) -> Option<&SendCounts> {
        self.sends.as_ref()
    }

    /// How many bytes were copied for a process to send, if that is known.
    pub(super) fn sent_copied(&self, process: i32, bytes: &Bytes) -> Option<u64> {
        let sends = self.sends.as_ref().filter(|sends| !sends.is_incomplete)?;
        if sends.unattributed.saturating_mul(UNATTRIBUTED_PART) > bytes.sent {
            return None;
        }
        let of_process = sends.processes.get(&process).copied().unwrap_or_default();
        let by_calls = bytes.sent.saturating_sub(of_process.referenced);
        Some(by_calls + of_process.copied_later)
    }

    /// The bytes of each process that is watched. `None` if records were lost, so that the sums
    /// would be wrong.
    pub(super) fn processes(&self) -> Option<&BTreeMap<i32, Bytes>> {
        (self.lost == 0).then_some(&self.processes)
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

/// Returns a field of what a tracepoint has recorded, which begins with its length.
fn field(rest: &[u8], offset: usize) -> Option<i32> {
    number(rest.get(4..)?, offset)
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
            (Count::Received, 5),
            (Count::CopiedFromPacket, 4),
        ] {
            bytes.add(count, value);
        }
        let expected = Bytes {
            sent: 100,
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
    }
}
