//! The order in which mechanisms are tried: one table for each direction.

use std::fmt;

use super::{Mechanism, Support};

/// An ordered list of mechanisms. Each is tried until it turns out to be unsupported; the next one
/// then goes on from the byte that was reached.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    mechanisms: [Mechanism; Mechanism::ALL.len()],
    len: u8,
}

impl Plan {
    /// The plan that tries these mechanisms, in this order, and no others. Repetitions are left
    /// out.
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

    /// The plan that copies every byte.
    #[must_use]
    pub fn copying() -> Self {
        Self::of(&[Mechanism::Copy])
    }

    /// The plan that tries `mechanism`, and copies if it is unsupported.
    #[must_use]
    pub fn preferring(mechanism: Mechanism) -> Self {
        Self::of(&[mechanism, Mechanism::Copy])
    }

    /// The mechanisms, first to last.
    #[must_use]
    pub fn mechanisms(&self) -> &[Mechanism] {
        &self.mechanisms[..usize::from(self.len)]
    }

    /// This plan without the mechanisms that are `refused`. The last one always stays, so that the
    /// result is empty only if this plan is.
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

/// A row of a plan's table: a mechanism, and when it pays.
struct Row<Input> {
    mechanism: Mechanism,
    pays: fn(&Input) -> bool,
}

/// The mechanisms of `table` that pay for `input` and have not been refused.
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
pub enum SourceKind {
    /// A regular file or a block device: it has pages in the page cache.
    File,
    /// Anything else that can be read at an offset, such as a file of procfs.
    Other,
}

/// How many bytes a transfer moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Exactly this many bytes. Fewer are an [error](crate::ErrorKind::SourceTooShort), and no more
    /// are sent if the file grows meanwhile.
    Exact(u64),
    /// All bytes up to the end of the file, wherever that is when it is reached.
    UntilEof,
}

/// What the plan for sending a file depends on, besides [`Support`].
#[derive(Clone, Copy, Debug)]
pub struct FilePlanInput {
    /// Where the bytes come from.
    pub source: SourceKind,
    /// How many bytes to send.
    pub length: Length,
    /// Whether each byte must be copied by the call that reads it from the file, so that later
    /// changes of the file cannot reach the peer.
    pub force_copy: bool,
    /// Whether zero-copy sending is switched on, by
    /// [`set_zero_copy_send`](crate::set_zero_copy_send) or `UNCOPIED_SEND`.
    pub zero_copy_enabled: bool,
}

/// From this many bytes on, mapping a file costs less than the copy that it saves.
///
/// Mapping and unmapping take two calls that flush address translations on every core, and one page
/// fault per 64 KiB.
const MMAP_WRITE_MIN_BYTES: u64 = 256 << 10;

/// File to socket.
///
/// - `sendfile` before `splice`: the same page references by one call instead of two, and no pipe.
/// - `splice` where `sendfile` is refused: by a seccomp filter, or by a file system that supports
///   only splicing.
/// - `mmap_write` saves one of two copies if the other two are refused and there is enough to send.
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

/// The mechanisms for sending a file, best first, ending with `copy`.
///
/// ```
/// use uncopied::policy::{FilePlanInput, Length, SourceKind, plan_file};
/// use uncopied::{Mechanism, Support};
///
/// let input = FilePlanInput {
///     source: SourceKind::File,
///     length: Length::Exact(1 << 20),
///     force_copy: false,
///     zero_copy_enabled: true,
/// };
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

/// What the plan for sending memory depends on, besides [`Support`].
#[derive(Clone, Copy, Debug)]
pub struct MemoryPlanInput {
    /// How many bytes to send.
    pub len: usize,
    /// Whether the first byte lies at the start of a page.
    pub is_page_aligned: bool,
    /// Whether it costs nothing that the page frames are never written to again. This is so for
    /// pages that were [frozen permanently](crate::arena::PageBuffer::freeze_permanently), and for
    /// regions.
    pub is_permanent: bool,
    /// The least number of bytes for which a zero-copy send of memory of this kind pays. It is 0
    /// except for regions, whose pages have to be protected first.
    pub min_bytes: usize,
    /// Whether the kernel would copy anyway: the peer is known to be on this machine, or the latest
    /// notifications reported copies.
    pub kernel_copies: bool,
    /// Whether the socket is TCP. Unix sockets support neither `MSG_ZEROCOPY` nor `SEND_ZC`.
    pub is_tcp: bool,
    /// What waits for the socket.
    pub driver: Driver,
    /// Whether zero-copy sending is switched on, by
    /// [`set_zero_copy_send`](crate::set_zero_copy_send) or `UNCOPIED_SEND`.
    pub zero_copy_enabled: bool,
}

/// What waits for a socket, as far as it matters for a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// The caller, by blocking or by an event loop of its own, which drains the socket's error
    /// queue.
    Caller,
    /// tokio. It treats a filled error queue as a broken connection and never waits for the socket
    /// again, so notifications must not arrive there.
    Tokio,
}

/// From this many bytes on, a zero-copy send costs less than a copy, if the kernel does not copy
/// anyway.
///
/// Page references and notifications cost by the call, a copy costs by the byte. The kernel's
/// document gives about 10 KB (`msg_zerocopy.rst`).
const ZERO_COPY_MIN_BYTES: usize = 16 << 10;

/// From this many bytes on, `vmsplice` and `splice` of pages that are never rewritten take less CPU
/// time than a copy, even to a peer on the same machine.
const VMSPLICE_MIN_BYTES: usize = 64 << 10;

/// Memory to socket, for memory that is eligible: see [`plan_memory`].
///
/// - `vmsplice` for permanent pages: no copy for any peer, and no notification to wait for, because
///   the pages are never written to again.
/// - `msg_zerocopy` and `send_zc` only where the kernel does not copy: otherwise they cost more
///   than a copy. On tokio `send_zc`, elsewhere `msg_zerocopy`.
/// - `copy` always works.
const MEMORY_TO_SOCKET: [Row<MemoryPlanInput>; 4] = [
    Row {
        mechanism: Mechanism::Vmsplice,
        pays: |input| input.is_permanent && input.len >= VMSPLICE_MIN_BYTES,
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

/// The mechanisms for sending memory, best first, ending with `copy`.
///
/// Memory shorter than a page, or that does not begin at the start of one, is copied: FreeBSD's
/// rule.
#[must_use]
pub fn plan_memory(input: &MemoryPlanInput, support: &Support) -> Plan {
    let min_bytes = rustix::param::page_size().max(input.min_bytes);
    if !input.zero_copy_enabled || !input.is_page_aligned || input.len < min_bytes {
        return Plan::copying();
    }
    select(&MEMORY_TO_SOCKET, input, support)
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::Mechanism::{Copy, MmapWrite, MsgZerocopy, SendZc, Sendfile, Splice, Vmsplice};
    use super::*;

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
        let copied_anyway = MemoryPlanInput {
            kernel_copies: true,
            ..usual
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
            (unaligned, &[], &[Copy]),
            (copied_anyway, &[], &[Copy]),
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
