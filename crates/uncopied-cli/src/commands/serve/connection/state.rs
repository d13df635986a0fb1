//! The state of one connection that its task shares with the control thread.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Instant;

use uncopied_http::{Activity, Phase};

use super::recorder::ReplayRecorder;

/// A command that a connection has received. A greater command replaces a smaller one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum ConnectionCommand {
    /// Keep serving.
    None = 0,
    /// Drop hyper's buffers if the connection is idle.
    Park = 1,
    /// Close as soon as no request is in progress.
    Drain = 2,
    /// Close now.
    Abort = 3,
}

/// The state of one connection, which its task, its layers and the control thread share.
pub(crate) struct ConnectionState {
    pub(crate) activity: Arc<Activity>,
    pub(crate) accepted: Instant,
    /// Whether the connection uses TCP. If so, the kernel enforces the send timeout
    /// (`TCP_USER_TIMEOUT`).
    pub(crate) is_tcp: bool,
    /// The number of the latest request; see [`ConnectionState::request_number`].
    request_number: AtomicU32,
    is_reading_head: AtomicBool,
    is_responding: AtomicBool,
    /// Whether the connection is in the idle list of [`parking`](super::parking).
    is_in_idle_list: AtomicBool,
    /// Connects the service to the connection's [`ReplayStream`](super::replay::ReplayStream).
    pub(crate) recorder: ReplayRecorder,
    command: AtomicU8,
    waker: Mutex<Option<Waker>>,
}

impl ConnectionState {
    pub(crate) fn new(activity: Arc<Activity>, is_tcp: bool) -> Self {
        Self {
            activity,
            accepted: Instant::now(),
            is_tcp,
            request_number: AtomicU32::new(0),
            is_reading_head: AtomicBool::new(false),
            is_responding: AtomicBool::new(false),
            is_in_idle_list: AtomicBool::new(false),
            recorder: ReplayRecorder::default(),
            command: AtomicU8::new(ConnectionCommand::None as u8),
            waker: Mutex::new(None),
        }
    }

    /// Records that a whole request head has arrived.
    pub(crate) fn note_request(&self) {
        // Only the connection's own task writes this number, so no atomic read-modify-write is
        // needed. The number may wrap, because readers only check whether it equals an earlier
        // value or 0. When it wraps, it skips 0, because 0 means that there has been no request.
        let next = self.request_number().wrapping_add(1).max(1);
        self.request_number.store(next, Ordering::Relaxed);
    }

    /// Returns the number of the latest request, counted from 1, or 0 before the first request.
    pub(crate) fn request_number(&self) -> u32 {
        self.request_number.load(Ordering::Relaxed)
    }

    pub(crate) fn has_received_request(&self) -> bool {
        self.request_number() > 0
    }

    /// Records whether a request head is incomplete: part of it has arrived, but not all.
    pub(crate) fn set_reading_head(&self, is_reading_head: bool) {
        self.is_reading_head
            .store(is_reading_head, Ordering::Relaxed);
    }

    pub(crate) fn is_reading_head(&self) -> bool {
        self.is_reading_head.load(Ordering::Relaxed)
    }

    /// Records whether a response is in progress. A response is in progress from its request until
    /// its body is dropped.
    pub(crate) fn set_responding(&self, is_responding: bool) {
        self.is_responding.store(is_responding, Ordering::Relaxed);
    }

    /// Returns what the connection is waiting for. While a response is in progress, the phase is
    /// never [`Phase::Idle`], even if everything that hyper has written so far has been sent.
    pub(crate) fn phase(&self) -> Phase {
        match self.activity.phase() {
            Phase::Idle if self.is_responding.load(Ordering::Relaxed) => Phase::Active,
            phase => phase,
        }
    }

    /// Whether the connection is between two requests: the last response has been written
    /// completely, and no byte of the next request has arrived. Only the connection's own task can
    /// rely on the result; in any other thread, it may already be out of date.
    pub(crate) fn is_idle(&self) -> bool {
        self.phase() == Phase::Idle && !self.is_reading_head()
    }

    /// Marks the connection as a member of its thread's idle list. Returns false if it already was
    /// a member.
    pub(crate) fn enter_idle_list(&self) -> bool {
        let was_listed = self.is_in_idle_list.load(Ordering::Relaxed);
        self.is_in_idle_list.store(true, Ordering::Relaxed);
        !was_listed
    }

    pub(crate) fn leave_idle_list(&self) {
        self.is_in_idle_list.store(false, Ordering::Relaxed);
    }

    /// Returns the greatest command received so far.
    pub(crate) fn command(&self) -> ConnectionCommand {
        match self.command.load(Ordering::Acquire) {
            0 => ConnectionCommand::None,
            1 => ConnectionCommand::Park,
            2 => ConnectionCommand::Drain,
            _ => ConnectionCommand::Abort,
        }
    }

    /// Sends a command and wakes the connection's task to carry it out. Ignored if the connection
    /// has already received this command or a greater one.
    pub(crate) fn send(&self, command: ConnectionCommand) {
        if self.command.fetch_max(command as u8, Ordering::AcqRel) < command as u8
            && let Some(waker) = &*lock(&self.waker)
        {
            waker.wake_by_ref();
        }
    }

    /// Clears the command to park after it has been carried out. A greater command is not cleared.
    pub(crate) fn clear_park(&self) {
        let (park, none) = (ConnectionCommand::Park as u8, ConnectionCommand::None as u8);
        let _ = self
            .command
            .compare_exchange(park, none, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Registers the waker that [`ConnectionState::send`] calls. Read [`ConnectionState::command`]
    /// after this call, not before it: a command sent between the two would find no waker, and the
    /// task would miss it.
    pub(crate) fn register_waker(&self, waker: &Waker) {
        *lock(&self.waker) = Some(waker.clone());
    }
}

/// Locks a mutex and ignores poisoning. No code that holds such a lock can leave the value half
/// updated, so the value is valid even after a panic.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
