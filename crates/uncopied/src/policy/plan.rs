//! The order in which mechanisms are tried: one table for each direction.

mod copy;

use std::fmt;

use super::{Mechanism, Support, zero_copy_receive_enabled, zero_copy_send_enabled};
pub use copy::{CopyPlanInput, DescriptorKind, plan_copy};

/// An ordered list of mechanisms. A transfer starts with the first mechanism. Whenever the current
/// one turns out to be unsupported, the transfer continues with the next one, from the first byte
/// that has not been sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    mechanisms: [Mechanism; Mechanism::ALL.len()],
    len: u8,
}

impl Plan {
    /// Returns the plan that tries these mechanisms, in this order, and no others. Duplicates are
    /// left out.
    #[must_use]
    pub fn of(mechanisms: &[Mechanism]) -> Self {
        let mut plan = Self {
            mechanisms: Mechanism::ALL,
            len: 0,
        };
        for &mechanism in mechanisms {
            plan.push(mechanism);
        }
        plan
    }

    /// Returns the plan that copies every byte.
    #[must_use]
    pub fn copying() -> Self {
        Self::of(&[Mechanism::Copy])
    }

    /// Returns the plan that tries `mechanism`, and copies if it is unsupported.
    #[must_use]
    pub fn preferring(mechanism: Mechanism) -> Self {
        Self::of(&[mechanism, Mechanism::Copy])
    }

    /// Returns the mechanisms, first to last.
    #[must_use]
    pub fn mechanisms(&self) -> &[Mechanism] {
        &self.mechanisms[..usize::from(self.len)]
    }

    /// Returns this plan without the mechanisms for which `refused` returns true. The plan's last
    /// mechanism is always kept, so the result is empty only if this plan is empty.
    #[must_use]
    pub fn without(&self, refused: impl Fn(Mechanism) -> bool) -> Self {
        let mut kept = Self::of(&[]);
        for (index, &mechanism) in self.mechanisms().iter().enumerate() {
            if index + 1 == self.mechanisms().len() || !refused(mechanism) {
                kept.push(mechanism);
            }
        }
        kept
    }

    fn push(&mut self, mechanism: Mechanism) {
        if !self.mechanisms().contains(&mechanism) {
            self.mechanisms[usize::from(self.len)] = mechanism;
            self.len += 1;
        }
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.mechanisms()).finish()
    }
}

/// A row of a plan's table: a mechanism, and the condition under which it is worth using.
struct Row<Input> {
    mechanism: Mechanism,
    pays: fn(&Input) -> bool,
}

/// Returns the mechanisms of `table` that are worth using for `input` and that `support` does not
/// list as refused.
fn select<Input>(table: &[Row<Input>], input: &Input, support: &Support) -> Plan {
    let mut plan = Plan::of(&[]);
    for row in table {
        if (row.pays)(input) {
            plan.push(row.mechanism);
        }
    }
    plan.without(|mechanism| support.refusal(mechanism).is_some())
}

/// The kind of source that bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceKind {
    /// A regular file or a block device, whose contents the kernel keeps in the page cache.
    File,
    /// Anything else that can be read at an offset, such as a file of procfs.
    Other,
}

/// How many bytes a transfer moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Length {
    /// Exactly this many bytes. If the file, or the stream of the socket, has fewer, the transfer
    /// fails with [`SourceTooShort`](crate::ErrorKind::SourceTooShort). If the file grows during
    /// the transfer, the additional bytes are not sent. Bytes of the stream after this many stay in
    /// the socket.
    Exact(u64),
    /// All bytes up to the end of the file, or until the peer shuts the connection down. If the
    /// file grows or shrinks during the transfer, the transfer stops at its new end.
    UntilEof,
}

/// The properties of a transfer from a file that, together with [`Support`], determine its plan.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct FilePlanInput {
    /// The kind of source that the bytes come from.
    pub source: SourceKind,
    /// The number of bytes to send.
    pub length: Length,
    /// Whether every byte must be copied when it is read from the file, so that later changes to
    /// the file cannot reach the peer.
    pub force_copy: bool,
    /// Whether zero-copy sending is [switched on](crate::zero_copy_send_enabled) in this process.
    pub zero_copy_enabled: bool,
}

