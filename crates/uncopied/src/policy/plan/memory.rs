//! The plan for sending memory to a socket.

use super::{Plan, Row, select};
use crate::policy::{Mechanism, Support, Tuning, reaches, zero_copy_send_enabled};

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
    /// What must be done so that the memory cannot change while it is in flight.
    pub protection: WriteProtection,
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
    /// From which lengths the mechanisms pay.
    pub tuning: Tuning,
}

impl MemoryPlanInput {
    /// Returns the properties of a send of `len` bytes of page-aligned memory over TCP to another
    /// machine. The memory is not permanent and needs no protection, `zero_copy_enabled` is as it
    /// is [now](crate::zero_copy_send_enabled), and the tuning is the [current](Tuning::current)
    /// one. Change the fields for any other send.
    #[must_use]
    pub fn new(len: usize, driver: Driver) -> Self {
        Self {
            len,
            is_page_aligned: true,
            is_permanent: false,
            protection: WriteProtection::NotNeeded,
            kernel_copies: false,
            is_gathered: true,
            is_tcp: true,
            driver,
            zero_copy_enabled: zero_copy_send_enabled(),
            tuning: Tuning::current(),
        }
    }
}

/// What must be done so that the memory of a send cannot change while it is in flight, cheapest
/// first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum WriteProtection {
    /// Nothing: no program can write to it.
    NotNeeded,
    /// Its huge pages must be protected against writes, because it is a
    /// [region](crate::arena::Region). That pays from [`Tuning::region_min_bytes`] on.
    HugePages,
    /// It would have to be protected against writes, at a higher cost than that of a copy: it is a
    /// region that is not in huge pages, or that was overwritten after each of the latest sends.
    Costly,
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
            let is_long = match input.protection {
                WriteProtection::NotNeeded => {
                    reaches(input.len as u64, input.tuning.vmsplice_min_bytes)
                }
                // `plan_memory` has checked that it is long enough to be protected.
                WriteProtection::HugePages => true,
                WriteProtection::Costly => false,
            };
            input.is_permanent && input.is_page_aligned && is_long
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
    let is_long = reaches(input.len as u64, input.tuning.notified_min_bytes);
    input.is_tcp && !input.kernel_copies && is_long
}

/// Returns the mechanisms for sending memory, best first. The last one is always `copy`.
///
/// Memory is copied if it is shorter than a page, if protecting it costs more than a copy, or if
/// the interface cannot gather. Only `vmsplice` needs memory that begins at the start of a page.
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
    let protection_pays = match input.protection {
        WriteProtection::NotNeeded => true,
        WriteProtection::HugePages => reaches(input.len as u64, input.tuning.region_min_bytes),
        WriteProtection::Costly => false,
    };
    let is_eligible = input.is_gathered && input.len >= rustix::param::page_size();
    if !input.zero_copy_enabled || !is_eligible || !protection_pays {
        return Plan::copying();
    }
    select(&MEMORY_TO_SOCKET, input, support)
}

#[cfg(test)]
mod tests {
    use super::Mechanism::{Copy, MsgZerocopy, SendZc, Vmsplice};
    use super::*;
    use crate::policy::plan::tests::refusing;

    #[test]
    fn plans_for_memory() {
        let tuning = Tuning::default();
        let usual = MemoryPlanInput {
            len: 1 << 20,
            is_page_aligned: true,
            is_permanent: false,
            protection: WriteProtection::NotNeeded,
            kernel_copies: false,
            is_gathered: true,
            is_tcp: true,
            driver: Driver::Caller,
            zero_copy_enabled: true,
            tuning,
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
            len: tuning.notified_min_bytes as usize - 1,
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
        let region = MemoryPlanInput {
            protection: WriteProtection::HugePages,
            len: tuning.region_min_bytes as usize,
            ..permanent
        };
        let short_region = MemoryPlanInput {
            len: region.len - 1,
            ..region
        };
        let costly_region = MemoryPlanInput {
            protection: WriteProtection::Costly,
            ..region
        };
        let permanent_unix = MemoryPlanInput {
            is_tcp: false,
            ..permanent
        };
        let short_permanent = MemoryPlanInput {
            len: tuning.vmsplice_min_bytes as usize - 1,
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
            (region, &[], &[Vmsplice, MsgZerocopy, Copy]),
            (short_region, &[], &[Copy]),
            (costly_region, &[], &[Copy]),
            (permanent_unix, &[], &[Vmsplice, Copy]),
            (short_permanent, &[], &[Copy]),
        ];
        for (input, refused, expected) in rows {
            let plan = plan_memory(input, &refusing(refused));
            assert_eq!(plan.mechanisms(), *expected, "{input:?} {refused:?}");
        }
    }

    #[test]
    fn each_threshold_for_memory_is_that_of_the_tuning() {
        let tuning = Tuning {
            vmsplice_min_bytes: 5000,
            region_min_bytes: 6000,
            notified_min_bytes: 7000,
            ..Tuning::default()
        };
        let pages = |len| MemoryPlanInput {
            is_permanent: true,
            kernel_copies: true,
            tuning,
            ..MemoryPlanInput::new(len, Driver::Caller)
        };
        let region = |len| MemoryPlanInput {
            protection: WriteProtection::HugePages,
            ..pages(len)
        };
        let remote = |len, driver| MemoryPlanInput {
            tuning,
            ..MemoryPlanInput::new(len, driver)
        };
        let never = |input| MemoryPlanInput {
            tuning: Tuning {
                vmsplice_min_bytes: Tuning::NEVER,
                region_min_bytes: Tuning::NEVER,
                notified_min_bytes: Tuning::NEVER,
                ..tuning
            },
            ..input
        };
        let below_a_page = MemoryPlanInput {
            tuning: Tuning {
                vmsplice_min_bytes: 0,
                ..tuning
            },
            ..pages(4095)
        };
        for (input, first) in [
            (pages(4999), Copy),
            (pages(5000), Vmsplice),
            (region(5999), Copy),
            (region(6000), Vmsplice),
            (remote(6999, Driver::Caller), Copy),
            (remote(7000, Driver::Caller), MsgZerocopy),
            (remote(6999, Driver::Tokio), Copy),
            (remote(7000, Driver::Tokio), SendZc),
            (never(pages(usize::MAX)), Copy),
            (never(region(usize::MAX)), Copy),
            (never(remote(usize::MAX, Driver::Caller)), Copy),
            (below_a_page, Copy),
        ] {
            let plan = plan_memory(&input, &Support::none_refused());
            assert_eq!(plan.mechanisms()[0], first, "{input:?}");
        }
    }
}
