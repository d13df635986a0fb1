//! How many bytes of a send were not copied, and how many of these were copied after all.
//!
//! Probes at these functions of the kernel count, or show whose a packet is:
//!
//! | function | what it does |
//! |---|---|
//! | `skb_splice_from_iter` | puts pages of files and pipes into packets; returns their bytes |
//! | `skb_zerocopy_iter_stream` | the same for memory (`MSG_ZEROCOPY`, `send_zc`) |
//! | `skb_copy_ubufs` | copies such memory for a receiver on this machine, a bridge, a sniffer |
//! | `skb_copy_bits` | copies from a packet, for an interface that cannot gather it |
//! | `skb_copy_and_csum_bits` | the same, with a checksum |
//! | `skb_segment` | cuts a packet into several |
//! | `tcp_sendmsg_locked` | sends with a socket |
//! | `msg_zerocopy_realloc` | makes the notification of a send |
//! | `inet_sock_destruct` | frees a socket |
//!
//! A copy may be made by any thread: by that which sends, by one that receives, or by one of the
//! kernel. What a packet has tells whose it is: its notification where `skb_copy_ubufs` copies,
//! and its socket where the others do. The process that has last sent with that socket gets the
//! bytes.
//!
//! The functions run BPF programs, which read the lengths and pointers in packets, and count. So
//! no record can be lost. Probes, programs and maps are descriptors: there is no entry in tracefs,
//! and nothing is left behind even after SIGKILL.

mod assembler;
mod btf;
mod programs;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;

use perf_event::events::KProbe;
use perf_event::{Builder, Counter};
use uncopied::BpfProgram;

use super::events::online_cpus;
use super::symbols::KernelSymbols;
use btf::Types;
use programs::{COPIED_LATER, Maps, NO_ROOM, Placed, ProgramsError, REFERENCED};

/// `PROC_PID_INIT_INO`: the inode of the first namespace of processes.
const FIRST_PID_NAMESPACE: u64 = 0xefff_fffc;

/// Why the copies of sends are not counted.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbesError {
    #[error("this command runs in a PID namespace of its own, such as a container")]
    OtherNamespace,
    #[error("the addresses in /proc/kallsyms are hidden from this user")]
    NoSymbols,
    #[error("the kernel does not describe its types ({path}: {0})", path = btf::PATH)]
    NoTypes(io::Error),
    #[error("this command does not understand {path}", path = btf::PATH)]
    UnknownTypes,
    #[error(transparent)]
    Programs(#[from] ProgramsError),
    #[error(
        "the kernel has no kprobes, locks them down, or is older than 6.5 (the probe of \
         {function} failed: {source})"
    )]
    Probe {
        function: &'static str,
        source: io::Error,
    },
    #[error("what was counted cannot be read ({0})")]
    Counts(io::Error),
}

/// The bytes of the sends of one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SendBytes {
    /// Bytes that a send did not copy.
    pub(super) referenced: u64,
    /// Bytes that were copied from packets on their way.
    pub(super) copied_later: u64,
}

/// The bytes of all processes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SendCounts {
    pub(super) processes: BTreeMap<i32, SendBytes>,
    /// Bytes copied from packets whose sender is not known.
    pub(super) unattributed: u64,
    /// Whether something was not counted, because the maps were full, or because a program was
    /// due while another one ran on the same CPU.
    pub(super) is_incomplete: bool,
}

/// The probes at work.
pub(super) struct Probes {
    maps: Maps,
    /// What was counted before the beginning.
    before: BTreeMap<u64, u64>,
    /// They run as long as these exist.
    attached: Vec<(Counter, BpfProgram)>,
}