impl FilePlanInput {
    /// Returns the properties of a transfer of `length` bytes that need not be copied, with
    /// `zero_copy_enabled` as it is [now](crate::zero_copy_send_enabled).
    #[must_use]
    pub fn new(source: SourceKind, length: Length) -> Self {
        Self {
            source,
            length,
            force_copy: false,
            zero_copy_enabled: zero_copy_send_enabled(),
        }
    }
}

/// For transfers of at least this many bytes, mapping the file costs less than the copy that it
/// saves.
///
/// Mapping and unmapping take two system calls, which may have to flush address translations on
/// other cores. In addition, the kernel handles one page fault per 64 KiB when it reads the mapped
/// pages.
const MMAP_WRITE_MIN_BYTES: u64 = 256 << 10;

/// The table for sending a file to a socket, in order of preference.
///
/// - `sendfile` comes before `splice`: it takes the same page references in one call instead of
///   two, and needs no pipe.
/// - `splice` is for the cases in which `sendfile` is refused, by a seccomp filter or by a file
///   system that supports only splicing.
/// - `mmap_write` is for the cases in which both are refused. It saves one of the two copies that
///   `copy` makes, but pays only if there is enough to send.
/// - `copy` always works.
const FILE_TO_SOCKET: [Row<FilePlanInput>; 4] = [
    Row {
        mechanism: Mechanism::Sendfile,
        pays: |_| true,
    },
    Row {
        mechanism: Mechanism::Splice,
        pays: |_| true,
    },
    Row {
        mechanism: Mechanism::MmapWrite,
        pays: |input| match (input.source, input.length) {
            (SourceKind::File, Length::Exact(bytes)) => bytes >= MMAP_WRITE_MIN_BYTES,
            (SourceKind::File, Length::UntilEof) => true,
            (SourceKind::Other, _) => false,
        },
    },
    Row {
        mechanism: Mechanism::Copy,
        pays: |_| true,
    },
];

/// Returns the mechanisms for sending a file, best first. The last one is always `copy`.
///
/// ```
/// use uncopied::policy::{FilePlanInput, Length, SourceKind, plan_file};
/// use uncopied::{Mechanism, Support};
///
/// let input = FilePlanInput::new(SourceKind::File, Length::Exact(1 << 20));
/// let plan = plan_file(&input, &Support::none_refused());
/// assert_eq!(plan.mechanisms()[0], Mechanism::Sendfile);
/// ```
#[must_use]
pub fn plan_file(input: &FilePlanInput, support: &Support) -> Plan {
    if input.force_copy || !input.zero_copy_enabled {
        return Plan::copying();
    }
    select(&FILE_TO_SOCKET, input, support)
}

/// The properties of a send from memory that, together with [`Support`], determine its plan.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct MemoryPlanInput {
    /// The number of bytes to send.
    pub len: usize,
    /// Whether the first byte lies at the start of a page.
    pub is_page_aligned: bool,
    /// Whether it costs nothing extra to never write to the page frames again after the send.
    /// `vmsplice` requires this, because nothing reports when the kernel is done with the frames.
    /// True for pages that were [frozen permanently](crate::arena::PageBuffer::freeze_permanently),
    /// and for regions, which replace such a frame with a new one when it is next written to.
    pub is_permanent: bool,
    /// The smallest zero-copy send of this kind of memory that pays, in bytes. It is 0 except for
    /// regions, whose pages must first be protected against writes, which has a cost of its own.
    pub min_bytes: usize,
    /// Whether the kernel is expected to copy even zero-copy sends, because the peer is known to be
    /// on this machine, or because the latest notifications reported copies.
    pub kernel_copies: bool,
    /// Whether the network interface can gather the parts of a packet from several pieces of memory
    /// (`ethtool -k`: `scatter-gather`). If it cannot, the kernel copies every packet.
    pub is_gathered: bool,
    /// Whether the socket is TCP. Unix sockets support neither `MSG_ZEROCOPY` nor `SEND_ZC`.
    pub is_tcp: bool,
    /// The code that waits for the socket to become writable.
    pub driver: Driver,
    /// Whether zero-copy sending is [switched on](crate::zero_copy_send_enabled) in this process.
    pub zero_copy_enabled: bool,
}

impl MemoryPlanInput {
    /// Returns the properties of a send of `len` bytes of page-aligned memory over TCP to another
    /// machine. The memory is not permanent and has no minimum length, and `zero_copy_enabled` is
    /// as it is [now](crate::zero_copy_send_enabled). Change the fields for any other send.
    #[must_use]
    pub fn new(len: usize, driver: Driver) -> Self {
        Self {
            len,
            is_page_aligned: true,
            is_permanent: false,
            min_bytes: 0,
            kernel_copies: false,
            is_gathered: true,
            is_tcp: true,
            driver,
            zero_copy_enabled: zero_copy_send_enabled(),
        }
    }
}

