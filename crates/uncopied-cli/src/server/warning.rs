//! Warnings about repeated events, on standard error at a bounded rate.
//!
//! An event loop may warn, so this never waits for standard error. If it is a pipe that nobody
//! reads, or a terminal that is stopped, the message is not written but counted, like those beyond
//! the rate. One `write` of at most [`MAX_MESSAGE_BYTES`] to a descriptor that `poll(2)` calls
//! writable does not wait: a pipe is writable if that many bytes fit.
//!
//! What was counted is told by the next warning of its kind ("and 12 more"), or by
//! [`tell_suppressed`], which the control thread calls at each sweep and at the end.

use std::fmt;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::output::message_line;

/// The maximum size of a warning. `poll(2)` calls a pipe writable if this many bytes (`PIPE_BUF`)
/// fit.
const MAX_MESSAGE_BYTES: usize = 4096;

/// What a warning is about. Each kind has a rate of its own, so that frequent events of one kind
/// do not hide those of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum WarningKind {
    /// A response had a status of 5xx.
    ServerError,
    /// The server cut a body short.
    BodyCut,
    /// No further connection fits.
    TableFull,
    /// A connection could not be accepted.
    Accept,
    /// The access log cannot be written.
    AccessLog,
    /// No target of a relay accepts connections.
    NoTarget,
    /// A relay cannot open a socket to a target.
    NoDescriptor,
}

impl WarningKind {
    const ALL: [Self; 7] = [
        Self::ServerError,
        Self::BodyCut,
        Self::TableFull,
        Self::Accept,
        Self::AccessLog,
        Self::NoTarget,
        Self::NoDescriptor,
    ];

    /// The number of warnings of this kind that are written in one window of time, and the length
    /// of the window.
    const fn rate(self) -> (u32, Duration) {
        match self {
            Self::ServerError | Self::BodyCut | Self::NoTarget => (5, Duration::from_secs(10)),
            // The log warns when it begins to fail, and tells when it goes on.
            Self::AccessLog => (4, Duration::from_secs(60)),
            // One message describes all of these events, which last until something is changed.
            Self::TableFull | Self::Accept | Self::NoDescriptor => (1, Duration::from_secs(60)),
        }
    }

    /// The events, worded to follow "12 more".
    const fn events(self) -> &'static str {
        match self {
            Self::ServerError => "responses with a status of 5xx",
            Self::BodyCut => "bodies cut short",
            Self::TableFull => "connections that found the table full",
            Self::Accept => "failed accepts",
            Self::AccessLog => "failures of the access log",
            Self::NoTarget => "connections that no target accepted",
            Self::NoDescriptor => "sockets that could not be opened",
        }
    }
}

static WINDOWS: [Mutex<Window>; WarningKind::ALL.len()] =
    [const { Mutex::new(Window::new()) }; WarningKind::ALL.len()];

/// Writes one line to standard error, unless too many of this kind have been written lately or
/// standard error is not ready. Never waits for standard error. The message is only formatted if
/// it is written.
pub(crate) fn warn_limited(kind: WarningKind, message: &dyn fmt::Display) {
    let Some(suppressed) = lock(kind).take(kind, Instant::now()) else {
        return;
    };
    let is_written = match suppressed {
        0 => write_now(message),
        more => write_now(&format_args!("{message} (and {more} more before this)")),
    };
    if !is_written {
        lock(kind).suppressed += suppressed + 1;
    }
}

/// Tells how many warnings were suppressed in windows that are over. With `is_last`, in all
/// windows.
pub(crate) fn tell_suppressed(is_last: bool) {
    for kind in WarningKind::ALL {
        let suppressed = lock(kind).take_suppressed(kind, Instant::now(), is_last);
        if suppressed > 0 && !write_now(&format_args!("and {suppressed} more {}", kind.events())) {
            lock(kind).suppressed += suppressed;
        }
    }
}

fn lock(kind: WarningKind) -> MutexGuard<'static, Window> {
    WINDOWS[kind as usize]
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

/// Writes a line if that needs no waiting. Returns whether it was written.
fn write_now(message: &dyn fmt::Display) -> bool {
    let mut line = message_line(message);
    if line.len() > MAX_MESSAGE_BYTES {
        let fits = |index: &usize| line.is_char_boundary(*index);
        let end = (0..MAX_MESSAGE_BYTES).rev().find(fits).unwrap_or(0);
        line.truncate(end);
        line.push('\n');
    }
    // Write to the descriptor itself. Another thread may hold the lock of `Stderr` while it waits.
    let stderr = io::stderr();
    let mut ready = [PollFd::from_borrowed_fd(stderr.as_fd(), PollFlags::OUT)];
    let is_ready = poll(&mut ready, Some(&Timespec::default())).is_ok_and(|count| count > 0);
    is_ready && rustix::io::write(stderr.as_fd(), line.as_bytes()).is_ok()
}

/// The warnings of one kind since a certain moment.
#[derive(Debug)]
struct Window {
    began: Option<Instant>,
    written: u32,
    suppressed: u64,
}

impl Window {
    const fn new() -> Self {
        Self {
            began: None,
            written: 0,
            suppressed: 0,
        }
    }

    fn is_over(&self, kind: WarningKind, now: Instant) -> bool {
        let (_, length) = kind.rate();
        self.began
            .is_none_or(|began| now.saturating_duration_since(began) >= length)
    }

    /// Counts a warning. If it may be written, returns how many before it were not.
    fn take(&mut self, kind: WarningKind, now: Instant) -> Option<u64> {
        let (burst, _) = kind.rate();
        if self.is_over(kind, now) {
            self.began = Some(now);
            self.written = 0;
        }
        if self.written == burst {
            self.suppressed += 1;
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.suppressed))
    }

    fn take_suppressed(&mut self, kind: WarningKind, now: Instant, is_last: bool) -> u64 {
        if is_last || self.is_over(kind, now) {
            return std::mem::take(&mut self.suppressed);
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: WarningKind = WarningKind::ServerError;

    #[test]
    fn warnings_beyond_the_rate_are_counted_and_told_by_the_next() {
        let (burst, length) = KIND.rate();
        let mut window = Window::new();
        let began = Instant::now();
        for _ in 0..burst {
            assert_eq!(window.take(KIND, began), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(window.take(KIND, began + length / 2), None);
        }
        assert_eq!(window.take(KIND, began + length), Some(7));
        assert_eq!(window.take(KIND, began + length), Some(0));
    }

    #[test]
    fn suppressed_warnings_are_told_once_the_window_is_over_or_at_the_end() {
        let (burst, length) = KIND.rate();
        let mut window = Window::new();
        let began = Instant::now();
        for _ in 0..burst + 3 {
            let _ = window.take(KIND, began);
        }
        assert_eq!(window.take_suppressed(KIND, began, false), 0);
        assert_eq!(window.take_suppressed(KIND, began + length, false), 3);
        assert_eq!(window.take_suppressed(KIND, began + length, true), 0);
        window.suppressed = 2;
        assert_eq!(window.take_suppressed(KIND, began, true), 2);
    }

    #[test]
    fn every_kind_has_a_window() {
        for (index, kind) in WarningKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
        }
    }
}
