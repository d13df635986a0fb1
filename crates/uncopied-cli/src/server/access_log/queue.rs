//! The buffer of log lines, and the thread that writes them to standard output or to a file.

use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;

use crate::error::{Error, kernel_text};
use crate::output::say;
use crate::server::warning::{WarningKind, warn_limited};

use super::sink::LogSink;
use super::text::{LineFormat, LogLine};

/// The maximum size of the buffer that holds lines until they are written.
const MAX_BUFFERED_BYTES: usize = 4 << 20;
/// The maximum size of one write, so that lines count as written soon after they were.
const MAX_WRITE_BYTES: usize = 64 << 10;
/// The time between a failed write and the next attempt.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// The number of bytes for which the writer thread waits before it writes, but at most for
/// [`GATHER_TIME`]: a busy server would otherwise wake the thread for every few lines.
const GATHERED_BYTES: usize = 64 << 10;
/// The maximum time for which a line waits for others.
const GATHER_TIME: Duration = Duration::from_millis(20);
/// The maximum time that [`AccessLog::close`] waits for the last lines to be written.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The access log. A dedicated thread writes the lines.
pub(crate) struct AccessLog {
    format: LineFormat,
    queue: Mutex<LineQueue>,
    /// Wakes the writer thread when lines arrive, or when it is to reopen the file or to end.
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
    /// The number of lines in `lines`, and of those that the writer thread has taken but not yet
    /// written.
    unwritten_lines: u64,
    dropped_lines: u64,
    is_closed: bool,
    is_to_reopen: bool,
    has_writer_ended: bool,
}

impl AccessLog {
    /// Opens the file for appending, or uses standard output if there is none, and starts the
    /// writer thread.
    ///
    /// # Errors
    ///
    /// The file cannot be opened, or the thread cannot be started.
    pub(crate) fn open(format: LineFormat, path: Option<&Path>) -> Result<Arc<Self>, Error> {
        let sink = match path {
            None => {
                LogSink::stdout().map_err(Error::setup("use standard output for the access log"))
            }
            Some(path) => LogSink::open(path).map_err(|source| Error::LogFile {
                path: path.display().to_string(),
                source,
            }),
        }?;
        Self::start(format, sink).map_err(Error::setup("start the access log thread"))
    }

    fn start(format: LineFormat, sink: LogSink) -> io::Result<Arc<Self>> {
        let log = Arc::new(Self::unstarted(format));
        let shared = Arc::clone(&log);
        thread::Builder::new()
            .name("access-log".into())
            .spawn(move || {
                LogWriter::new(&shared, sink).run();
                shared.lock().has_writer_ended = true;
                shared.writer_ended.notify_all();
            })?;
        Ok(log)
    }

    fn unstarted(format: LineFormat) -> Self {
        Self {
            format,
            queue: Mutex::default(),
            filled: Condvar::new(),
            writer_ended: Condvar::new(),
        }
    }

    /// Returns the number of lines that were lost: they did not fit into the buffer, or could not
    /// be written before the log was closed.
    pub(crate) fn dropped_lines(&self) -> u64 {
        let queue = self.lock();
        match queue.is_closed {
            true => queue.dropped_lines + queue.unwritten_lines,
            false => queue.dropped_lines,
        }
    }

    /// Adds a line for the record, or counts it as dropped. Never waits for the writer thread.
    pub(crate) fn write(&self, record: &impl LogLine) {
        LINE_BUFFER.with_borrow_mut(|line| {
            line.clear();
            record.write(self.format, line);
            line.push(b'\n');
            self.push(line);
        });
    }

    /// Appends a line to the buffer, or counts it as dropped.
    fn push(&self, line: &[u8]) {
        let mut queue = self.lock();
        if queue.has_writer_ended {
            return;
        }
        if queue.lines.len() + line.len() > MAX_BUFFERED_BYTES {
            queue.dropped_lines += 1;
            return;
        }
        let before = queue.lines.len();
        queue.lines.extend_from_slice(line);
        queue.unwritten_lines += 1;
        let after = queue.lines.len();
        drop(queue);
        // Waking the writer thread costs more than a line does.
        if before == 0 || (before < GATHERED_BYTES && after >= GATHERED_BYTES) {
            self.filled.notify_one();
        }
    }

    /// Tells the writer thread to open the log's file again. Does not wait for it.
    pub(crate) fn reopen(&self) {
        self.lock().is_to_reopen = true;
        self.filled.notify_one();
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

    fn lock(&self) -> MutexGuard<'_, LineQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The state of the writer thread.
///
/// If a write fails, for example because the disk is full, the thread keeps the lines and tries
/// again, from the first byte that was not written. So a line that was written in part is completed
/// once there is room. Meanwhile, the buffer fills up, and further lines are counted as dropped.
struct LogWriter<'a> {
    log: &'a AccessLog,
    sink: LogSink,
    /// The lines that are being written.
    batch: Vec<u8>,
    /// The number of bytes of `batch` that have been written.
    written: usize,
    /// If the last write failed, the number of lines that had been dropped before it.
    dropped_before_failure: Option<u64>,
}

/// What the writer thread has to do.
struct Orders {
    is_to_reopen: bool,
    is_closed: bool,
}

impl<'a> LogWriter<'a> {
    fn new(log: &'a AccessLog, sink: LogSink) -> Self {
        Self {
            log,
            sink,
            batch: Vec::new(),
            written: 0,
            dropped_before_failure: None,
        }
    }