/// What waits for a socket to become writable. The plan depends on it because not every driver
/// tolerates notifications in the socket's error queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Driver {
    /// The caller, in a blocking call or in its own event loop. It also drains the socket's error
    /// queue.
    Caller,
    /// tokio. It treats a socket with entries in its error queue as broken, and never waits for
    /// that socket again. So notifications must not arrive in the error queue.
    Tokio,
}

/// Sends of at least this many bytes are cheaper with a zero-copy mechanism than with a copy,
/// unless the kernel ends up copying them regardless.
///
/// A zero-copy send has a fixed cost per call, for taking page references and processing the
/// notification, whereas a copy costs per byte. The kernel documentation (`msg_zerocopy.rst`) puts
/// the break-even point at about 10 KB.
const ZERO_COPY_MIN_BYTES: usize = 16 << 10;

/// Sends of at least this many bytes, from pages that are never written to again, take less CPU
/// time with `vmsplice` and `splice` than with a copy, even if the peer is on the same machine.
const VMSPLICE_MIN_BYTES: usize = 64 << 10;

/// The table for sending memory to a socket, in order of preference. [`plan_memory`] checks first
/// whether the memory is eligible at all.
///
/// - `vmsplice` is for permanent pages: no copy is made for any peer, and no notification is
///   needed, because the pages are never written to again. A pipe slot refers to at most one page,
///   so memory that does not begin at the start of a page moves fewer bytes per call.
/// - `send_zc` (on tokio) and `msg_zerocopy` (elsewhere) are used only if the kernel is not
///   expected to copy. If it copies, they cost more than a plain copy.
/// - `copy` always works.
const MEMORY_TO_SOCKET: [Row<MemoryPlanInput>; 4] = [
    Row {
        mechanism: Mechanism::Vmsplice,
        pays: |input| {
            input.is_permanent && input.is_page_aligned && input.len >= VMSPLICE_MIN_BYTES
        },
    },
    Row {
        mechanism: Mechanism::MsgZerocopy,
        pays: |input| input.driver == Driver::Caller && notified_send_pays(input),
    },
    Row {
        mechanism: Mechanism::SendZc,
        pays: |input| input.driver == Driver::Tokio && notified_send_pays(input),
    },
    Row {
        mechanism: Mechanism::Copy,
        pays: |_| true,
    },
];

fn notified_send_pays(input: &MemoryPlanInput) -> bool {
    input.is_tcp && !input.kernel_copies && input.len >= ZERO_COPY_MIN_BYTES
}

/// Returns the mechanisms for sending memory, best first. The last one is always `copy`.
///
/// Memory is copied if it is shorter than a page or than [`MemoryPlanInput::min_bytes`], or if the
/// interface cannot gather. Only
/// `vmsplice` needs memory that begins at the start of a page.
///
/// ```
/// use uncopied::policy::{Driver, MemoryPlanInput, plan_memory};
/// use uncopied::{Mechanism, Support};
///
/// let mut input = MemoryPlanInput::new(1 << 20, Driver::Tokio);
/// let plan = plan_memory(&input, &Support::none_refused());
/// assert_eq!(plan.mechanisms()[0], Mechanism::SendZc);
///
/// input.is_tcp = false;
/// let plan = plan_memory(&input, &Support::none_refused());
/// assert_eq!(plan.mechanisms(), [Mechanism::Copy]);
/// ```
#[must_use]
pub fn plan_memory(input: &MemoryPlanInput, support: &Support) -> Plan {
    let min_bytes = rustix::param::page_size().max(input.min_bytes);
    if !input.zero_copy_enabled || !input.is_gathered || input.len < min_bytes {
        return Plan::copying();
    }
    select(&MEMORY_TO_SOCKET, input, support)
}

/// The properties of receiving a chunk into memory that, together with [`Support`], determine its
/// plan.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ReceivePlanInput {
    /// How many bytes the chunk is expected to have: as many as the previous one.
    pub expected_bytes: usize,
    /// Which part of the bytes that were lately received with `map_receive` on this socket the
    /// kernel has mapped, in percent. `None` if too few bytes were.
    pub mapped_percent: Option<u8>,
    /// Whether the socket is TCP.
    pub is_tcp: bool,
    /// Whether zero-copy receiving is [switched on](crate::zero_copy_receive_enabled) in this
    /// process.
    pub zero_copy_enabled: bool,
}

