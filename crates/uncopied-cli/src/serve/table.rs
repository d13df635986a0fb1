//! The connections of one serving thread, as the control thread sees them.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Instant;

use slab::Slab;
use tokio::sync::Notify;
use uncopied_http::{Activity, Phase};

use super::repeats::Tape;

/// What the control thread has told a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Order {
    /// Go on.
    None = 0,
    /// Give the buffers back, if idle.
    Park = 1,
    /// Close at the next boundary between two requests.
    Finish = 2,
    /// Close now.
    Cut = 3,
}

/// One connection's place in the table.
pub(crate) struct Seat {
    pub(crate) activity: Arc<Activity>,
    pub(crate) accepted: Instant,
    /// Whether the kernel itself watches how long the peer takes nothing (`TCP_USER_TIMEOUT`).
    pub(crate) is_tcp: bool,
    /// How many requests have come.
    turns: AtomicU32,
    awaits_head: AtomicBool,
    answering: AtomicBool,
    /// Whether it stands in the list of [`parking`](super::parking).
    is_listed: AtomicBool,
    /// Between the service and the connection's [`Repeats`](super::repeats::Repeats).
    pub(crate) tape: Tape,
    order: AtomicU8,
    waker: Mutex<Option<Waker>>,
}

impl Seat {
    pub(crate) fn new(activity: Arc<Activity>, is_tcp: bool) -> Self {
        Self {
            activity,
            accepted: Instant::now(),
            is_tcp,
            turns: AtomicU32::new(0),
            awaits_head: AtomicBool::new(false),
            answering: AtomicBool::new(false),
            is_listed: AtomicBool::new(false),
            tape: Tape::default(),
            order: AtomicU8::new(Order::None as u8),
            waker: Mutex::new(None),
        }
    }

    /// Notes that a whole request head has come in.
    pub(crate) fn requested(&self) {
        // Only the connection's own task counts, so that no read-modify-write is needed; and only
        // whether two looks saw the same number matters, so that it may wrap.
        let next = self.turn().wrapping_add(1).max(1);
        self.turns.store(next, Ordering::Relaxed);
    }

    /// Which request this is, counted from 1; 0 before the first.
    pub(crate) fn turn(&self) -> u32 {
        self.turns.load(Ordering::Relaxed)
    }

    pub(crate) fn has_requested(&self) -> bool {
        self.turn() > 0
    }

    /// Notes whether a part of a request head has come, and not the whole.
    pub(crate) fn set_awaits_head(&self, awaits: bool) {
        self.awaits_head.store(awaits, Ordering::Relaxed);
    }

    pub(crate) fn awaits_head(&self) -> bool {
        self.awaits_head.load(Ordering::Relaxed)
    }

    /// Notes whether an answer is under way, from its request to the end of its body.
    pub(crate) fn set_answering(&self, answering: bool) {
        self.answering.store(answering, Ordering::Relaxed);
    }

    /// What the connection waits for. While more of an answer is still to come, that is not a request.
    pub(crate) fn phase(&self) -> Phase {
        match self.activity.phase() {
            Phase::Idle if self.answering.load(Ordering::Relaxed) => Phase::Active,
            phase => phase,
        }
    }

    /// Whether the connection is between two requests: the last answer has gone out whole, and no byte of
    /// the next request has come. Exact for the connection's own task.
    pub(crate) fn is_idle(&self) -> bool {
        self.phase() == Phase::Idle && !self.awaits_head()
    }

    /// Notes that it stands in the list of its thread. Answers whether it did not before.
    pub(crate) fn enter_list(&self) -> bool {
        let was_listed = self.is_listed.load(Ordering::Relaxed);
        self.is_listed.store(true, Ordering::Relaxed);
        !was_listed
    }

    pub(crate) fn leave_list(&self) {
        self.is_listed.store(false, Ordering::Relaxed);
    }

    /// The highest order given so far.
    pub(crate) fn order(&self) -> Order {
        match self.order.load(Ordering::Acquire) {
            0 => Order::None,
            1 => Order::Park,
            2 => Order::Finish,
            _ => Order::Cut,
        }
    }

    /// Gives an order and wakes the connection to obey it. A lesser order after a greater one is
    /// ignored.
    pub(crate) fn give(&self, order: Order) {
        if self.order.fetch_max(order as u8, Ordering::AcqRel) < order as u8
            && let Some(waker) = &*lock(&self.waker)
        {
            waker.wake_by_ref();
        }
    }

    /// The order to park has been dealt with. Any greater one stays.
    pub(crate) fn clear_park(&self) {
        let (park, none) = (Order::Park as u8, Order::None as u8);
        let _ = self
            .order
            .compare_exchange(park, none, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Says whom to wake for an order. Look at [`Seat::order`] afterwards, not before: an order
    /// given meanwhile may have found nobody to wake.
    pub(crate) fn wake_for_orders(&self, waker: &Waker) {
        *lock(&self.waker) = Some(waker.clone());
    }
}

/// The connections of one serving thread. Its lock is taken when a connection begins or ends and
/// while the control thread looks them through, never for a request.
#[derive(Default)]
pub(crate) struct Table {
    inner: Mutex<Inner>,
    emptied: Notify,
}

#[derive(Default)]
struct Inner {
    seats: Slab<Arc<Seat>>,
    is_finishing: bool,
}

impl Table {
    /// Adds a connection and returns its key. One that comes while the server finishes is told so.
    pub(crate) fn insert(&self, seat: Arc<Seat>) -> usize {
        let mut inner = lock(&self.inner);
        if inner.is_finishing {
            seat.give(Order::Finish);
        }
        inner.seats.insert(seat)
    }

    /// Removes the connection that [`Table::insert`] gave this key.
    pub(crate) fn remove(&self, key: usize) {
        let mut inner = lock(&self.inner);
        inner.seats.remove(key);
        if inner.seats.is_empty() {
            // A busy time's slots are given back once nobody needs them.
            inner.seats.shrink_to_fit();
            self.emptied.notify_one();
        }
    }

    /// Tells every connection, and those still to come, to finish.
    pub(crate) fn finish_all(&self) {
        let mut inner = lock(&self.inner);
        inner.is_finishing = true;
        inner
            .seats
            .iter()
            .for_each(|(_, seat)| seat.give(Order::Finish));
    }

    /// Shows every connection to `look`.
    pub(crate) fn for_each(&self, mut look: impl FnMut(&Seat)) {
        lock(&self.inner)
            .seats
            .iter()
            .for_each(|(_, seat)| look(seat));
    }

    /// Waits until no connection is left. For one waiter at a time.
    pub(crate) async fn emptied(&self) {
        while !lock(&self.inner).seats.is_empty() {
            self.emptied.notified().await;
        }
    }
}

/// Nothing that is done under these locks can leave them half-way, so a panic elsewhere does not
/// matter.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
