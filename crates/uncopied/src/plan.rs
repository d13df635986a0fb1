//! Policy: which mechanisms a transfer tries, in which order.
//!
//! [`plan`] is a pure function of what is known. It touches no descriptor and does no I/O; what a
//! try then teaches goes to [`Support`].

use std::fmt;

use crate::support::Support;

/// One kernel path for bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum Mechanism {
    /// `sendfile(2)`: the socket takes the file's pages from the page cache by reference.
    Sendfile,
    /// `splice(2)` from the file into a pipe and from there into the socket: the same pages, by the
    /// same references, in two calls.
    Splice,
    /// The file is mapped and `send(2)` reads the mapping: one copy, in the kernel.
    MmapWrite,
    /// `send(2)` with `MSG_ZEROCOPY`: the socket reads memory by reference, and says on its error queue
    /// when it is done.
    MsgZerocopy,
    /// io_uring's `SEND_ZC`: the same, and the ring says when it is done.
    SendZc,
    /// `vmsplice(2)` of memory into a pipe and `splice(2)` from there into the socket: by reference, also
    /// to a peer on the same machine, and nobody says when it is done.
    Vmsplice,
    /// `send(2)`, from memory or from what `pread(2)` has brought there: a copy, or two. Always works.
    Copy,
}

impl Mechanism {
    /// Every mechanism, in the order of their names in reports.
    pub const ALL: [Self; 7] = [
        Self::Sendfile,
        Self::Splice,
        Self::MmapWrite,
        Self::MsgZerocopy,
        Self::SendZc,
        Self::Vmsplice,
        Self::Copy,
    ];

    /// Those that send files.
    pub const FOR_FILES: [Self; 4] = [Self::Sendfile, Self::Splice, Self::MmapWrite, Self::Copy];

    /// Those that send memory.
    pub const FOR_MEMORY: [Self; 4] = [Self::MsgZerocopy, Self::SendZc, Self::Vmsplice, Self::Copy];

    /// The name, as flags and reports have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sendfile => "sendfile",
            Self::Splice => "splice",
            Self::MmapWrite => "mmap_write",
            Self::MsgZerocopy => "msg_zerocopy",
            Self::SendZc => "send_zc",
            Self::Vmsplice => "vmsplice",
            Self::Copy => "copy",
        }
    }

    /// Whether the CPU copies no byte on the way to the socket. Whether the kernel copies after all,
    /// for want of scatter-gather or for a peer on the same machine, is not known here: see
    /// [`Settled::copied`](crate::Settled::copied) for those that tell.
    #[must_use]
    pub fn is_zero_copy(self) -> bool {
        !matches!(self, Self::MmapWrite | Self::Copy)
    }
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What kind of source the bytes come from.
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
    /// So many bytes. Fewer are an [error](crate::ErrorKind::SourceTooShort), and not one more is
    /// sent if the file grows meanwhile.
    Exact(u64),
    /// What there is until the end of the file, wherever that is when it is reached.
    UntilEof,
}

/// Everything that a plan depends on.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// Where the bytes come from.
    pub source: SourceKind,
    /// How many there are.
    pub length: Length,
    /// Whether every byte must be copied by the call that takes it from the file, so that later
    /// changes of the file cannot reach the peer.
    pub copied: bool,
    /// Whether zero-copy sending is switched on, by [`set_send`](crate::set_send) or
    /// `UNCOPIED_SEND`.
    pub switched_on: bool,
    /// What has been learned.
    pub support: &'a Support,
}

/// An ordered list of mechanisms. Each is tried until it turns out not to be supported; then the
/// next goes on from the byte where it stood.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    mechanisms: [Mechanism; Mechanism::ALL.len()],
    len: u8,
}

impl Plan {
    /// The plan that tries these, in this order, and nothing else. Repetitions are left out.
    #[must_use]
    pub fn of(mechanisms: &[Mechanism]) -> Self {
        let mut plan = Self {
            mechanisms: Mechanism::ALL,
            len: 0,
        };
        for &mechanism in mechanisms {
            if !plan.mechanisms().contains(&mechanism) {
                plan.mechanisms[usize::from(plan.len)] = mechanism;
                plan.len += 1;
            }
        }
        plan
    }

    /// The plan that copies every byte.
    #[must_use]
    pub fn copying() -> Self {
        Self::of(&[Mechanism::Copy])
    }

    /// The mechanisms, first to last.
    #[must_use]
    pub fn mechanisms(&self) -> &[Mechanism] {
        &self.mechanisms[..usize::from(self.len)]
    }

    /// This plan without what is known not to work. Never empty: the last mechanism stays.
    #[must_use]
    pub fn without(&self, refused: impl Fn(Mechanism) -> bool) -> Self {
        let mut kept = *self;
        kept.len = 0;
        for (at, &mechanism) in self.mechanisms().iter().enumerate() {
            if at + 1 == self.mechanisms().len() || !refused(mechanism) {
                kept.mechanisms[usize::from(kept.len)] = mechanism;
                kept.len += 1;
            }
        }
        kept
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.mechanisms()).finish()
    }
}