impl ReceivePlanInput {
    /// Returns the properties of a chunk of `expected_bytes` over TCP, on a socket on which nothing
    /// was mapped before, with `zero_copy_enabled` as it is
    /// [now](crate::zero_copy_receive_enabled).
    #[must_use]
    pub fn new(expected_bytes: usize) -> Self {
        Self {
            expected_bytes,
            mapped_percent: None,
            is_tcp: true,
            zero_copy_enabled: zero_copy_receive_enabled(),
        }
    }
}

/// Chunks of at least this many bytes may be cheaper to map than to copy. For shorter ones, the
/// call itself and the unmapping cost more than the copy.
///
/// Mapping and unmapping a page take about 0.5 µs. A copy takes about as long if the bytes are in
/// a cache of the CPU, as they are on loopback (`compare receive`). It takes longer if a network
/// card has just written them to memory: the kernel's `tcp_mmap` reports 88 to 110 µs per MB with
/// mapping, and 202 to 251 with copies.
const MAP_RECEIVE_MIN_BYTES: usize = 16 << 10;

/// If the kernel maps less than this part of the bytes, in percent, it is cheaper to copy all of
/// them: what cannot be mapped needs a second call.
const MAP_RECEIVE_MIN_PERCENT: u8 = 50;

/// The table for receiving into memory, in order of preference.
///
/// - `map_receive` is for long chunks, as long as the kernel maps enough of them.
/// - `copy` always works.
///
/// `zcrx` has no row: it is not a way to receive from a given socket, but needs a queue of the
/// network card, which the program sets up.
const SOCKET_TO_MEMORY: [Row<ReceivePlanInput>; 2] = [
    Row {
        mechanism: Mechanism::MapReceive,
        pays: |input| {
            let maps = |percent| percent >= MAP_RECEIVE_MIN_PERCENT;
            input.is_tcp
                && input.expected_bytes >= MAP_RECEIVE_MIN_BYTES
                && input.mapped_percent.is_none_or(maps)
        },
    },
    Row {
        mechanism: Mechanism::Copy,
        pays: |_| true,
    },
];

/// Returns the mechanisms for receiving into memory, best first. The last one is always `copy`.
///
/// ```
/// use uncopied::policy::{ReceivePlanInput, plan_receive};
/// use uncopied::{Mechanism, Support};
///
/// let mut input = ReceivePlanInput::new(256 << 10);
/// let plan = plan_receive(&input, &Support::none_refused());
/// assert_eq!(plan.mechanisms()[0], Mechanism::MapReceive);
///
/// input.mapped_percent = Some(3);
/// let plan = plan_receive(&input, &Support::none_refused());
/// assert_eq!(plan.mechanisms(), [Mechanism::Copy]);
/// ```
#[must_use]
pub fn plan_receive(input: &ReceivePlanInput, support: &Support) -> Plan {
    if !input.zero_copy_enabled {
        return Plan::copying();
    }
    select(&SOCKET_TO_MEMORY, input, support)
}

/// The kind of sink that received bytes go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SinkKind {
    /// A regular file or a block device, whose contents the kernel keeps in the page cache. It can
    /// be written to at any offset.
    File,
    /// Like [`File`](Self::File), but opened with `O_DIRECT`: whole blocks bypass the page cache.
    Direct,
    /// A pipe or a FIFO.
    Pipe,
    /// `/dev/null`.
    Null,
    /// Anything else that can be written to, such as a terminal, or a file that was opened with
    /// `O_APPEND`.
    Other,
}

/// The properties of receiving into a file, a pipe or a device that, together with [`Support`],
/// determine its plan.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ReceiveFilePlanInput {
    /// The kind of sink that the bytes go to.
    pub sink: SinkKind,
    /// Whether the socket is TCP.
    pub is_tcp: bool,
    /// Whether every byte must be copied to memory of this process and from there to the sink.
    pub force_copy: bool,
    /// Whether zero-copy receiving is [switched on](crate::zero_copy_receive_enabled) in this
    /// process.
    pub zero_copy_enabled: bool,
}

