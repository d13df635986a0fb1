//! A clock that takes no system call to read.

use rustix::time::{ClockId, clock_gettime};

/// Returns the time in milliseconds from the kernel's coarse clock, which is accurate to a few
/// milliseconds and takes no system call to read.
pub(crate) fn coarse_now() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}
