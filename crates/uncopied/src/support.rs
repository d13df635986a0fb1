//! What has been shown to work, and why not where it does not; and the switches.
//!
//! Nothing here looks at a kernel version: support is learned by trying. `ENOSYS` and `EPERM` are
//! the word of the kernel or of a seccomp filter and hold for the process; every other refusal
//! holds for the pair of descriptors that met it.

use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};

use rustix::io::Errno;

use crate::plan::Mechanism;

/// What the kernel has refused to this process: an errno each, or 0.
static REFUSED: [AtomicI32; Mechanism::ALL.len()] =
    [const { AtomicI32::new(0) }; Mechanism::ALL.len()];

/// Which mechanisms have been refused, and with which errno.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Support {
    refused: [Option<Errno>; Mechanism::ALL.len()],
}

impl Support {
    /// Nothing is known against any mechanism.
    #[must_use]
    pub fn none_refused() -> Self {
        Self::default()
    }

    /// What is known of this process, from transfers before.
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

    /// With what the kernel refused `mechanism`, if it did.
    #[must_use]
    pub fn refusal(&self, mechanism: Mechanism) -> Option<Errno> {
        self.refused[mechanism as usize]
    }

    /// Notes that `mechanism` was refused here. Where the errno speaks for the whole process, later
    /// [`of_process`](Self::of_process) knows it too. `copy` works everywhere: it is never noted
    /// for the process.
    pub fn note(&mut self, mechanism: Mechanism, errno: Errno) {
        self.refused[mechanism as usize] = Some(errno);
        let for_process = matches!(errno, Errno::NOSYS | Errno::PERM);
        if for_process && mechanism != Mechanism::Copy {
            REFUSED[mechanism as usize].store(errno.raw_os_error(), Ordering::Relaxed);
        }
    }
}

const UNREAD: u8 = 0;
const OFF: u8 = 1;
const ON: u8 = 2;

static SEND: AtomicU8 = AtomicU8::new(UNREAD);

/// Switches zero-copy sending on or off for the whole process, at any time. Transfers that begin
/// from now on obey; off means that each goes by `copy`, and its report says so.
///
/// The environment variable `UNCOPIED_SEND=off` (or `0`, `false`, `no`) does the same from the
/// start of the process; a call here overrules it.
pub fn set_send(on: bool) {
    SEND.store(if on { ON } else { OFF }, Ordering::Relaxed);
}

/// Whether zero-copy sending is switched on. It is, unless [`set_send`] or `UNCOPIED_SEND` say
/// otherwise.
#[must_use]
pub fn send_is_on() -> bool {
    match SEND.load(Ordering::Relaxed) {
        UNREAD => {
            let on = !is_off(std::env::var_os("UNCOPIED_SEND").as_deref());
            // Whoever called `set_send` meanwhile is not overruled.
            let now = if on { ON } else { OFF };
            let _ = SEND.compare_exchange(UNREAD, now, Ordering::Relaxed, Ordering::Relaxed);
            SEND.load(Ordering::Relaxed) == ON
        }
        known => known == ON,
    }
}

fn is_off(value: Option<&std::ffi::OsStr>) -> bool {
    let Some(value) = value.and_then(|value| value.to_str()) else {
        return false;
    };
    ["off", "0", "false", "no"]
        .iter()
        .any(|off| value.eq_ignore_ascii_case(off))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_switch_off() {
        for word in ["off", "OFF", "0", "false", "no"] {
            assert!(is_off(Some(word.as_ref())), "{word}");
        }
        for word in ["", "on", "1", "yes", "offf"] {
            assert!(!is_off(Some(word.as_ref())), "{word}");
        }
        assert!(!is_off(None));
    }

    #[test]
    fn a_refusal_of_the_pair_stays_with_the_pair() {
        let mut support = Support::none_refused();
        support.note(Mechanism::MmapWrite, Errno::INVAL);
        assert_eq!(support.refusal(Mechanism::MmapWrite), Some(Errno::INVAL));
        assert_eq!(Support::of_process().refusal(Mechanism::MmapWrite), None);
    }
}
