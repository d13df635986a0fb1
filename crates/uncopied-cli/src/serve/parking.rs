//! Which idle connections keep their buffers.
//!
//! hyper holds two buffers of 8 KiB for each connection, busy or not. A connection that has been idle
//! for a while needs neither: it is *parked*, which drops hyper's part of it and leaves the stream, the
//! service and one readiness watch. When bytes come, hyper's part is made anew.
//!
//! "For a while" is counted in turns, not in time, so that no timer is needed and memory is bounded at
//! every moment: the [`KEPT`] connections of a thread that were the last to become idle keep their
//! buffers, and whichever falls out of that list while still idle is parked. Busy connections become idle
//! and busy again faster than that.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;

use super::table::{Order, Seat};

/// How many idle connections of a thread keep their buffers: about 11 MiB of them.
const KEPT: usize = 1024;

thread_local! {
    /// The latest turns that ended, oldest first: the connection, and which of its turns.
    static ENDED: RefCell<VecDeque<(Arc<Seat>, u32)>> = const { RefCell::new(VecDeque::new()) };
}

/// A connection of this thread has answered everything that it was asked.
pub(crate) fn became_idle(seat: &Arc<Seat>) {
    let fallen_out = ENDED.with_borrow_mut(|ended| {
        ended.push_back((Arc::clone(seat), seat.turn()));
        if ended.len() > KEPT {
            ended.pop_front()
        } else {
            None
        }
    });
    if let Some((seat, turn)) = fallen_out
        && seat.turn() == turn
    {
        seat.give(Order::Park);
    }
}
