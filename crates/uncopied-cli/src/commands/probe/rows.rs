//! The rows of the probe: each of them is tried, and judged together with the network interfaces.

use serde::Serialize;
use uncopied::interface::{HeaderSplit, IpVersion, Offload};
use uncopied::zcrx::{Builder, Cause};
use uncopied::{
    Errno, MapObstacle, Mechanism, PagePayload, SendOutcome, zero_copy_receive_enabled,
    zero_copy_send_enabled,
};

use super::cause::{self, refused};
use super::finding::{Finding, Status};
use super::interfaces::InterfaceReport;
use super::process::{Process, sysctl};
use super::trial::{Refusal, TRIAL_BYTES, file, memory, receive, tls};
use crate::flags::ProbeRow;

/// A row, and what was found out about it.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) key: ProbeRow,
    pub(super) title: &'static str,
    #[serde(flatten)]
    pub(super) finding: Finding,
}

/// Tries every row.
pub(super) fn try_all(interfaces: &[InterfaceReport], process: &Process) -> Vec<Row> {
    let trials = Trials {
        interfaces,
        process,
        sends: Mechanism::MEMORY_TO_SOCKET
            .into_iter()
            .filter(|mechanism| mechanism.is_zero_copy())
            .map(|mechanism| (mechanism, memory::send(mechanism)))
            .collect(),
    };
    use clap::ValueEnum as _;
    let rows = ProbeRow::value_variants().iter();
    rows.map(|&key| Row {
        key,
        title: key.title(),
        finding: trials.finding(key),
    })
    .collect()
}

/// What several rows are judged by.
struct Trials<'a> {
    /// The interfaces that were asked for.
    interfaces: &'a [InterfaceReport],
    process: &'a Process,
    /// A send with each mechanism that sends memory without a copy.
    sends: Vec<(Mechanism, Result<SendOutcome, Refusal>)>,
}

