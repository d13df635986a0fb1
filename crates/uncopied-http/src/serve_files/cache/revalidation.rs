//! One `statx` for all the requests that wait for it.
//!
//! An answer must show what its path leads to at some moment after the request came. It need not be
//! the request's own look: any that was made later will do. So under load requests go in rounds. Each
//! joins the round that is open on its thread and lets the tasks that are ready take their turns first,
//! which brings in the requests of other connections. The first to come back closes the round and asks
//! the kernel; the others of the round that want the same file find its answer. All of them had come
//! before it was asked.
//!
//! The eighth to join waits for nobody, and closes the round at once: so some answers of a busy turn go
//! out early, and the clients that get them work while the others are answered.
//!
//! That takes a turn of the run queue for each request, a tenth of a `statx`, and is worth it only where
//! requests for the same file come together. Whether they do is learned: see [`Credit`].

use std::cell::{Cell, RefCell};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::entry::Entry;

/// How many requests a round takes. Measured with 32 connections and files of 1 KiB: 8 and 16 did best,
/// and without a limit the server and its clients take turns in idling.
const MEMBERS: usize = 8;

thread_local! {
    static OPEN: RefCell<Option<Arc<Round>>> = const { RefCell::new(None) };
    static CREDIT: Credit = const { Credit(Cell::new(0)) };
}

/// Requests that wait for the same looks.
#[derive(Debug, Default)]
pub(crate) struct Round(Mutex<Looks>);

/// A request's place in a round.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) round: Arc<Round>,
    /// Whether other tasks are to go first, before [`Round::is_current`] is asked.
    pub(crate) waits: bool,
}

#[derive(Debug, Default)]
struct Looks {
    members: usize,
    closed: bool,
    /// Which entries were found to be current, and which not, by their addresses. Whoever compares
    /// has held an entry since before the round was closed, so that no other can have its address.
    made: Vec<(usize, bool)>,
}

impl Round {
    /// Joins the round that is open on this thread, unless rounds have not paid lately.
    pub(crate) fn join() -> Option<Member> {
        if !CREDIT.with(Credit::spend) {
            return None;
        }
        OPEN.with_borrow_mut(|open| {
            // A round is closed on another thread if its first task has moved there.
            if let Some(round) = open
                && let Some(waits) = round.enter()
            {
                let round = Arc::clone(round);
                return Some(Member { round, waits });
            }
            let looks = Looks {
                members: 1,
                ..Looks::default()
            };
            let round = Arc::new(Self(Mutex::new(looks)));
            *open = Some(Arc::clone(&round));
            Some(Member { round, waits: true })
        })
    }

    /// One more member, unless it is closed: is it to wait?
    fn enter(&self) -> Option<bool> {
        let mut looks = self.looks();
        if looks.closed {
            return None;
        }
        looks.members += 1;
        Some(looks.members < MEMBERS)
    }

    /// Whether the entry's path still leads to it, as of a moment after the caller joined. At most one
    /// system call.
    pub(crate) fn is_current(&self, entry: &Arc<Entry>) -> bool {
        let mut looks = self.looks();
        looks.closed = true;
        let address = Arc::as_ptr(entry).addr();
        let made = looks.made.iter().find(|(of, _)| *of == address);
        if let Some(&(_, is_current)) = made {
            CREDIT.with(Credit::earn);
            return is_current;
        }
        let is_current = entry.is_current();
        looks.made.push((address, is_current));
        is_current
    }

    fn looks(&self) -> MutexGuard<'_, Looks> {
        // A list to which a look was or was not added is whole either way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether rounds pay on this thread. A look that served a second request pays for the turns of
/// [`Self::EARNED`] requests. Where there is none left, [`Self::TRIES`] requests in a row try again
/// after every [`Self::PAUSE`]: one alone would meet nobody.
struct Credit(Cell<i32>);

impl Credit {
    const EARNED: i32 = 64;
    const TRIES: i32 = 4;
    const PAUSE: i32 = 64;

    fn spend(&self) -> bool {
        let left = match self.0.get() {
            left if left <= -Self::PAUSE => Self::TRIES,
            left => left,
        };
        self.0.set(left - 1);
        left > 0
    }

    fn earn(&self) {
        self.0.set(Self::EARNED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_credit_a_few_requests_try_after_every_pause() {
        let credit = Credit(Cell::new(0));
        let spent: Vec<bool> = (0..Credit::PAUSE * 10).map(|_| credit.spend()).collect();
        let tries = spent.iter().filter(|tries| **tries).count() as i32;
        assert!((1..Credit::PAUSE).contains(&tries), "{tries}");
        let in_a_row = spent
            .iter()
            .skip_while(|tries| !**tries)
            .take_while(|tries| **tries);
        assert_eq!(in_a_row.count() as i32, Credit::TRIES);
    }

    #[test]
    fn one_shared_look_pays_for_many_turns() {
        let credit = Credit(Cell::new(0));
        credit.earn();
        assert!((0..Credit::EARNED).all(|_| credit.spend()));
        assert!(!credit.spend());
    }

    #[test]
    fn nobody_joins_a_closed_round_and_the_last_member_does_not_wait() {
        let join = || {
            CREDIT.with(Credit::earn);
            Round::join().expect("there is credit")
        };
        let first = join();
        for nth in 2..=MEMBERS {
            let member = join();
            assert!(Arc::ptr_eq(&first.round, &member.round));
            assert_eq!(member.waits, nth < MEMBERS);
        }
        first.round.looks().closed = true;
        let next = join();
        assert!(next.waits && !Arc::ptr_eq(&first.round, &next.round));
    }
}