/// From this many bytes on, mapping a file costs less than the copy that it saves.
///
/// Mapping and unmapping take two calls that flush address translations on every core, and a fault
/// for every 64 KiB.
const MAP_FROM: u64 = 256 << 10;

/// The mechanisms for a transfer that nobody has forced, best first, ending with one that always
/// works.
///
/// - `sendfile` before `splice`: the same page references by one call instead of two, and no pipe.
/// - `splice` where `sendfile` is refused (a seccomp filter, or a file system that has the one and
///   not the other).
/// - `mmap_write` saves one of the two copies where neither is to be had and there is enough to
///   send.
/// - `copy` is always last.
///
/// ```
/// use uncopied::plan::{Length, Mechanism, Situation, SourceKind, plan};
/// use uncopied::Support;
///
/// let situation = Situation {
///     source: SourceKind::File,
///     length: Length::Exact(1 << 20),
///     copied: false,
///     switched_on: true,
///     support: &Support::none_refused(),
/// };
/// assert_eq!(plan(&situation).mechanisms()[0], Mechanism::Sendfile);
/// ```
#[must_use]
pub fn plan(situation: &Situation<'_>) -> Plan {
    if situation.copied || !situation.switched_on {
        return Plan::copying();
    }
    let worth_mapping = match (situation.source, situation.length) {
        (SourceKind::File, Length::Exact(len)) => len >= MAP_FROM,
        (SourceKind::File, Length::UntilEof) => true,
        (SourceKind::Other, _) => false,
    };
    let all = if worth_mapping {
        Plan::of(&Mechanism::FOR_FILES)
    } else {
        Plan::of(&[Mechanism::Sendfile, Mechanism::Splice, Mechanism::Copy])
    };
    all.without(|mechanism| situation.support.refusal(mechanism).is_some())
}

/// Everything that a plan for bytes in memory depends on.
#[derive(Clone, Copy, Debug)]
pub struct MemorySituation<'a> {
    /// How many bytes there are.
    pub len: usize,
    /// Whether the first lies at the start of a page.
    pub is_page_aligned: bool,
    /// Whether it costs nothing that the frames are never written to again: pages that were [frozen for
    /// good](crate::arena::PageBuffer::freeze_for_good), and regions.
    pub is_for_good: bool,
    /// From how many bytes on it pays to lend memory that lies as this does: 0 unless it is a region's,
    /// whose pages have to be protected first.
    pub pays_from: usize,
    /// Whether the peer is known to be on this machine, or the kernel has said of late that it copied
    /// what it was lent.
    pub copies_anyway: bool,
    /// Whether the socket is TCP; Unix sockets know neither `MSG_ZEROCOPY` nor `SEND_ZC`.
    pub is_tcp: bool,
    /// Who waits for the socket.
    pub driver: Driver,
    /// Whether zero-copy sending is switched on, by [`set_send`](crate::set_send) or
    /// `UNCOPIED_SEND`.
    pub switched_on: bool,
    /// What has been learned.
    pub support: &'a Support,
}

/// Who waits for a socket, as far as it matters for a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// The caller, by waiting or by an event loop of its own, who takes in what is on the socket's
    /// error queue.
    Caller,
    /// tokio, which takes what is on the error queue for an error of the socket, and never waits for
    /// it again: there are no notices on it.
    Tokio,
}

/// From so many bytes on, lending memory costs less than copying it, where the kernel does not copy
/// it anyway. The kernel's document says about 10 KB (`msg_zerocopy.rst`); page references and notices
/// are paid for by the call, the copy by the byte.
const LEND_FROM: usize = 16 << 10;

/// From so many bytes on, `vmsplice` and `splice` of pages that are never rewritten take less CPU
/// than a copy, also to a peer on the same machine.
const VMSPLICE_FROM: usize = 64 << 10;