impl ReceiveFilePlanInput {
    /// Returns the properties of receiving over TCP that need not copy, with `zero_copy_enabled` as
    /// it is [now](crate::zero_copy_receive_enabled).
    #[must_use]
    pub fn new(sink: SinkKind) -> Self {
        Self {
            sink,
            is_tcp: true,
            force_copy: false,
            zero_copy_enabled: zero_copy_receive_enabled(),
        }
    }
}

/// The table for receiving into a file, a pipe or a device, in order of preference.
///
/// - `discard` is for `/dev/null`, and for TCP sockets, which are the only ones that can discard.
/// - `splice` saves one of the two copies that `copy` makes, or both if the sink is a pipe or
///   `/dev/null`. Over loopback, for 256 MiB that were sent in pieces of 1 MiB, it takes 0.67 to
///   0.87 of the CPU time of `recv` and `write` with a buffer of 256 KiB to a file (ext4, tmpfs),
///   0.31 to a pipe, and 0.75 to `/dev/null`, where `discard` takes 0.5. For pieces of 1448 bytes
///   to a file, it takes 1.04 to 1.07 of that of `copy`, because each piece needs a slot of the
///   pipe, and for pieces of 8 KiB, 0.98 to 0.99. It has not been measured with a network card. A
///   terminal gains nothing from it. A file that was opened with `O_DIRECT` refuses it, unless
///   every payload is a whole block.
/// - `copy` always works.
const SOCKET_TO_FILE: [Row<ReceiveFilePlanInput>; 3] = [
    Row {
        mechanism: Mechanism::Discard,
        pays: |input| input.sink == SinkKind::Null && input.is_tcp,
    },
    Row {
        mechanism: Mechanism::Splice,
        pays: |input| !matches!(input.sink, SinkKind::Other | SinkKind::Direct),
    },
    Row {
        mechanism: Mechanism::Copy,
        pays: |_| true,
    },
];

/// Returns the mechanisms for receiving into a file, a pipe or a device, best first. The last one
/// is always `copy`.
///
/// ```
/// use uncopied::policy::{ReceiveFilePlanInput, SinkKind, plan_receive_file};
/// use uncopied::{Mechanism, Support};
///
/// let input = ReceiveFilePlanInput::new(SinkKind::Pipe);
/// let plan = plan_receive_file(&input, &Support::none_refused());
/// assert_eq!(plan.mechanisms(), [Mechanism::Splice, Mechanism::Copy]);
/// ```
#[must_use]
pub fn plan_receive_file(input: &ReceiveFilePlanInput, support: &Support) -> Plan {
    if input.force_copy || !input.zero_copy_enabled {
        return Plan::copying();
    }
    select(&SOCKET_TO_FILE, input, support)
}

/// The properties of a transfer from one socket to another that, together with [`Support`],
/// determine its plan.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RelayPlanInput {
    /// Whether every byte must be copied to memory of this process and from there to the sink.
    pub force_copy: bool,
    /// Whether zero copy is switched on in this process, both for
    /// [sending](crate::zero_copy_send_enabled) and for
    /// [receiving](crate::zero_copy_receive_enabled).
    pub zero_copy_enabled: bool,
}

impl RelayPlanInput {
    /// Returns the properties of a transfer that need not copy, with `zero_copy_enabled` as it is
    /// now.
    #[must_use]
    pub fn new() -> Self {
        Self {
            force_copy: false,
            zero_copy_enabled: zero_copy_send_enabled() && zero_copy_receive_enabled(),
        }
    }
}

impl Default for RelayPlanInput {
    fn default() -> Self {
        Self::new()
    }
}

/// The table for moving bytes from one socket to another, in order of preference. It is for bulk
/// data: as long as a stream carries only small messages, `copy` is used whatever the plan says
/// (see [`Flow`](super::Flow)).
///
/// - `splice` saves both copies that `copy` makes.
/// - `copy` always works.
const SOCKET_TO_SOCKET: [Row<RelayPlanInput>; 2] = [
    Row {
        mechanism: Mechanism::Splice,
        pays: |_| true,
    },
    Row {
        mechanism: Mechanism::Copy,
        pays: |_| true,
    },
];

/// Returns the mechanisms for moving bulk data from one socket to another, best first. The last one
/// is always `copy`.
///
/// ```
/// use uncopied::policy::{RelayPlanInput, plan_relay};
/// use uncopied::{Mechanism, Support};
///
/// let plan = plan_relay(&RelayPlanInput::new(), &Support::none_refused());
/// assert_eq!(plan.mechanisms(), [Mechanism::Splice, Mechanism::Copy]);
/// ```
#[must_use]
pub fn plan_relay(input: &RelayPlanInput, support: &Support) -> Plan {
    if input.force_copy || !input.zero_copy_enabled {
        return Plan::copying();
    }
    select(&SOCKET_TO_SOCKET, input, support)
}

