//! The buffer of log lines, and the thread that writes them to standard output.

use std::cell::RefCell;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::output::say;

use super::line::{LineFormat, LogRecord};

/// The maximum size of the buffer that holds lines until they are written to standard output.
const MAX_BUFFERED_BYTES: usize = 4 << 20;
/// The maximum time that [`AccessLog::close`] waits for the last lines to be written.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The access log. A dedicated thread writes the lines to standard output.
pub(crate) struct AccessLog {
    format: LineFormat,
    queue: Mutex<LineQueue>,
    /// Wakes the writer thread when lines arrive or the log is closed.
    filled: Condvar,
    /// Wakes [`AccessLog::close`] when the writer thread ends.
    writer_ended: Condvar,
}

thread_local! {
    /// A buffer for formatting a line. All lines of this thread use the same buffer, so that
    /// formatting a line does not allocate memory.
    static LINE_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

#[derive(Default)]
struct LineQueue {
    lines: Vec<u8>,
    dropped_lines: u64,
    is_closed: bool,
    has_writer_ended: bool,
}

impl AccessLog {
    /// Starts the writer thread.
    ///
    /// # Errors
    ///
    /// The thread cannot be started.
    pub(crate) fn start(format: LineFormat) -> io::Result<Arc<Self>> {
        let log = Arc::new(Self::unstarted(format));
        let writer = Arc::clone(&log);
        thread::Builder::new()
            .name("access-log".into())
            .spawn(move || {
                if let Err(error) = writer.write_to(&mut io::stdout().lock()) {
                    say(&format_args!(
                        "access log stopped: cannot write to standard output: {error}"
                    ));
                }
                writer.lock().has_writer_ended = true;
                writer.writer_ended.notify_all();
            })?;
        Ok(log)
    }

    pub(super) fn unstarted(format: LineFormat) -> Self {
        Self {
            format,
            queue: Mutex::default(),
            filled: Condvar::new(),
            writer_ended: Condvar::new(),
        }
    }

    /// Returns the number of lines that were dropped because they did not fit into the buffer.
    pub(crate) fn dropped_lines(&self) -> u64 {
        self.lock().dropped_lines
    }

    pub(crate) fn write(&self, record: &LogRecord<'_>) {
        LINE_BUFFER.with_borrow_mut(|line| {
            line.clear();
            record.write(self.format, line);
            self.push(line);
        });
    }

    /// Appends a line to the buffer, or counts it as dropped. Never waits for standard output.
    fn push(&self, line: &[u8]) {
        let mut queue = self.lock();
        if queue.has_writer_ended {
            return;
        }
        if queue.lines.len() + line.len() > MAX_BUFFERED_BYTES {
            queue.dropped_lines += 1;
            return;
        }
        let was_empty = queue.lines.is_empty();
        queue.lines.extend_from_slice(line);
        drop(queue);
        if was_empty {
            self.filled.notify_one();
        }
    }

    /// Closes the log, and waits for up to [`CLOSE_TIMEOUT`] until the writer thread has written
    /// the buffered lines.
    pub(crate) fn close(&self) {
        let mut queue = self.lock();
        queue.is_closed = true;
        self.filled.notify_one();
        let _ = self
            .writer_ended
            .wait_timeout_while(queue, CLOSE_TIMEOUT, |queue| !queue.has_writer_ended);
    }

    /// Writes the buffered lines to `out` until the log is closed and the buffer is empty.
    fn write_to(&self, out: &mut dyn io::Write) -> io::Result<()> {
        let mut lines = Vec::new();
        loop {
            {
                let queue = self.lock();
                let mut queue = self
                    .filled
                    .wait_while(queue, |queue| queue.lines.is_empty() && !queue.is_closed)
                    .unwrap_or_else(PoisonError::into_inner);
                if queue.lines.is_empty() {
                    return Ok(());
                }
                lines.clear();
                std::mem::swap(&mut lines, &mut queue.lines);
            }
            out.write_all(&lines)?;
            out.flush()?;
        }
    }

    fn lock(&self) -> MutexGuard<'_, LineQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn lines_are_written_in_order_and_completely_before_the_log_closes() {
        let log = AccessLog::unstarted(LineFormat::Text);
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
        let log = AccessLog::unstarted(LineFormat::Text);
        let line = [b'x'; 1024];
        for _ in 0..4096 + 3 {
            log.push(&line);
        }
        assert_eq!(log.dropped_lines(), 3);
        assert_eq!(log.lock().lines.len(), MAX_BUFFERED_BYTES);
    }

    #[test]
    fn lines_are_neither_buffered_nor_counted_once_the_writer_has_ended() {
        let log = AccessLog::unstarted(LineFormat::Text);
        log.lock().has_writer_ended = true;
        log.push(b"a\n");
        assert!(log.lock().lines.is_empty());
        assert_eq!(log.dropped_lines(), 0);
    }
}