/// The mechanisms for memory that nobody has forced, best first, ending with `copy`.
///
/// - `vmsplice` for pages that are frozen for good: no copy, whoever the peer is, and nothing to wait
///   for, as they are never written to again.
/// - nothing but `copy` where the kernel would copy what it is lent: lending costs more there.
/// - `send_zc` on tokio, `msg_zerocopy` elsewhere.
/// - `copy` for what is short or does not start on a page: FreeBSD's rule.
#[must_use]
pub fn plan_memory(situation: &MemorySituation<'_>) -> Plan {
    let is_eligible = situation.switched_on
        && situation.is_page_aligned
        && situation.len >= rustix::param::page_size().max(situation.pays_from);
    if !is_eligible {
        return Plan::copying();
    }
    let lending = match situation.driver {
        Driver::Caller => Mechanism::MsgZerocopy,
        Driver::Tokio => Mechanism::SendZc,
    };
    let pays = |mechanism| match mechanism {
        Mechanism::Vmsplice => situation.is_for_good && situation.len >= VMSPLICE_FROM,
        Mechanism::Copy => true,
        _ => situation.is_tcp && !situation.copies_anyway && situation.len >= LEND_FROM,
    };
    Plan::of(&[Mechanism::Vmsplice, lending, Mechanism::Copy])
        .without(|it| !pays(it) || situation.support.refusal(it).is_some())
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::Mechanism::{Copy, MmapWrite, Sendfile, Splice};
    use super::*;

    /// source, length, copied, switched on, refused → plan
    type Row<'a> = (
        SourceKind,
        Length,
        bool,
        bool,
        &'a [Mechanism],
        &'a [Mechanism],
    );

    #[test]
    fn policy_as_a_table() {
        use Length::{Exact, UntilEof};
        use SourceKind::{File, Other};
        let rows: &[Row<'_>] = &[
            (
                File,
                UntilEof,
                false,
                true,
                &[],
                &[Sendfile, Splice, MmapWrite, Copy],
            ),
            (
                File,
                Exact(MAP_FROM),
                false,
                true,
                &[],
                &[Sendfile, Splice, MmapWrite, Copy],
            ),
            (
                File,
                Exact(MAP_FROM - 1),
                false,
                true,
                &[],
                &[Sendfile, Splice, Copy],
            ),
            (File, Exact(0), false, true, &[], &[Sendfile, Splice, Copy]),
            (Other, UntilEof, false, true, &[], &[Sendfile, Splice, Copy]),
            (File, UntilEof, true, true, &[], &[Copy]),
            (File, UntilEof, false, false, &[], &[Copy]),
            (
                File,
                UntilEof,
                false,
                true,
                &[Sendfile],
                &[Splice, MmapWrite, Copy],
            ),
            (File, Exact(1), false, true, &[Sendfile, Splice], &[Copy]),
            (File, UntilEof, false, true, &Mechanism::FOR_FILES, &[Copy]),
        ];
        for &(source, length, copied, switched_on, refused, expected) in rows {
            let mut support = Support::none_refused();
            for &mechanism in refused {
                support.note(mechanism, Errno::INVAL);
            }
            let situation = Situation {
                source,
                length,
                copied,
                switched_on,
                support: &support,
            };
            assert_eq!(plan(&situation).mechanisms(), expected, "{situation:?}");
        }
    }

    #[test]
    fn policy_for_memory_as_a_table() {
        use Mechanism::{MsgZerocopy, SendZc, Vmsplice};
        let support = Support::none_refused();
        let usual = MemorySituation {
            len: 1 << 20,
            is_page_aligned: true,
            is_for_good: false,
            pays_from: 0,
            copies_anyway: false,
            is_tcp: true,
            driver: Driver::Caller,
            switched_on: true,
            support: &support,
        };
        let mut refused = Support::none_refused();
        refused.note(MsgZerocopy, Errno::OPNOTSUPP);
        let for_good = MemorySituation {
            is_for_good: true,
            ..usual
        };
        let rows: &[(MemorySituation<'_>, &[Mechanism])] = &[
            (usual, &[MsgZerocopy, Copy]),
            (
                MemorySituation {
                    driver: Driver::Tokio,
                    ..usual
                },
                &[SendZc, Copy],
            ),
            (
                MemorySituation {
                    len: LEND_FROM - 1,
                    ..usual
                },
                &[Copy],
            ),
            (
                MemorySituation {
                    is_page_aligned: false,
                    ..usual
                },
                &[Copy],
            ),
            (
                MemorySituation {
                    copies_anyway: true,
                    ..usual
                },
                &[Copy],
            ),
            (
                MemorySituation {
                    is_tcp: false,
                    ..usual
                },
                &[Copy],
            ),
            (
                MemorySituation {
                    switched_on: false,
                    ..for_good
                },
                &[Copy],
            ),
            (
                MemorySituation {
                    support: &refused,
                    ..usual
                },
                &[Copy],
            ),
            (for_good, &[Vmsplice, MsgZerocopy, Copy]),
            (
                MemorySituation {
                    pays_from: (1 << 20) + 1,
                    ..for_good
                },
                &[Copy],
            ),
            (
                MemorySituation {
                    is_tcp: false,
                    ..for_good
                },
                &[Vmsplice, Copy],
            ),
            (
                MemorySituation {
                    len: VMSPLICE_FROM - 1,
                    copies_anyway: true,
                    ..for_good
                },
                &[Copy],
            ),
        ];
        for (situation, expected) in rows {
            assert_eq!(
                plan_memory(situation).mechanisms(),
                *expected,
                "{situation:?}"
            );
        }
    }

    #[test]
    fn a_forced_plan_is_taken_as_it_is() {
        assert_eq!(
            Plan::of(&[Splice, Splice, Copy]).mechanisms(),
            [Splice, Copy]
        );
        assert_eq!(
            Plan::of(&[MmapWrite]).without(|_| true).mechanisms(),
            [MmapWrite]
        );
    }
}
