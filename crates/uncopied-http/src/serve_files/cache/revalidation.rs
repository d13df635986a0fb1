//! Shares the look-ups of files and directories among requests that are waiting at the same time.
//!
//! A response must reflect what its path leads to at some moment after the request arrived. So a
//! request can use the result of any `statx` of its path that is made after its arrival, even one
//! that is made for another request. Under load, requests therefore form groups. Each request joins
//! the open group of its thread, and then yields once to other tasks that are ready, so that
//! requests of other connections can join. The first member to run again closes the group and makes
//! its `statx`. The other members that request the same file may use that result, because all of
//! them arrived before the call. For the same reason, those that request another file in the same
//! directory may use what was queried about that directory.
//!
//! The eighth member to join does not yield, but runs at once and closes the group. So when many
//! requests are waiting, some responses are sent early, and their clients can work while the server
//! handles the other requests.
//!
//! Joining makes each request pass through the run queue once more, which costs about a tenth of a
//! `statx`. This pays off only if requests for the same file or directory arrive together.
//! [`GroupingCredit`] keeps track of whether they do.

use std::cell::{Cell, RefCell};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::entry::Entry;
use crate::serve_files::resolve::checked_path::QueriedDirs;

/// The maximum number of requests in a group. In measurements with 32 connections and files of 1
/// KiB, limits of 8 and 16 were the fastest. Without a limit, the clients idle while the server
/// works, and the server idles while the clients work.
const GROUP_MAX_MEMBERS: usize = 8;

thread_local! {
    static OPEN_GROUP: RefCell<Option<Arc<RevalidationGroup>>> = const { RefCell::new(None) };
    static GROUPING_CREDIT: GroupingCredit = const { GroupingCredit(Cell::new(0)) };
}

/// Requests that share the results of their `statx` calls.
#[derive(Debug, Default)]
pub(crate) struct RevalidationGroup(Mutex<GroupState>);

/// A request's membership in a group.
#[derive(Debug)]
pub(crate) struct GroupMember {
    pub(crate) group: Arc<RevalidationGroup>,
    /// Whether the task must yield to others once before it calls
    /// [`RevalidationGroup::is_current`].
    pub(crate) must_yield: bool,
}

#[derive(Debug, Default)]
struct GroupState {
    members: usize,
    is_closed: bool,
    /// The addresses of the entries checked so far, and whether each of these entries is current.
    /// An address identifies an entry: every member has held its entry since before the group was
    /// closed, so no two of these entries can have had the same address.
    results: Vec<(usize, bool)>,
    dirs: QueriedDirs,
}

impl RevalidationGroup {
    /// Joins the open group of this thread, or opens one. Returns `None` if grouping has not paid
    /// off recently.
    pub(crate) fn join() -> Option<GroupMember> {
        if !GROUPING_CREDIT.with(GroupingCredit::spend) {
            return None;
        }
        OPEN_GROUP.with_borrow_mut(|open| {
            // `add_member` returns `None` if a member has closed the group. That may have happened
            // on another thread, if the member's task has moved there.
            if let Some(group) = open
                && let Some(must_yield) = group.add_member()
            {
                let group = Arc::clone(group);
                return Some(GroupMember { group, must_yield });
            }
            let state = GroupState {
                members: 1,
                ..GroupState::default()
            };
            let group = Arc::new(Self(Mutex::new(state)));
            *open = Some(Arc::clone(&group));
            Some(GroupMember {
                group,
                must_yield: true,
            })
        })
    }

    /// Adds a member, unless the group is closed. Returns whether the member must yield.
    fn add_member(&self) -> Option<bool> {
        let mut state = self.lock();
        if state.is_closed {
            return None;
        }
        state.members += 1;
        Some(state.members < GROUP_MAX_MEMBERS)
    }

    /// Closes the group, and returns whether the entry's path still led to the same, unchanged file
    /// at some moment after the caller joined. Each group queries the kernel at most once per
    /// entry.
    pub(crate) fn is_current(&self, entry: &Arc<Entry>) -> bool {
        let mut state = self.lock();
        state.is_closed = true;
        let address = Arc::as_ptr(entry).addr();
        let known = state.results.iter().find(|(of, _)| *of == address);
        if let Some(&(_, is_current)) = known {
            GROUPING_CREDIT.with(GroupingCredit::earn);
            return is_current;
        }
        let hits = state.dirs.hits;
        let is_current = entry.is_current(&mut state.dirs);
        if state.dirs.hits > hits {
            GROUPING_CREDIT.with(GroupingCredit::earn);
        }
        state.results.push((address, is_current));
        is_current
    }

    fn lock(&self) -> MutexGuard<'_, GroupState> {
        // Ignore poisoning, because a panic leaves the list of results consistent, whether or not
        // the last result was added.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Decides whether requests on this thread join groups, depending on whether grouping has paid off
/// recently. Each time a request uses a result that was obtained for another request, the next
/// [`Self::REQUESTS_PER_HIT`] requests may join. Once this credit is used up, requests no longer
/// join, except in trials: after every [`Self::PAUSE_REQUESTS`] requests that did not join, the
/// next [`Self::TRIAL_REQUESTS`] join. A trial takes more than one request, because a group of one
/// has nobody to share its result with.
struct GroupingCredit(Cell<i32>);

impl GroupingCredit {
    const REQUESTS_PER_HIT: i32 = 64;
    const TRIAL_REQUESTS: i32 = 4;
    const PAUSE_REQUESTS: i32 = 64;

    fn spend(&self) -> bool {
        let left = match self.0.get() {
            left if left <= -Self::PAUSE_REQUESTS => Self::TRIAL_REQUESTS,
            left => left,
        };
        self.0.set(left - 1);
        left > 0
    }

    fn earn(&self) {
        self.0.set(Self::REQUESTS_PER_HIT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_credit_a_few_requests_try_after_each_pause() {
        let credit = GroupingCredit(Cell::new(0));
        let spent: Vec<bool> = (0..GroupingCredit::PAUSE_REQUESTS * 10)
            .map(|_| credit.spend())
            .collect();
        let tries = spent.iter().filter(|tries| **tries).count() as i32;
        assert!(
            (1..GroupingCredit::PAUSE_REQUESTS).contains(&tries),
            "{tries}"
        );
        let in_a_row = spent
            .iter()
            .skip_while(|tries| !**tries)
            .take_while(|tries| **tries);
        assert_eq!(in_a_row.count() as i32, GroupingCredit::TRIAL_REQUESTS);
    }

    #[test]
    fn one_shared_result_pays_for_many_requests() {
        let credit = GroupingCredit(Cell::new(0));
        credit.earn();
        assert!((0..GroupingCredit::REQUESTS_PER_HIT).all(|_| credit.spend()));
        assert!(!credit.spend());
    }

    #[test]
    fn a_closed_group_accepts_no_member_and_the_last_member_does_not_yield() {
        let join = || {
            GROUPING_CREDIT.with(GroupingCredit::earn);
            RevalidationGroup::join().expect("there is credit")
        };
        let first = join();
        for nth in 2..=GROUP_MAX_MEMBERS {
            let member = join();
            assert!(Arc::ptr_eq(&first.group, &member.group));
            assert_eq!(member.must_yield, nth < GROUP_MAX_MEMBERS);
        }
        first.group.lock().is_closed = true;
        let next = join();
        assert!(next.must_yield && !Arc::ptr_eq(&first.group, &next.group));
    }
}