impl Probes {
    /// Starts to count the sends of all processes.
    pub(super) fn open(symbols: Option<&KernelSymbols>) -> Result<Self, ProbesError> {
        // Programs see the numbers of processes in the first namespace.
        let is_first = fs::metadata("/proc/self/ns/pid").map(|file| file.ino());
        if !is_first.is_ok_and(|inode| inode == FIRST_PID_NAMESPACE) {
            return Err(ProbesError::OtherNamespace);
        }
        let symbols = symbols.ok_or(ProbesError::NoSymbols)?;
        let description = fs::read(btf::PATH).map_err(ProbesError::NoTypes)?;
        let types = Types::parse(&description).ok_or(ProbesError::UnknownTypes)?;
        let (maps, programs) = programs::load(&types, symbols)?;
        let mut attached = Vec::new();
        for placed in programs {
            let function = placed.function;
            let probe = attach(placed);
            attached.push(probe.map_err(|source| ProbesError::Probe { function, source })?);
        }
        Ok(Self {
            maps,
            before: BTreeMap::new(),
            attached,
        })
    }

    /// Forgets what has been counted until now.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        self.before = self.read()?;
        Ok(())
    }

    /// What has been counted since the beginning.
    pub(super) fn counts(&self) -> io::Result<SendCounts> {
        let mut counts = SendCounts::new(&self.before, &self.read()?);
        for (_, program) in &self.attached {
            counts.is_incomplete |= program.missed()? > 0;
        }
        Ok(counts)
    }

    fn read(&self) -> io::Result<BTreeMap<u64, u64>> {
        let entries = self.maps.counts.entries()?.into_iter();
        Ok(entries.map(|(key, [bytes])| (key, bytes)).collect())
    }
}

impl SendCounts {
    fn new(before: &BTreeMap<u64, u64>, now: &BTreeMap<u64, u64>) -> Self {
        let mut counts = Self::default();
        for (key, bytes) in now {
            let bytes = bytes.saturating_sub(before.get(key).copied().unwrap_or(0));
            if *key == NO_ROOM {
                counts.is_incomplete = bytes > 0;
                continue;
            }
            let process = (key >> 32) as i32;
            let what = (*key as u32).cast_signed();
            let of_process = counts.processes.entry(process).or_default();
            match what {
                REFERENCED => of_process.referenced = bytes,
                COPIED_LATER => of_process.copied_later = bytes,
                _ => {}
            }
        }
        let unattributed = counts.processes.remove(&0).unwrap_or_default();
        counts.unattributed = unattributed.copied_later;
        counts
    }
}

/// Makes the kernel run a program at a function, for all processes.
fn attach(placed: Placed) -> io::Result<(Counter, BpfProgram)> {
    let event = match placed.at_return {
        true => KProbe::retprobe(placed.function, 0)?,
        false => KProbe::probe(placed.function, 0)?,
    };
    // The program runs on all CPUs, although an event of all processes must be of one CPU.
    let cpu = online_cpus().first().copied().unwrap_or(0);
    let mut counter = Builder::new(event)
        .include_kernel()
        .any_pid()
        .one_cpu(cpu)
        .build()?;
    counter.set_bpf(placed.program.as_raw_fd())?;
    counter.enable()?;
    Ok((counter, placed.program))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_those_since_the_beginning() {
        let key = |process: u64, what: i32| (process << 32) | u64::from(what.cast_unsigned());
        let before = BTreeMap::from([
            (key(7, REFERENCED), 100),
            (key(0, COPIED_LATER), 50),
            (NO_ROOM, 0),
        ]);
        let mut now = before.clone();
        now.extend([
            (key(7, REFERENCED), 300),
            (key(7, COPIED_LATER), 20),
            (key(8, COPIED_LATER), 9),
            (key(0, COPIED_LATER), 51),
        ]);
        let counts = SendCounts::new(&before, &now);
        let bytes = |referenced, copied_later| SendBytes {
            referenced,
            copied_later,
        };
        let expected = SendCounts {
            processes: BTreeMap::from([(7, bytes(200, 20)), (8, bytes(0, 9))]),
            unattributed: 1,
            is_incomplete: false,
        };
        assert_eq!(counts, expected);
        now.insert(NO_ROOM, 1);
        assert!(SendCounts::new(&before, &now).is_incomplete);
    }
}