#[cfg(test)]
mod tests {
    use super::Mechanism::{
        Copy, Discard, MapReceive, MmapWrite, MsgZerocopy, SendZc, Sendfile, Splice, Vmsplice,
    };
    use super::*;
    use crate::sys::Errno;

    fn refusing(mechanisms: &[Mechanism]) -> Support {
        let mut support = Support::none_refused();
        for &mechanism in mechanisms {
            support.record_refusal(mechanism, Errno::INVAL);
        }
        support
    }

    #[test]
    fn plans_for_files() {
        use Length::{Exact, UntilEof};
        const MIN: u64 = MMAP_WRITE_MIN_BYTES;
        let file = FilePlanInput {
            source: SourceKind::File,
            length: UntilEof,
            force_copy: false,
            zero_copy_enabled: true,
        };
        let of_length = |length| FilePlanInput { length, ..file };
        let other = FilePlanInput {
            source: SourceKind::Other,
            ..file
        };
        let forced = FilePlanInput {
            force_copy: true,
            ..file
        };
        let disabled = FilePlanInput {
            zero_copy_enabled: false,
            ..file
        };
        let rows: &[(FilePlanInput, &[Mechanism], &[Mechanism])] = &[
            (file, &[], &[Sendfile, Splice, MmapWrite, Copy]),
            (
                of_length(Exact(MIN)),
                &[],
                &[Sendfile, Splice, MmapWrite, Copy],
            ),
            (of_length(Exact(MIN - 1)), &[], &[Sendfile, Splice, Copy]),
            (of_length(Exact(0)), &[], &[Sendfile, Splice, Copy]),
            (other, &[], &[Sendfile, Splice, Copy]),
            (forced, &[], &[Copy]),
            (disabled, &[], &[Copy]),
            (file, &[Sendfile], &[Splice, MmapWrite, Copy]),
            (of_length(Exact(1)), &[Sendfile, Splice], &[Copy]),
            (file, &Mechanism::FILE_TO_SOCKET, &[Copy]),
        ];
        for (input, refused, expected) in rows {
            let plan = plan_file(input, &refusing(refused));
            assert_eq!(plan.mechanisms(), *expected, "{input:?} {refused:?}");
        }
    }

    #[test]
    fn plans_for_memory() {
        let usual = MemoryPlanInput {
            len: 1 << 20,
            is_page_aligned: true,
            is_permanent: false,
            min_bytes: 0,
            kernel_copies: false,
            is_gathered: true,
            is_tcp: true,
            driver: Driver::Caller,
            zero_copy_enabled: true,
        };
        let permanent = MemoryPlanInput {
            is_permanent: true,
            ..usual
        };
        let on_tokio = MemoryPlanInput {
            driver: Driver::Tokio,
            ..usual
        };
        let too_short = MemoryPlanInput {
            len: ZERO_COPY_MIN_BYTES - 1,
            ..usual
        };
        let unaligned = MemoryPlanInput {
            is_page_aligned: false,
            ..usual
        };
        let unaligned_permanent = MemoryPlanInput {
            is_permanent: true,
            ..unaligned
        };
        let copied_anyway = MemoryPlanInput {
            kernel_copies: true,
            ..usual
        };
        let not_gathered = MemoryPlanInput {
            is_gathered: false,
            ..permanent
        };
        let unix = MemoryPlanInput {
            is_tcp: false,
            ..usual
        };
        let disabled = MemoryPlanInput {
            zero_copy_enabled: false,
            ..permanent
        };
        let below_its_minimum = MemoryPlanInput {
            min_bytes: (1 << 20) + 1,
            ..permanent
        };
        let permanent_unix = MemoryPlanInput {
            is_tcp: false,
            ..permanent
        };
        let short_permanent = MemoryPlanInput {
            len: VMSPLICE_MIN_BYTES - 1,
            kernel_copies: true,
            ..permanent
        };
        let rows: &[(MemoryPlanInput, &[Mechanism], &[Mechanism])] = &[
            (usual, &[], &[MsgZerocopy, Copy]),
            (on_tokio, &[], &[SendZc, Copy]),
            (too_short, &[], &[Copy]),
            (unaligned, &[], &[MsgZerocopy, Copy]),
            (unaligned_permanent, &[], &[MsgZerocopy, Copy]),
            (copied_anyway, &[], &[Copy]),
            (not_gathered, &[], &[Copy]),
            (unix, &[], &[Copy]),
            (disabled, &[], &[Copy]),
            (usual, &[MsgZerocopy], &[Copy]),
            (permanent, &[], &[Vmsplice, MsgZerocopy, Copy]),
            (below_its_minimum, &[], &[Copy]),
            (permanent_unix, &[], &[Vmsplice, Copy]),
            (short_permanent, &[], &[Copy]),
        ];
        for (input, refused, expected) in rows {
            let plan = plan_memory(input, &refusing(refused));
            assert_eq!(plan.mechanisms(), *expected, "{input:?} {refused:?}");
        }
    }

