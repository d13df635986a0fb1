//! Which idle connections keep their buffers.
//!
//! hyper holds two buffers of 8 KiB for each connection, busy or not. A connection that has been idle
//! for a while needs neither: it is *parked*, which drops hyper's part of it and leaves the stream, the
//! service and one readiness watch. When bytes come, hyper's part is made anew.
//!
//! "For a while" is counted in connections, not in time, so that no timer is needed and memory is bounded
//! at every moment: a thread's list has room for [`KEPT`] connections. One that is idle enters it at its end,
//! and when there is no room the first one leaves. If that has answered anything since it entered, it
//! enters again; if not, it is parked. A busy connection stands in the list already, and costs it nothing.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;

use super::state::{Order, Seat};

/// How many idle connections of a thread keep their buffers: about 11 MiB of them.
const KEPT: usize = 1024;

thread_local! {
    /// Each connection that was idle and has its buffers, and which of its turns had ended then.
    static LIST: RefCell<VecDeque<(Arc<Seat>, u32)>> = const { RefCell::new(VecDeque::new()) };
}

/// A connection of this thread has answered everything that it was asked.
pub(crate) fn is_idle(seat: &Arc<Seat>) {
    if seat.enter_list() {
        LIST.with_borrow_mut(|list| {
            list.push_back((Arc::clone(seat), seat.turn()));
            make_room(list);
        });
    }
}

fn make_room(list: &mut VecDeque<(Arc<Seat>, u32)>) {
    while list.len() > KEPT
        && let Some((first, turn)) = list.pop_front()
    {
        if first.turn() == turn {
            first.leave_list();
            first.give(Order::Park);
        } else {
            let turn = first.turn();
            list.push_back((first, turn));
        }
    }
}