impl Trials<'_> {
    fn finding(&self, row: ProbeRow) -> Finding {
        match row {
            ProbeRow::Copy => self.file(Mechanism::Copy),
            ProbeRow::MmapWrite => self.file(Mechanism::MmapWrite),
            ProbeRow::Sendfile => self.file(Mechanism::Sendfile),
            ProbeRow::Splice => self.splice(),
            ProbeRow::Vmsplice => self.with_pipe_size(self.memory(Mechanism::Vmsplice)),
            ProbeRow::MsgZerocopy => self.memory(Mechanism::MsgZerocopy),
            ProbeRow::SendZc => self.memory(Mechanism::SendZc),
            ProbeRow::MapReceive => self.map_receive(),
            ProbeRow::Zcrx => self.zcrx(),
            ProbeRow::HeaderSplit => self.header_split(),
            ProbeRow::PageAlignment => self.page_alignment(),
            ProbeRow::CopyOnWrite => self.copy_on_write(),
            ProbeRow::Completions => self.completions(),
            ProbeRow::Switches => self.switches(),
            ProbeRow::KernelTls => self.kernel_tls(),
        }
    }

    /// Sends a file in memory. Whether the file system of `--path` can be sent from is another
    /// matter.
    fn file(&self, mechanism: Mechanism) -> Finding {
        let file = file::file_in_memory().and_then(|file| file::fill(&file).map(|()| file));
        let file = match file {
            Ok(file) => file,
            Err(error) => return Finding::no(format!("no file in memory: {error}")),
        };
        let sent = match file::send(&file, mechanism) {
            Ok(sent) => sent,
            Err(refusal) => return refused(mechanism, &refusal, self.process),
        };
        if !mechanism.is_zero_copy() {
            let copies = match mechanism {
                Mechanism::MmapWrite => "one copy of each",
                _ => "two copies of each; every other mechanism falls back to it",
            };
            return Finding::yes(format!("sent {sent} bytes of a file, with {copies}"));
        }
        match file::pages(&file, mechanism) {
            Ok(file::Pages::Shared) => {
                let why = format!(
                    "sent {sent} bytes of a file as references to its pages: what was written to \
                     the file after the send reached the peer"
                );
                self.with_gathering(Finding::yes(why))
            }
            Ok(file::Pages::Copied) => Finding::partly(format!(
                "sent {sent} bytes of a file, but the kernel copied them"
            )),
            Err(refusal) => refused(mechanism, &refusal, self.process),
        }
    }

    /// Also in the other direction.
    fn splice(&self) -> Finding {
        let finding = self.file(Mechanism::Splice);
        let finding = match file::file_in_memory().map(|file| file::receive(&file)) {
            // It has failed for the same reason before.
            _ if finding.status == Status::No => finding,
            Ok(Ok(())) => finding.and("received as many into a file"),
            Ok(Err(refusal)) => {
                let refused = refused(Mechanism::Splice, &refusal, self.process);
                let finding = finding.but(&format!("not into a file: {}", refused.why));
                refused.change.into_iter().fold(finding, Finding::or)
            }
            Err(_) => finding,
        };
        self.with_pipe_size(finding)
    }

    fn memory(&self, mechanism: Mechanism) -> Finding {
        let send = self.sends.iter().find(|(tried, _)| *tried == mechanism);
        let outcome = match send {
            Some((_, Ok(outcome))) => outcome,
            Some((_, Err(refusal))) => return self.no_memory_send(mechanism, refusal),
            None => return Finding::no("it was not tried"),
        };
        let done = memory::reason_text(outcome.reason);
        let bytes = outcome.bytes;
        let finding = match outcome.copied {
            0 => Finding::yes(format!(
                "sent {bytes} bytes of memory without a copy; the pages were free after: {done}"
            )),
            copied => Finding::partly(format!(
                "sent {bytes} bytes of memory; the pages were free after: {done}. Over loopback \
                 the kernel copied {copied} of them, as for every peer on this machine; that it \
                 does not for another machine is not shown here"
            )),
        };
        self.with_gathering(finding)
    }

    /// A mechanism that did not send memory. The library does not use vmsplice with a small pipe.
    fn no_memory_send(&self, mechanism: Mechanism, refusal: &Refusal) -> Finding {
        match (mechanism, refusal, memory::pipe_bytes()) {
            (Mechanism::Vmsplice, Refusal::Errno(Errno::PERM), Ok(bytes))
                if bytes < memory::WIDE_PIPE_BYTES =>
            {
                Finding::no(format!(
                    "a copy is cheaper than its many calls, because {}",
                    small_pipes(bytes)
                ))
                .or(LARGER_PIPES)
            }
            _ => refused(mechanism, refusal, self.process),
        }
    }

    /// Without scatter-gather, the kernel copies every packet, and says so nowhere.
    fn with_gathering(&self, finding: Finding) -> Finding {
        let state = |card: &InterfaceReport| Some(card.offloads.as_ref()?.scatter_gather);
        let cards: Vec<_> = self.cards().collect();
        let names = |is_on: bool| {
            let cards = cards.iter().filter(|card| match state(card) {
                Some(Offload::On) => is_on,
                Some(_) => !is_on,
                None => false,
            });
            let names: Vec<_> = cards.map(|card| card.name.as_str()).collect();
            names.join(", ")
        };
        let (on, off) = (names(true), names(false));
        let mut finding = match (on.is_empty(), off.is_empty()) {
            (true, true) => return finding,
            (false, true) => return finding.and(&format!("scatter-gather is on: {on}")),
            (_, false) => finding.but(&format!(
                "scatter-gather is off on {off}, so the kernel copies every byte that leaves there"
            )),
        };
        for card in cards
            .iter()
            .filter(|card| state(card) == Some(Offload::Off))
        {
            finding = finding.or(format!("ethtool -K {} tx on sg on", card.word));
        }
        finding
    }

    /// A small pipe takes more system calls.
    fn with_pipe_size(&self, finding: Finding) -> Finding {
        if finding.status == Status::No {
            return finding;
        }
        match memory::pipe_bytes() {
            Ok(bytes) if bytes < memory::WIDE_PIPE_BYTES => {
                finding.but(&small_pipes(bytes)).or(LARGER_PIPES)
            }
            _ => finding,
        }
    }

    fn map_receive(&self) -> Finding {
        let received = match receive::map() {
            Ok(received) => received,
            Err(refusal) => return refused(Mechanism::MapReceive, &refusal, self.process),
        };
        let percent = received.mapped * 100 / received.bytes.max(1);
        let obstacle = received.obstacle.map(|obstacle| obstacle.to_string());
        if !zero_copy_receive_enabled() {
            let refusal = Refusal::SwitchedOff("UNCOPIED_RECEIVE");
            return refused(Mechanism::MapReceive, &refusal, self.process);
        }
        if received.obstacle == Some(MapObstacle::SameMachine) {
            return Finding::partly(
                "the kernel takes the call. Over loopback it maps only what was sent with \
                 MSG_ZEROCOPY, which does not work here (see msg_zerocopy), so nothing was mapped",
            );
        }
        if received.mapped == 0 {
            let why = obstacle.unwrap_or_else(|| "the kernel mapped nothing".to_owned());
            return Finding::no(format!(
                "none of {} bytes were mapped: {why}",
                received.bytes
            ));
        }
        let why = format!(
            "over loopback, with payloads of whole pages, {percent} % of {} bytes were mapped \
             instead of copied",
            received.bytes
        );
        let ready = self
            .cards()
            .find(|card| card.header_split == HeaderSplit::On && card.page_payload_bytes_ipv4 > 0);
        match ready {
            Some(card) => Finding::yes(format!(
                "{why}, and {} splits headers from payloads, with an MTU for whole pages",
                card.name
            )),
            None => {
                let why = format!(
                    "{why}. From another machine, the network card has to split headers from \
                     payloads: see header_split"
                );
                Finding::partly(why)
            }
        }
    }

    fn zcrx(&self) -> Finding {
        // What one interface can do is more than what a queue without a card can.
        let best = self.cards().map(|card| &card.zcrx);
        if let Some(best) = best.max_by_key(|finding| finding.status)
            && best.status != Status::No
        {
            return best.clone();
        }
        let builder = Builder::without_device().area_bytes(TRIAL_BYTES);
        match builder.register::<std::net::TcpStream>() {
            Ok(_) => Finding::partly(
                "the kernel has it, and a queue without a network card can be registered, but into \
                 that the kernel copies; no interface here has a card that supports it",
            ),
            Err(refusal) if refusal.cause() == Cause::NeedsDevice => {
                // A card has receive rings, which virtual interfaces lack.
                let has_rings = |card: &&InterfaceReport| card.rx_ring.current.is_some();
                let of_card = self.cards().max_by_key(has_rings).map(|card| &card.zcrx);
                of_card.cloned().unwrap_or_else(|| {
                    Finding::no("the kernel has it, but there is no network card to use it with")
                })
            }
            Err(refusal) => interfaces_refusal(&refusal),
        }
    }

    fn header_split(&self) -> Finding {
        let findings = self.cards().map(InterfaceReport::header_split_finding);
        // A virtual interface must not hide a card on which something can be changed.
        let best = findings.max_by_key(|it| (it.status, !it.change.is_empty()));
        best.unwrap_or_else(|| {
            Finding::no("none of the interfaces is a network card; on loopback, nothing is split")
        })
    }

    fn page_alignment(&self) -> Finding {
        let (aligned, unaligned) = match memory::aligned_and_unaligned() {
            Ok(reports) => reports,
            Err(refusal) => return refused(Mechanism::Copy, &refusal, self.process),
        };
        let page = rustix::param::page_size();
        let mss = PagePayload::new(1).map(|payload| payload.mtu(IpVersion::V4));
        let mtu = mss.map_or_else(
            |_| "payloads of whole pages are not possible with it".to_owned(),
            |mtu| format!("a payload of one page needs an MTU of {mtu} (IPv4)"),
        );
        let gifted = aligned.by(Mechanism::Vmsplice);
        let copied = unaligned.copied_bytes();
        let why = format!(
            "a page has {page} bytes; {mtu}. Of pages that begin on a page boundary, {gifted} of \
             {} bytes went by vmsplice; of those one byte further, {copied} of {} were copied, and \
             counted so",
            aligned.bytes(),
            unaligned.bytes()
        );
        match gifted == aligned.bytes() {
            true => Finding::yes(why),
            false => Finding::partly(why),
        }
    }

    fn copy_on_write(&self) -> Finding {
        use uncopied::arena::Protection;
        let found = match memory::overwrite_region() {
            Ok(Ok(found)) => found,
            Ok(Err(errno)) => return self.no_userfaultfd(errno),
            Err(refusal) => return self.no_memory_send(Mechanism::Vmsplice, &refusal),
        };
        let why = format!(
            "memory that was overwritten right after its send arrived as it had been sent; {} \
             bytes were copied on write",
            found.copied_on_write
        );
        let mut finding = Finding::yes(why);
        if found.protection != Protection::AllWrites {
            finding = finding
                .but("a read(2) into memory in flight fails with EFAULT")
                .or("sysctl vm.unprivileged_userfaultfd=1")
                .or("CAP_SYS_PTRACE for this process, or access to /dev/userfaultfd");
        }
        if !found.is_huge {
            finding = finding
                .but("there are no huge pages, without which it costs more than a copy")
                .or("echo madvise > /sys/kernel/mm/transparent_hugepage/enabled");
        }
        finding
    }

    fn no_userfaultfd(&self, errno: Errno) -> Finding {
        let why = format!(
            "userfaultfd is refused ({}), so memory in flight cannot be protected; sends of it are \
             copied",
            cause::name(errno)
        );
        let finding = Finding::no(why);
        match self.process.seccomp_filter {
            true => finding.or("allow userfaultfd in the seccomp filter"),
            false => finding.or("sysctl vm.unprivileged_userfaultfd=1"),
        }
    }

    fn completions(&self) -> Finding {
        use uncopied::FreeReason;
        let outcomes = self.sends.iter().filter_map(|(mechanism, outcome)| {
            let outcome = outcome.as_ref().ok()?;
            Some((mechanism, outcome))
        });
        let outcomes: Vec<_> = outcomes.collect();
        let words: Vec<_> = outcomes
            .iter()
            .map(|(mechanism, outcome)| {
                format!("{mechanism}: {}", memory::reason_text(outcome.reason))
            })
            .collect();
        let words = words.join(", ");
        let notified = outcomes
            .iter()
            .any(|(_, outcome)| outcome.reason == FreeReason::Notification);
        match (notified, outcomes.is_empty()) {
            (true, _) => Finding::yes(format!(
                "each send says when its memory can be reused ({words}), and how much was copied"
            )),
            (false, false) => Finding::partly(format!(
                "no mechanism with notifications works here; {words}: such memory is never reused"
            )),
            (false, true) => match memory::can_connect() {
                Ok(()) => Finding::partly(
                    "no memory can be sent without a copy, so all of it is free at once",
                ),
                Err(refusal) => refused(Mechanism::Copy, &refusal, self.process),
            },
        }
    }

    fn switches(&self) -> Finding {
        let both = memory::send_switch_works()
            .and_then(|sends| receive::receive_switch_works().map(|receives| sends && receives));
        let state = |is_on| if is_on { "on" } else { "off" };
        let (send, receive) = (zero_copy_send_enabled(), zero_copy_receive_enabled());
        match both {
            Ok(true) => {
                let mut finding = Finding::yes(format!(
                    "while they were off, every byte was copied; here, sending without a copy is \
                     {}, and receiving {}",
                    state(send),
                    state(receive)
                ));
                for (is_on, variable) in [(send, "UNCOPIED_SEND"), (receive, "UNCOPIED_RECEIVE")] {
                    if !is_on {
                        finding = finding.or(format!("unset {variable}"));
                    }
                }
                finding
            }
            Ok(false) => Finding::no("the switches had no effect; this is a bug, please report it"),
            Err(refusal) => refused(Mechanism::Copy, &refusal, self.process),
        }
    }

    fn kernel_tls(&self) -> Finding {
        let found = match tls::try_kernel_tls() {
            Ok(found) => found,
            Err(Refusal::Errno(errno)) if tls::is_missing(errno) => {
                return Finding::no(
                    "a connected socket cannot have it: the kernel was built without CONFIG_TLS, \
                     or its module tls is not loaded (ENOENT)",
                )
                .or("modprobe tls");
            }
            Err(Refusal::Errno(errno)) => {
                return Finding::no(format!("a connected socket cannot have it: {errno}"));
            }
            Err(refusal) => return refused(Mechanism::Copy, &refusal, self.process),
        };
        let refused = found.refused.iter();
        let refused = refused.map(|(name, errno)| format!("{name} ({errno})"));
        let refused: Vec<_> = refused.collect();
        let refused = match refused.is_empty() {
            true => String::new(),
            false => format!("; it refused {}", refused.join(", ")),
        };
        let finding = match found.ciphers.is_empty() {
            true => Finding::no(format!(
                "a connected socket accepts it, but no key for TLS 1.3{refused}"
            )),
            false => Finding::partly(format!(
                "the kernel can encrypt what a socket sends, with {}{refused}; this version of \
                 uncopied does not use it",
                found.ciphers.join(", ")
            )),
        };
        match found.refused.iter().any(|(_, errno)| errno == "ENOENT") {
            true => finding.or("modprobe -a gcm ctr ghash-generic chacha20poly1305"),
            false => finding,
        }
    }

    /// The interfaces of network cards, and virtual ones, but not loopback.
    fn cards(&self) -> impl Iterator<Item = &InterfaceReport> {
        self.interfaces.iter().filter(|it| !it.is_loopback)
    }
}

