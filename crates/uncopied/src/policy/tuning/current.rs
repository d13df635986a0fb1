//! The thresholds of this process.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{COUNT, Tuning};

static CURRENT: Current = Current::new();

impl Tuning {
    /// Returns the thresholds of this process, which plans use from now on: those of the latest
    /// call of [`set`](Self::set); without one, those of the file that the environment variable
    /// `UNCOPIED_TUNING` names; without one, the defaults. They are those of
    /// [`Tuning::default`] as well if the file cannot be used: a program that wants to know that
    /// calls [`from_environment`](Self::from_environment).
    ///
    /// The file is read once, by the first call.
    #[must_use]
    pub fn current() -> Self {
        CURRENT.get(read_environment)
    }

    /// Makes these the thresholds of the whole process, for every transfer that starts from now on.
    /// `UNCOPIED_TUNING` then has no effect. A transfer that starts in another thread during this
    /// call may use some of the old thresholds together with some of the new ones.
    pub fn set(self) {
        CURRENT.set(self);
    }
}

fn read_environment() -> Tuning {
    Tuning::from_environment()
        .ok()
        .flatten()
        .unwrap_or_default()
}

/// A value of which no thread ever waits for another: not even a child that was forked while
/// another thread was setting it.
struct Current([AtomicU64; COUNT]);

/// A threshold that has not been set, and for which the file has not been read. No transfer is that
/// long, so as a threshold, it means the same as [`Tuning::NEVER`].
const UNREAD: u64 = u64::MAX - 1;

impl Current {
    const fn new() -> Self {
        Self([const { AtomicU64::new(UNREAD) }; COUNT])
    }

    fn get(&self, read: impl FnOnce() -> Tuning) -> Tuning {
        let values = self.values();
        if values.contains(&UNREAD) {
            self.fill(read());
            return Tuning::of_values(self.values());
        }
        Tuning::of_values(values)
    }

    fn values(&self) -> [u64; COUNT] {
        array::from_fn(|at| self.0[at].load(Ordering::Relaxed))
    }

    fn set(&self, tuning: Tuning) {
        for (cell, value) in self.0.iter().zip(tuning.values()) {
            cell.store(readable(value), Ordering::Relaxed);
        }
    }

    /// Sets the thresholds that no call of `set` has set, not even at the same time.
    #[cold]
    fn fill(&self, tuning: Tuning) {
        for (cell, value) in self.0.iter().zip(tuning.values()) {
            let relaxed = Ordering::Relaxed;
            let _ = cell.compare_exchange(UNREAD, readable(value), relaxed, relaxed);
        }
    }
}

fn readable(value: u64) -> u64 {
    match value {
        UNREAD => Tuning::NEVER,
        value => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_read_once_and_what_is_set_comes_first() {
        let current = Current::new();
        let of_file = Tuning::of_values([7; COUNT]);
        assert_eq!(current.get(|| of_file), of_file);
        let read_again = || panic!("it is known");
        assert_eq!(current.get(read_again), of_file);
        current.set(Tuning::default());
        assert_eq!(current.get(read_again), Tuning::default());

        let current = Current::new();
        let set_meanwhile = || {
            current.set(Tuning::default());
            of_file
        };
        assert_eq!(current.get(set_meanwhile), Tuning::default());
    }

    #[test]
    fn a_threshold_that_looks_unread_means_never() {
        let current = Current::new();
        current.set(Tuning::of_values([UNREAD; COUNT]));
        let tuning = current.get(|| panic!("it is set"));
        assert_eq!(tuning, Tuning::of_values([Tuning::NEVER; COUNT]));
    }
}