    #[test]
    fn plans_for_receiving() {
        let usual = ReceivePlanInput {
            expected_bytes: MAP_RECEIVE_MIN_BYTES,
            mapped_percent: None,
            is_tcp: true,
            zero_copy_enabled: true,
        };
        let with_percent = |percent| ReceivePlanInput {
            mapped_percent: Some(percent),
            ..usual
        };
        let short = ReceivePlanInput {
            expected_bytes: MAP_RECEIVE_MIN_BYTES - 1,
            ..usual
        };
        let unix = ReceivePlanInput {
            is_tcp: false,
            ..usual
        };
        let disabled = ReceivePlanInput {
            zero_copy_enabled: false,
            ..usual
        };
        let rows: &[(ReceivePlanInput, &[Mechanism], &[Mechanism])] = &[
            (usual, &[], &[MapReceive, Copy]),
            (usual, &[MapReceive], &[Copy]),
            (
                with_percent(MAP_RECEIVE_MIN_PERCENT),
                &[],
                &[MapReceive, Copy],
            ),
            (with_percent(MAP_RECEIVE_MIN_PERCENT - 1), &[], &[Copy]),
            (short, &[], &[Copy]),
            (unix, &[], &[Copy]),
            (disabled, &[], &[Copy]),
        ];
        for (input, refused, expected) in rows {
            let plan = plan_receive(input, &refusing(refused));
            assert_eq!(plan.mechanisms(), *expected, "{input:?} {refused:?}");
        }
    }

    #[test]
    fn plans_for_receiving_into_files() {
        let file = ReceiveFilePlanInput {
            sink: SinkKind::File,
            is_tcp: true,
            force_copy: false,
            zero_copy_enabled: true,
        };
        let to = |sink| ReceiveFilePlanInput { sink, ..file };
        let null = to(SinkKind::Null);
        let unix = ReceiveFilePlanInput {
            is_tcp: false,
            ..null
        };
        let forced = ReceiveFilePlanInput {
            force_copy: true,
            ..null
        };
        let disabled = ReceiveFilePlanInput {
            zero_copy_enabled: false,
            ..null
        };
        let rows: &[(ReceiveFilePlanInput, &[Mechanism], &[Mechanism])] = &[
            (file, &[], &[Splice, Copy]),
            (file, &[Splice], &[Copy]),
            (to(SinkKind::Other), &[], &[Copy]),
            (to(SinkKind::Direct), &[], &[Copy]),
            (to(SinkKind::Pipe), &[], &[Splice, Copy]),
            (to(SinkKind::Pipe), &[Splice], &[Copy]),
            (null, &[], &[Discard, Splice, Copy]),
            (null, &[Discard], &[Splice, Copy]),
            (unix, &[], &[Splice, Copy]),
            (forced, &[], &[Copy]),
            (disabled, &[], &[Copy]),
        ];
        for (input, refused, expected) in rows {
            let plan = plan_receive_file(input, &refusing(refused));
            assert_eq!(plan.mechanisms(), *expected, "{input:?} {refused:?}");
        }
    }

    #[test]
    fn a_forced_plan_stays_as_it_is() {
        assert_eq!(
            Plan::of(&[Splice, Splice, Copy]).mechanisms(),
            [Splice, Copy]
        );
        assert_eq!(
            Plan::of(&[MmapWrite]).without(|_| true).mechanisms(),
            [MmapWrite]
        );
        assert_eq!(Plan::preferring(Copy).mechanisms(), [Copy]);
    }
}
