//! Commands from the control thread to the task of a connection.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

/// A command that a connection has received. A greater command replaces a smaller one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum ConnectionCommand {
    /// Keep serving.
    None = 0,
    /// Close as soon as nothing is in progress.
    Drain = 1,
    /// Close now.
    Abort = 2,
}

/// The command that a connection has received, and the waker of its task.
pub(crate) struct CommandSlot {
    command: AtomicU8,
    waker: Mutex<Option<Waker>>,
}

/// A connection that can receive commands.
pub(crate) trait Commanded {
    /// Returns where the connection receives its commands.
    fn commands(&self) -> &CommandSlot;
}

impl CommandSlot {
    pub(crate) const fn new() -> Self {
        Self {
            command: AtomicU8::new(ConnectionCommand::None as u8),
            waker: Mutex::new(None),
        }
    }

    /// Returns the greatest command received so far.
    pub(crate) fn command(&self) -> ConnectionCommand {
        match self.command.load(Ordering::Acquire) {
            0 => ConnectionCommand::None,
            1 => ConnectionCommand::Drain,
            _ => ConnectionCommand::Abort,
        }
    }

    /// Sends a command and wakes the connection's task to carry it out. Ignored if the connection
    /// has already received this command or a greater one.
    pub(crate) fn send(&self, command: ConnectionCommand) {
        if self.command.fetch_max(command as u8, Ordering::AcqRel) < command as u8 {
            self.wake();
        }
    }

    /// Wakes the connection's task.
    pub(crate) fn wake(&self) {
        if let Some(waker) = &*lock(&self.waker) {
            waker.wake_by_ref();
        }
    }

    /// Registers the waker that [`CommandSlot::send`] calls. Read [`CommandSlot::command`] after
    /// this call, not before it: a command sent between the two would find no waker, and the task
    /// would miss it.
    pub(crate) fn register_waker(&self, waker: &Waker) {
        *lock(&self.waker) = Some(waker.clone());
    }
}

/// Locks a mutex and ignores poisoning. No code that holds such a lock can leave the value half
/// updated, so the value is valid even after a panic.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greater_command_replaces_a_smaller_one() {
        let slot = CommandSlot::new();
        slot.send(ConnectionCommand::Abort);
        slot.send(ConnectionCommand::Drain);
        assert_eq!(slot.command(), ConnectionCommand::Abort);
    }
}