    /// Writes lines until the log is closed and all of them are written, until a write fails after
    /// the log was closed, or until the reader of standard output goes away.
    fn run(mut self) {
        loop {
            let orders = self.wait();
            if orders.is_to_reopen {
                self.reopen();
            }
            if self.written == self.batch.len() {
                if orders.is_closed {
                    return;
                }
                continue;
            }
            match self.sink.write(next_write(&self.batch[self.written..])) {
                Ok(bytes) => self.advance(bytes),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if self.sink.is_closed_by(&error) => {
                    let text = kernel_text(&error);
                    say(&format_args!(
                        "access log stopped: cannot write to {}: {text}",
                        self.sink
                    ));
                    // Nobody wants these lines, so they are not lost.
                    self.log.lock().unwritten_lines = 0;
                    return;
                }
                Err(_) if orders.is_closed => return self.sink.remove_fragment(),
                Err(error) => self.fail(&error),
            }
        }
    }

    /// Waits until there are lines to write, or something else to do. After a failure, waits until
    /// the next attempt.
    fn wait(&mut self) -> Orders {
        let queue = self.log.lock();
        let is_ordered = |queue: &LineQueue| queue.is_closed || queue.is_to_reopen;
        let has_lines = self.written < self.batch.len();
        let mut queue = if self.dropped_before_failure.is_some() {
            self.log
                .filled
                .wait_timeout_while(queue, RETRY_INTERVAL, |queue| !is_ordered(queue))
                .map_or_else(|poisoned| poisoned.into_inner().0, |(queue, _)| queue)
        } else {
            self.log
                .filled
                .wait_while(queue, |queue| {
                    !has_lines && queue.lines.is_empty() && !is_ordered(queue)
                })
                .unwrap_or_else(PoisonError::into_inner)
        };
        if !has_lines {
            let filled = &self.log.filled;
            queue = filled
                .wait_timeout_while(queue, GATHER_TIME, |queue| {
                    queue.lines.len() < GATHERED_BYTES && !is_ordered(queue)
                })
                .map_or_else(|poisoned| poisoned.into_inner().0, |(queue, _)| queue);
        }
        if !has_lines {
            self.batch.clear();
            self.written = 0;
            std::mem::swap(&mut self.batch, &mut queue.lines);
        }
        Orders {
            is_to_reopen: std::mem::take(&mut queue.is_to_reopen),
            is_closed: queue.is_closed,
        }
    }

    fn advance(&mut self, bytes: usize) {
        let new = &self.batch[self.written..self.written + bytes];
        let lines = new.iter().filter(|&&byte| byte == b'\n').count() as u64;
        self.written += bytes;
        let mut queue = self.log.lock();
        queue.unwritten_lines = queue.unwritten_lines.saturating_sub(lines);
        let dropped = queue.dropped_lines;
        drop(queue);
        if let Some(before) = self.dropped_before_failure.take() {
            let lost = dropped.saturating_sub(before);
            let message = format_args!(
                "access log: writing to {} again; lines lost meanwhile: {lost}",
                self.sink
            );
            warn_limited(WarningKind::AccessLog, &message);
        }
    }

    fn fail(&mut self, error: &io::Error) {
        let remedy = match Errno::from_io_error(error) {
            Some(Errno::NOSPC | Errno::DQUOT) => "make room",
            Some(Errno::FBIG) => "raise the limit on the size of files (ulimit -f, LimitFSIZE=)",
            _ => "see to it that it can be written",
        };
        let message = format_args!(
            "access log: cannot write to {}: {}; {remedy}. Up to 4 MiB of lines are kept until \
             then, and further ones are lost",
            self.sink,
            kernel_text(error)
        );
        // Once per failure, and not for each attempt.
        if self.dropped_before_failure.is_none() {
            self.dropped_before_failure = Some(self.log.lock().dropped_lines);
            warn_limited(WarningKind::AccessLog, &message);
        }
    }

    fn reopen(&mut self) {
        match self.sink.reopen() {
            Ok(unfinished) => self.written = self.written.saturating_sub(unfinished),
            Err(error) => {
                let text = kernel_text(&error);
                let message = format_args!(
                    "access log: cannot reopen {}: {text}; the log continues in the old file",
                    self.sink
                );
                warn_limited(WarningKind::AccessLog, &message);
            }
        }
    }
}

/// Returns the bytes to write next: as many whole lines as fit into one write.
fn next_write(lines: &[u8]) -> &[u8] {
    let most = &lines[..lines.len().min(MAX_WRITE_BYTES)];
    match most.iter().rposition(|&byte| byte == b'\n') {
        Some(end) => &most[..=end],
        None => most,
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
        assert_eq!(log.lock().unwritten_lines, 3);
        log.lock().is_closed = true;
        let file = tempfile::NamedTempFile::new().unwrap();
        LogWriter::new(&log, LogSink::open(file.path()).unwrap()).run();
        assert_eq!(std::fs::read(file.path()).unwrap(), b"a\nb\nc\n");
        assert_eq!(log.dropped_lines(), 0);
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

    #[test]
    fn lines_that_cannot_be_written_before_the_log_closes_are_counted() {
        let log = AccessLog::unstarted(LineFormat::Text);
        log.push(b"a\n");
        log.push(b"b\n");
        log.lock().is_closed = true;
        let full = LogSink::open(std::path::Path::new("/dev/full")).unwrap();
        LogWriter::new(&log, full).run();
        assert_eq!(log.dropped_lines(), 2);
    }

    #[test]
    fn a_write_ends_with_a_line_unless_the_line_is_too_long() {
        assert_eq!(next_write(b"a\nb\n"), b"a\nb\n");
        let mut lines = vec![b'a'; MAX_WRITE_BYTES - 2];
        lines.extend_from_slice(b"\nbc\n");
        assert_eq!(next_write(&lines).len(), MAX_WRITE_BYTES - 1);
        let long = vec![b'a'; MAX_WRITE_BYTES + 1];
        assert_eq!(next_write(&long).len(), MAX_WRITE_BYTES);
    }
}