/// What makes pipes large enough.
const LARGER_PIPES: &str = "sysctl fs.pipe-user-pages-soft=65536 fs.pipe-max-size=1048576";

/// Says that pipes are small, and why.
fn small_pipes(bytes: usize) -> String {
    let soft = sysctl("fs.pipe-user-pages-soft");
    format!(
        "pipes are limited to {bytes} bytes: by fs.pipe-max-size, or because the pipes of this user \
         already have fs.pipe-user-pages-soft ({}) pages",
        soft.as_deref().unwrap_or("unknown")
    )
}

/// Returns the finding for a refusal to register a receive queue.
pub(super) fn interfaces_refusal(refusal: &uncopied::zcrx::Refusal) -> Finding {
    let finding = Finding::no(refusal.to_string());
    match refusal.cause() {
        Cause::SwitchedOff => finding.or("unset UNCOPIED_RECEIVE"),
        Cause::KernelTooOld | Cause::NotBuiltIn => finding.or("another kernel"),
        Cause::NoDriverSupport => {
            finding.or("a network card with support, such as bnxt_en or mlx5")
        }
        Cause::NoPermission => finding.or("run as root, or with CAP_NET_ADMIN"),
        Cause::IoUringForbidden => finding.or("see send_zc"),
        Cause::NoMemory => finding.or(cause::MORE_LOCKED_MEMORY),
        Cause::NoDescriptor => finding.or(cause::MORE_DESCRIPTORS),
        _ => finding,
    }
}
