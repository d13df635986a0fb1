//! Which mechanisms have been refused, and why.
//!
//! Support is learned by trying, never from a kernel version. `ENOSYS` and `EPERM` come from the
//! kernel or from a seccomp filter and hold for the process; every other errno holds only for the
//! pair of descriptors that met it.

use std::sync::atomic::{AtomicI32, Ordering};

use rustix::io::Errno;

use super::Mechanism;

/// The errno with which each mechanism was refused to this process, or 0.
static REFUSED: [AtomicI32; Mechanism::ALL.len()] =
    [const { AtomicI32::new(0) }; Mechanism::ALL.len()];

/// Which mechanisms have been refused, and with which errno.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Support {
    refused: [Option<Errno>; Mechanism::ALL.len()],
}

impl Support {
    /// No mechanism has been refused.
    #[must_use]
    pub fn none_refused() -> Self {
        Self::default()
    }

    /// What earlier transfers of this process have found out.
    #[must_use]
    pub fn of_process() -> Self {
        let refused = REFUSED
            .each_ref()
            .map(|errno| match errno.load(Ordering::Relaxed) {
                0 => None,
                errno => Some(Errno::from_raw_os_error(errno)),
            });
        Self { refused }
    }

    /// The errno with which the kernel refused `mechanism`, if it did.
    #[must_use]
    pub fn refusal(&self, mechanism: Mechanism) -> Option<Errno> {
        self.refused[mechanism as usize]
    }

    /// Records that `mechanism` was refused here. If the errno holds for the whole process, later
    /// calls of [`of_process`](Self::of_process) know it too. `copy` works everywhere: it is never
    /// recorded for the process.
    pub fn record_refusal(&mut self, mechanism: Mechanism, errno: Errno) {
        self.refused[mechanism as usize] = Some(errno);
        let for_process = matches!(errno, Errno::NOSYS | Errno::PERM);
        if for_process && mechanism != Mechanism::Copy {
            REFUSED[mechanism as usize].store(errno.raw_os_error(), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_the_pair_stays_with_the_pair() {
        let mut support = Support::none_refused();
        support.record_refusal(Mechanism::MmapWrite, Errno::INVAL);
        assert_eq!(support.refusal(Mechanism::MmapWrite), Some(Errno::INVAL));
        assert_eq!(Support::of_process().refusal(Mechanism::MmapWrite), None);
    }
}
