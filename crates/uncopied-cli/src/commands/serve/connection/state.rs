//! One connection, as the control thread sees it.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Instant;

use uncopied_http::{Activity, Phase};

use super::recorder::Tape;

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
    /// Between the service and the connection's [`Repeats`](super::replay::Repeats).
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

/// Nothing that is done under these locks can leave them half-way, so a panic elsewhere does not
/// matter.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
