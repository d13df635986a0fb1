//! The order in which mechanisms are tried: one table for each direction.

mod copy;
mod memory;

use std::fmt;

use super::{
    Mechanism, Support, Tuning, reaches, zero_copy_receive_enabled, zero_copy_send_enabled,
};
pub use copy::{CopyPlanInput, DescriptorKind, plan_copy};
pub use memory::{Driver, MemoryPlanInput, WriteProtection, plan_memory};

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

impl Length {
    /// Whether this is enough for a mechanism that pays from `min_bytes` on. What is not known
    /// counts as enough.
    fn reaches(self, min_bytes: u64) -> bool {
        match self {
            Self::Exact(bytes) => reaches(bytes, min_bytes),
            Self::UntilEof => min_bytes != Tuning::NEVER,
        }
    }
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
    /// From which lengths the mechanisms pay.
    pub tuning: Tuning,
}

impl FilePlanInput {
    /// Returns the properties of a transfer of `length` bytes that need not be copied, with
    /// `zero_copy_enabled` as it is [now](crate::zero_copy_send_enabled) and the
    /// [current](Tuning::current) tuning.
    #[must_use]
    pub fn new(source: SourceKind, length: Length) -> Self {
        Self {
            source,
            length,
            force_copy: false,
            zero_copy_enabled: zero_copy_send_enabled(),
            tuning: Tuning::current(),
        }
    }
}

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
        pays: |input| input.length.reaches(input.tuning.sendfile_min_bytes),
    },
    Row {
        mechanism: Mechanism::Splice,
        pays: |input| input.length.reaches(input.tuning.sendfile_min_bytes),
    },
    Row {
        mechanism: Mechanism::MmapWrite,
        pays: |input| {
            let is_long = input.length.reaches(input.tuning.mmap_write_min_bytes);
            input.source == SourceKind::File && is_long
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
    /// From which lengths the mechanisms pay.
    pub tuning: Tuning,
}

impl ReceivePlanInput {
    /// Returns the properties of a chunk of `expected_bytes` over TCP, on a socket on which nothing
    /// was mapped before, with `zero_copy_enabled` as it is
    /// [now](crate::zero_copy_receive_enabled) and the [current](Tuning::current) tuning.
    #[must_use]
    pub fn new(expected_bytes: usize) -> Self {
        Self {
            expected_bytes,
            mapped_percent: None,
            is_tcp: true,
            zero_copy_enabled: zero_copy_receive_enabled(),
            tuning: Tuning::current(),
        }
    }
}

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
                && reaches(
                    input.expected_bytes as u64,
                    input.tuning.map_receive_min_bytes,
                )
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
    /// The number of bytes to receive.
    pub length: Length,
    /// Whether the socket is TCP.
    pub is_tcp: bool,
    /// Whether every byte must be copied to memory of this process and from there to the sink.
    pub force_copy: bool,
    /// Whether zero-copy receiving is [switched on](crate::zero_copy_receive_enabled) in this
    /// process.
    pub zero_copy_enabled: bool,
    /// From which lengths the mechanisms pay.
    pub tuning: Tuning,
}

