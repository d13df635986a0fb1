//! The plan for moving bytes between two descriptors that are not both sockets.

use super::{Plan, Row, select};
use crate::policy::{Mechanism, Support, zero_copy_receive_enabled, zero_copy_send_enabled};

/// The kind of one of the two descriptors between which bytes move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DescriptorKind {
    /// A regular file or a block device, whose contents the kernel keeps in the page cache. A sink
    /// that was opened with `O_APPEND` or `O_DIRECT` is [`Other`](Self::Other).
    File,
    /// A pipe or a FIFO.
    Pipe,
    /// A stream socket.
    Socket,
    /// `/dev/null`, as a sink.
    Null,
    /// Anything else that can be read from, or written to, such as a terminal or a file of procfs.
    Other,
}

/// The properties of a copy between two descriptors that, together with [`Support`], determine its
/// plan.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct CopyPlanInput {
    /// The kind of descriptor that the bytes come from.
    pub source: DescriptorKind,
    /// The kind of descriptor that the bytes go to.
    pub sink: DescriptorKind,
    /// Whether zero copy is switched on in this process, both for
    /// [sending](crate::zero_copy_send_enabled) and for
    /// [receiving](crate::zero_copy_receive_enabled).
    pub zero_copy_enabled: bool,
}

impl CopyPlanInput {
    /// Returns the properties of a copy between these two kinds of descriptors, with
    /// `zero_copy_enabled` as it is now.
    #[must_use]
    pub fn new(source: DescriptorKind, sink: DescriptorKind) -> Self {
        Self {
            source,
            sink,
            zero_copy_enabled: zero_copy_send_enabled() && zero_copy_receive_enabled(),
        }
    }
}

/// The table for moving bytes between two descriptors, in order of preference.
///
/// - `copy_file_range` copies once, in the kernel, or not at all if the file system can let both
///   files share the blocks. Most file systems refuse it for files of another file system.
/// - `sendfile` copies once as well, between any two files.
/// - `splice` copies once into a file, and not at all otherwise. One of the two must be a pipe. A
///   file that was opened with `O_APPEND` refuses it, and a terminal gains nothing from it.
/// - `copy` always works.
const DESCRIPTOR_TO_DESCRIPTOR: [Row<CopyPlanInput>; 4] = [
    Row {
        mechanism: Mechanism::CopyFileRange,
        pays: |input| input.source == DescriptorKind::File && input.sink == DescriptorKind::File,
    },
    Row {
        mechanism: Mechanism::Sendfile,
        pays: |input| {
            input.source == DescriptorKind::File
                && matches!(input.sink, DescriptorKind::File | DescriptorKind::Null)
        },
    },
    Row {
        mechanism: Mechanism::Splice,
        pays: |input| match (input.source, input.sink) {
            (DescriptorKind::Pipe, sink) => sink != DescriptorKind::Other,
            (source, DescriptorKind::Pipe) => source == DescriptorKind::File,
            _ => false,
        },
    },
    Row {
        mechanism: Mechanism::Copy,
        pays: |_| true,
    },
];

/// Returns the mechanisms for moving bytes between two descriptors that are not both sockets, best
/// first. The last one is always `copy`.
///
/// ```
/// use uncopied::policy::{CopyPlanInput, DescriptorKind, plan_copy};
/// use uncopied::{Mechanism, Support};
///
/// let input = CopyPlanInput::new(DescriptorKind::Pipe, DescriptorKind::File);
/// let plan = plan_copy(&input, &Support::none_refused());
/// assert_eq!(plan.mechanisms(), [Mechanism::Splice, Mechanism::Copy]);
/// ```
#[must_use]
pub fn plan_copy(input: &CopyPlanInput, support: &Support) -> Plan {
    if !input.zero_copy_enabled {
        return Plan::copying();
    }
    select(&DESCRIPTOR_TO_DESCRIPTOR, input, support)
}

#[cfg(test)]
mod tests {
    use super::DescriptorKind::{File, Null, Other, Pipe, Socket};
    use super::Mechanism::{Copy, CopyFileRange, Sendfile, Splice};
    use super::*;
    use crate::sys::Errno;

    #[test]
    fn plans_for_copies() {
        let rows: &[(DescriptorKind, DescriptorKind, &[Mechanism])] = &[
            (File, File, &[CopyFileRange, Sendfile, Copy]),
            (File, Null, &[Sendfile, Copy]),
            (File, Pipe, &[Splice, Copy]),
            (File, Other, &[Copy]),
            (Pipe, File, &[Splice, Copy]),
            (Pipe, Pipe, &[Splice, Copy]),
            (Pipe, Socket, &[Splice, Copy]),
            (Pipe, Null, &[Splice, Copy]),
            (Pipe, Other, &[Copy]),
            (Other, Pipe, &[Copy]),
            (Other, File, &[Copy]),
            (Other, Socket, &[Copy]),
        ];
        for &(source, sink, expected) in rows {
            let input = CopyPlanInput {
                source,
                sink,
                zero_copy_enabled: true,
            };
            let plan = plan_copy(&input, &Support::none_refused());
            assert_eq!(plan.mechanisms(), expected, "{input:?}");
            let disabled = CopyPlanInput {
                zero_copy_enabled: false,
                ..input
            };
            let plan = plan_copy(&disabled, &Support::none_refused());
            assert_eq!(plan.mechanisms(), [Copy], "{disabled:?}");
        }
        let mut support = Support::none_refused();
        support.record_refusal(CopyFileRange, Errno::INVAL);
        let plan = plan_copy(&CopyPlanInput::new(File, File), &support);
        assert_eq!(plan.mechanisms(), [Sendfile, Copy]);
    }
}
