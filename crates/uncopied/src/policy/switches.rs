//! The process-wide switch for zero-copy sending.

use std::sync::atomic::{AtomicU8, Ordering};

const UNREAD: u8 = 0;
const OFF: u8 = 1;
const ON: u8 = 2;

static ZERO_COPY_SEND: AtomicU8 = AtomicU8::new(UNREAD);

/// Switches zero-copy sending on or off for the whole process. This can be called at any time and
/// applies to transfers that begin afterwards. While it is off, every transfer uses `copy`, and its
/// report says that zero-copy sending is switched off.
///
/// Setting the environment variable `UNCOPIED_SEND` to `off`, `0`, `false` or `no` switches
/// zero-copy sending off from the start of the process. This function overrides the variable.
pub fn set_zero_copy_send(on: bool) {
    ZERO_COPY_SEND.store(if on { ON } else { OFF }, Ordering::Relaxed);
}

/// Returns whether zero-copy sending is switched on. It is on by default. [`set_zero_copy_send`]
/// and the environment variable `UNCOPIED_SEND` can switch it off.
#[must_use]
pub fn zero_copy_send_enabled() -> bool {
    match ZERO_COPY_SEND.load(Ordering::Relaxed) {
        UNREAD => {
            let on = !is_off(std::env::var_os("UNCOPIED_SEND").as_deref());
            // Do not overwrite the value if `set_zero_copy_send` is called at the same time.
            let now = if on { ON } else { OFF };
            let _ =
                ZERO_COPY_SEND.compare_exchange(UNREAD, now, Ordering::Relaxed, Ordering::Relaxed);
            ZERO_COPY_SEND.load(Ordering::Relaxed) == ON
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
    fn words_that_switch_zero_copy_off() {
        for word in ["off", "OFF", "0", "false", "no"] {
            assert!(is_off(Some(word.as_ref())), "{word}");
        }
        for word in ["", "on", "1", "yes", "offf"] {
            assert!(!is_off(Some(word.as_ref())), "{word}");
        }
        assert!(!is_off(None));
    }
}
