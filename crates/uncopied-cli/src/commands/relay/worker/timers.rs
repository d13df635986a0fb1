//! The times at which connections want to have their turn.

use std::collections::BTreeSet;
use std::time::Instant;

/// The times, in order. Each connection has at most one.
#[derive(Default)]
pub(super) struct Timers(BTreeSet<(Instant, usize)>);

impl Timers {
    /// Replaces the time `old` of a connection by `new`.
    pub(super) fn replace(&mut self, key: usize, old: Option<Instant>, new: Option<Instant>) {
        if old == new {
            return;
        }
        if let Some(old) = old {
            self.0.remove(&(old, key));
        }
        if let Some(new) = new {
            self.0.insert((new, key));
        }
    }

    /// Returns the earliest time.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.first().map(|&(time, _)| time)
    }

    /// Calls `visit` for each connection whose time has come.
    pub(super) fn for_each_due(&self, now: Instant, visit: impl FnMut(usize)) {
        let due = self.0.range(..=(now, usize::MAX));
        due.map(|&(_, key)| key).for_each(visit);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_connection_has_one_time() {
        let now = Instant::now();
        let at = |millis| Some(now + Duration::from_millis(millis));
        let mut timers = Timers::default();
        assert_eq!(timers.next(), None);
        timers.replace(1, None, at(20));
        timers.replace(2, None, at(10));
        timers.replace(3, None, at(10));
        assert_eq!(timers.next(), at(10));
        timers.replace(2, at(10), at(30));
        timers.replace(3, at(10), at(10));
        let due = |millis| {
            let mut due = Vec::new();
            timers.for_each_due(now + Duration::from_millis(millis), |key| due.push(key));
            due
        };
        assert_eq!(due(9), [0; 0]);
        assert_eq!(due(10), [3]);
        assert_eq!(due(25), [3, 1]);
        timers.replace(3, at(10), None);
        assert_eq!(timers.next(), at(20));
    }
}