impl ReceiveFilePlanInput {
    /// Returns the properties of receiving `length` bytes over TCP that need not be copied, with
    /// `zero_copy_enabled` as it is [now](crate::zero_copy_receive_enabled) and the
    /// [current](Tuning::current) tuning.
    #[must_use]
    pub fn new(sink: SinkKind, length: Length) -> Self {
        Self {
            sink,
            length,
            is_tcp: true,
            force_copy: false,
            zero_copy_enabled: zero_copy_receive_enabled(),
            tuning: Tuning::current(),
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
        pays: |input| match input.sink {
            SinkKind::File => {
                let min_bytes = input.tuning.receive_file_splice_min_bytes;
                input.length.reaches(min_bytes)
            }
            SinkKind::Pipe | SinkKind::Null => true,
            SinkKind::Direct | SinkKind::Other => false,
        },
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
/// use uncopied::policy::{Length, ReceiveFilePlanInput, SinkKind, plan_receive_file};
/// use uncopied::{Mechanism, Support};
///
/// let input = ReceiveFilePlanInput::new(SinkKind::Pipe, Length::UntilEof);
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
    /// From which lengths the mechanisms pay.
    pub tuning: Tuning,
}

impl RelayPlanInput {
    /// Returns the properties of a transfer that need not copy, with `zero_copy_enabled` as it is
    /// now and the [current](Tuning::current) tuning.
    #[must_use]
    pub fn new() -> Self {
        Self {
            force_copy: false,
            zero_copy_enabled: zero_copy_send_enabled() && zero_copy_receive_enabled(),
            tuning: Tuning::current(),
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
        pays: |input| input.tuning.relay_splice_min_bytes != Tuning::NEVER,
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
    use super::Mechanism::{Copy, Discard, MapReceive, MmapWrite, Sendfile, Splice};
    use super::*;
    use crate::sys::Errno;

    pub(super) fn refusing(mechanisms: &[Mechanism]) -> Support {
        let mut support = Support::none_refused();
        for &mechanism in mechanisms {
            support.record_refusal(mechanism, Errno::INVAL);
        }
        support
    }

    #[test]
    fn plans_for_files() {
        use Length::{Exact, UntilEof};
        const MIN: u64 = 256 << 10;
        let file = FilePlanInput {
            source: SourceKind::File,
            length: UntilEof,
            force_copy: false,
            zero_copy_enabled: true,
            tuning: Tuning::default(),
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
            (of_length(Exact(8 << 10)), &[], &[Sendfile, Splice, Copy]),
            (of_length(Exact((8 << 10) - 1)), &[], &[Copy]),
            (of_length(Exact(0)), &[], &[Copy]),
            (other, &[], &[Sendfile, Splice, Copy]),
            (forced, &[], &[Copy]),
            (disabled, &[], &[Copy]),
            (file, &[Sendfile], &[Splice, MmapWrite, Copy]),
            (of_length(Exact(9 << 10)), &[Sendfile, Splice], &[Copy]),
            (file, &Mechanism::FILE_TO_SOCKET, &[Copy]),
        ];
        for (input, refused, expected) in rows {
            let plan = plan_file(input, &refusing(refused));
            assert_eq!(plan.mechanisms(), *expected, "{input:?} {refused:?}");
        }
    }

    #[test]
    fn plans_for_receiving() {
        let usual = ReceivePlanInput {
            expected_bytes: 16 << 10,
            mapped_percent: None,
            is_tcp: true,
            zero_copy_enabled: true,
            tuning: Tuning::default(),
        };
        let with_percent = |percent| ReceivePlanInput {
            mapped_percent: Some(percent),
            ..usual
        };
        let short = ReceivePlanInput {
            expected_bytes: (16 << 10) - 1,
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
            length: Length::UntilEof,
            is_tcp: true,
            force_copy: false,
            zero_copy_enabled: true,
            tuning: Tuning::default(),
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
    fn each_threshold_is_that_of_the_tuning() {
        use Length::{Exact, UntilEof};
        let none = Support::none_refused();
        let first = |plan: Plan| plan.mechanisms()[0];
        let tuning = |key, bytes| Tuning::default().with(key, bytes).expect("a key");
        for bytes in [1000, Tuning::NEVER] {
            let is_never = bytes == Tuning::NEVER;
            let lengths = [
                (Exact(bytes - 1), false),
                (Exact(bytes), !is_never),
                (UntilEof, !is_never),
            ];
            for (length, pays) in lengths {
                let of = |mechanism| if pays { mechanism } else { Copy };
                let file = |key| FilePlanInput {
                    tuning: tuning(key, bytes),
                    ..FilePlanInput::new(SourceKind::File, length)
                };
                let mapped = plan_file(
                    &file("mmap_write_min_bytes"),
                    &refusing(&[Sendfile, Splice]),
                );
                assert_eq!(first(mapped), of(MmapWrite), "{length:?}");
                let sent = plan_file(&file("sendfile_min_bytes"), &refusing(&[MmapWrite]));
                let expected: &[Mechanism] = if pays {
                    &[Sendfile, Splice, Copy]
                } else {
                    &[Copy]
                };
                assert_eq!(sent.mechanisms(), expected, "{length:?}");
                let received = |sink| ReceiveFilePlanInput {
                    tuning: tuning("receive_file_splice_min_bytes", bytes),
                    ..ReceiveFilePlanInput::new(sink, length)
                };
                let to_file = plan_receive_file(&received(SinkKind::File), &none);
                assert_eq!(first(to_file), of(Splice), "{length:?}");
                let to_pipe = plan_receive_file(&received(SinkKind::Pipe), &none);
                assert_eq!(first(to_pipe), Splice, "{length:?}");
            }
            let received = |len| ReceivePlanInput {
                tuning: tuning("map_receive_min_bytes", bytes),
                ..ReceivePlanInput::new(len)
            };
            let pays = if is_never { Copy } else { MapReceive };
            assert_eq!(first(plan_receive(&received(bytes as usize), &none)), pays);
            assert_eq!(
                first(plan_receive(&received(bytes as usize - 1), &none)),
                Copy
            );
            let relayed = RelayPlanInput {
                tuning: tuning("relay_splice_min_bytes", bytes),
                ..RelayPlanInput::new()
            };
            let pays = if is_never { Copy } else { Splice };
            assert_eq!(first(plan_relay(&relayed, &none)), pays);
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
