//! Records which mechanisms have been refused, and why.
//!
//! Support is learned by trying a mechanism, never from a kernel version. `ENOSYS` and `EPERM` mean
//! that the kernel or a seccomp filter refuses the system call, so they apply to the whole process.
//! Every other errno applies only to the pair of descriptors for which it was returned.

use std::sync::atomic::{AtomicI32, Ordering};

use rustix::io::Errno;

use super::Mechanism;

/// For each mechanism, the errno with which it was refused to the whole process, or 0 if it was
/// not.
static REFUSED: [AtomicI32; Mechanism::ALL.len()] =
    [const { AtomicI32::new(0) }; Mechanism::ALL.len()];

/// The mechanisms that have been refused, each with its errno.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Support {
    refused: [Option<Errno>; Mechanism::ALL.len()],
}

impl Support {
    /// Returns a `Support` in which no mechanism has been refused.
    #[must_use]
    pub fn none_refused() -> Self {
        Self::default()
    }

    /// Returns the mechanisms that, according to earlier transfers, are refused to the whole
    /// process.
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

    /// Returns the errno with which the kernel refused `mechanism`, if it did.
    #[must_use]
    pub fn refusal(&self, mechanism: Mechanism) -> Option<Errno> {
        self.refused[mechanism as usize]
    }

    /// Records that `mechanism` was refused. If the errno applies to the whole process, the refusal
    /// is included in what later calls of [`of_process`](Self::of_process) return. A refusal of
    /// `copy` is never recorded for the process: `copy` makes only ordinary reads and sends, which
    /// work in every process, so such a refusal can concern only this pair of descriptors.
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
    fn a_refusal_for_one_pair_does_not_affect_the_process() {
        let mut support = Support::none_refused();
        support.record_refusal(Mechanism::MmapWrite, Errno::INVAL);
        assert_eq!(support.refusal(Mechanism::MmapWrite), Some(Errno::INVAL));
        assert_eq!(Support::of_process().refusal(Mechanism::MmapWrite), None);
    }
}
