//! The lines that wait for standard output.

use std::cell::RefCell;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::output::say;

use super::line::{Format, Record};

/// The lines that may wait for standard output, in bytes.
const MAX_WAITING_BYTES: usize = 4 << 20;
/// How long the end of the process waits for the last lines to be written.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// The way to standard output.
pub(crate) struct AccessLog {
    format: Format,
    queue: Mutex<Queue>,
    /// Something came for the writer.
    filled: Condvar,
    /// The writer has ended.
    ended: Condvar,
}

thread_local! {
    /// Where a line is put together.
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

#[derive(Default)]
struct Queue {
    waiting: Vec<u8>,
    dropped: u64,
    is_closed: bool,
    has_ended: bool,
}

impl AccessLog {
    /// Starts the writer thread.
    ///
    /// # Errors
    ///
    /// The thread cannot be started.
    pub(crate) fn start(format: Format) -> io::Result<Arc<Self>> {
        let log = Arc::new(Self::unstarted(format));
        let writer = Arc::clone(&log);
        thread::Builder::new()
            .name("access-log".into())
            .spawn(move || {
                if let Err(error) = writer.write_to(&mut io::stdout().lock()) {
                    say(&format_args!(
                        "the access log stops: standard output: {error}"
                    ));
                }
                writer.lock().has_ended = true;
                writer.ended.notify_all();
            })?;
        Ok(log)
    }

    pub(super) fn unstarted(format: Format) -> Self {
        Self {
            format,
            queue: Mutex::default(),
            filled: Condvar::new(),
            ended: Condvar::new(),
        }
    }

    /// Lines that did not fit into the buffer.
    pub(crate) fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    pub(super) fn write(&self, record: &Record) {
        LINE.with_borrow_mut(|line| {
            line.clear();
            record.write(self.format, line);
            self.push(line);
        });
    }

    /// Puts a line into the buffer, or counts it as dropped. Never waits for standard output.
    fn push(&self, line: &[u8]) {
        let mut queue = self.lock();
        if queue.has_ended {
            return;
        }
        if queue.waiting.len() + line.len() > MAX_WAITING_BYTES {
            queue.dropped += 1;
            return;
        }
        let was_empty = queue.waiting.is_empty();
        queue.waiting.extend_from_slice(line);
        drop(queue);
        if was_empty {
            self.filled.notify_one();
        }
    }

    /// Lets the writer write what waits, and waits for it, but not for ever.
    pub(crate) fn close(&self) {
        let mut queue = self.lock();
        queue.is_closed = true;
        self.filled.notify_one();
        let _ = self
            .ended
            .wait_timeout_while(queue, CLOSE_PATIENCE, |queue| !queue.has_ended);
    }

    /// Writes lines until the log is closed.
    fn write_to(&self, out: &mut dyn io::Write) -> io::Result<()> {
        let mut lines = Vec::new();
        loop {
            {
                let queue = self.lock();
                let mut queue = self
                    .filled
                    .wait_while(queue, |queue| queue.waiting.is_empty() && !queue.is_closed)
                    .unwrap_or_else(PoisonError::into_inner);
                if queue.waiting.is_empty() {
                    return Ok(());
                }
                lines.clear();
                std::mem::swap(&mut lines, &mut queue.waiting);
            }
            out.write_all(&lines)?;
            out.flush()?;
        }
    }

    /// The lines that wait, for tests.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> Vec<u8> {
        self.lock().waiting.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn lines_come_out_in_order_and_the_rest_is_written_at_the_end() {
        let log = AccessLog::unstarted(Format::Text);
        for line in ["a\n", "b\n", "c\n"] {
            log.push(line.as_bytes());
        }
        log.lock().is_closed = true;
        let mut out = Vec::new();
        log.write_to(&mut out).unwrap();
        assert_eq!(out, b"a\nb\nc\n");
    }

    #[test]
    fn lines_that_do_not_fit_are_counted() {
        let log = AccessLog::unstarted(Format::Text);
        let line = [b'x'; 1024];
        for _ in 0..4096 + 3 {
            log.push(&line);
        }
        assert_eq!(log.dropped(), 3);
        assert_eq!(log.lock().waiting.len(), MAX_WAITING_BYTES);
    }

    #[test]
    fn a_line_is_neither_kept_nor_counted_once_the_reader_has_gone() {
        let log = AccessLog::unstarted(Format::Text);
        log.lock().has_ended = true;
        log.push(b"a\n");
        assert!(log.lock().waiting.is_empty());
        assert_eq!(log.dropped(), 0);
    }
}
