//! The process-wide switches for zero-copy sending and receiving.

use std::ffi::OsStr;
use std::sync::atomic::{AtomicU8, Ordering};

static SEND: Switch = Switch::new("UNCOPIED_SEND");
static RECEIVE: Switch = Switch::new("UNCOPIED_RECEIVE");

/// Switches zero-copy sending on or off for the whole process. This can be called at any time and
/// applies to transfers that begin afterwards. While it is off, every transfer uses `copy`, and its
/// report says that zero-copy sending is switched off.
///
/// Setting the environment variable `UNCOPIED_SEND` to `off`, `0`, `false` or `no` switches
/// zero-copy sending off from the start of the process. This function overrides the variable.
pub fn set_zero_copy_send(on: bool) {
    SEND.set(on);
}

/// Returns whether zero-copy sending is switched on. It is on by default. [`set_zero_copy_send`]
/// and the environment variable `UNCOPIED_SEND` can switch it off.
#[must_use]
pub fn zero_copy_send_enabled() -> bool {
    SEND.is_on()
}

/// Switches zero-copy receiving on or off for the whole process. This can be called at any time and
/// applies to what is received afterwards. While it is off, every byte is received with `copy`, and
/// reports say that zero-copy receiving is switched off. Chunks that were received before stay as
/// they are.
///
/// Setting the environment variable `UNCOPIED_RECEIVE` to `off`, `0`, `false` or `no` switches
/// zero-copy receiving off from the start of the process. This function overrides the variable.
pub fn set_zero_copy_receive(on: bool) {
    RECEIVE.set(on);
}

/// Returns whether zero-copy receiving is switched on. It is on by default.
/// [`set_zero_copy_receive`] and the environment variable `UNCOPIED_RECEIVE` can switch it off.
#[must_use]
pub fn zero_copy_receive_enabled() -> bool {
    RECEIVE.is_on()
}

const UNREAD: u8 = 0;
const OFF: u8 = 1;
const ON: u8 = 2;

/// A switch that is on, unless an environment variable or a call switches it off.
struct Switch {
    variable: &'static str,
    /// `UNREAD` until the variable has been read.
    state: AtomicU8,
}

impl Switch {
    const fn new(variable: &'static str) -> Self {
        Self {
            variable,
            state: AtomicU8::new(UNREAD),
        }
    }

    fn set(&self, on: bool) {
        let state = if on { ON } else { OFF };
        self.state.store(state, Ordering::Relaxed);
    }

    fn is_on(&self) -> bool {
        match self.state.load(Ordering::Relaxed) {
            UNREAD => self.read_variable(),
            known => known == ON,
        }
    }

    #[cold]
    fn read_variable(&self) -> bool {
        let is_off = is_off(std::env::var_os(self.variable).as_deref());
        let read = if is_off { OFF } else { ON };
        // Do not overwrite the state if `set` is called at the same time.
        let relaxed = Ordering::Relaxed;
        let before = self.state.compare_exchange(UNREAD, read, relaxed, relaxed);
        before.err().unwrap_or(read) == ON
    }
}

fn is_off(value: Option<&OsStr>) -> bool {
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

    #[test]
    fn a_switch_is_on_until_it_is_switched_off() {
        let switch = Switch::new("UNCOPIED_A_VARIABLE_THAT_NOBODY_SETS");
        assert!(switch.is_on());
        switch.set(false);
        assert!(!switch.is_on());
        switch.set(true);
        assert!(switch.is_on());
    }
}
