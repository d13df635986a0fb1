//! Tracks which responses have been sent completely, so that they can be logged.
//!
//! hyper takes the frames of a body long before the socket accepts their bytes: the whole body of a
//! large file is a single frame that refers to the mapped file. So the log record of a response
//! waits here until the socket has accepted the last byte of that response.
//!
//! On each connection, hyper sends one stream of bytes: one response after another. Every write
//! offers the socket all bytes that hyper holds, which are those that the socket has not yet
//! accepted. In the stream, the position at which the offered bytes end is therefore the number of
//! bytes accepted before the write plus the number of bytes offered. Only the last response in the
//! offered bytes can have a body, because hyper encodes the next head only once the socket has
//! accepted all bytes of the current body. So the offered bytes end with that body, and the body
//! begins at the end of the offered bytes minus the number of bytes that the body has yielded so
//! far.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Instant;

use uncopied_http::Address;

use super::line::LogRecord;
use super::queue::AccessLog;

/// The responses of one connection that the socket has not yet accepted completely.
///
/// A response is logged once the socket has accepted all of it. When the connection ends, the
/// tracker is dropped. It then logs the remaining responses, each with the number of body bytes
/// that the socket has accepted.
pub(crate) struct DeliveryTracker {
    log: Arc<AccessLog>,
    client: Address,
    outgoing: Mutex<OutgoingBytes>,
}

/// The stream of bytes that a connection sends. Positions in the stream are counted from the start
/// of the connection.
#[derive(Default)]
struct OutgoingBytes {
    /// The number of bytes that the socket has accepted.
    taken: u64,
    /// The position after the last byte that hyper has offered.
    end: u64,
    responses: VecDeque<PendingResponse>,
}

/// A response that is being sent, and its log record.
pub(super) struct PendingResponse {
    started: Instant,
    record: LogRecord,
    /// Whether the body has yielded all its bytes. Also true if there is no body.
    has_body_ended: bool,
    /// The number of bytes that the body has yielded to hyper.
    yielded: u64,
    /// The position of the body's first byte. `None` until hyper first offers bytes of the response
    /// to the socket. For a response without a body, this is a position at or after the end of its
    /// head.
    body_position: Option<u64>,
}

impl PendingResponse {
    pub(super) fn new(started: Instant, record: LogRecord, has_body_ended: bool) -> Self {
        Self {
            started,
            record,
            has_body_ended,
            yielded: 0,
            body_position: None,
        }
    }

    /// Updates and returns the log record. `taken` is the number of bytes that the socket has
    /// accepted since the connection began.
    fn update_record(&mut self, taken: u64) -> &LogRecord {
        let record = &mut self.record;
        if let Some(body_position) = self.body_position {
            record.body_bytes = taken.saturating_sub(body_position).min(self.yielded);
            record.is_complete =
                self.has_body_ended && record.body_bytes == self.yielded && taken >= body_position;
        }
        record.took = self.started.elapsed();
        record
    }
}

impl DeliveryTracker {
    pub(crate) fn new(log: Arc<AccessLog>, client: Address) -> Arc<Self> {
        Arc::new(Self {
            log,
            client,
            outgoing: Mutex::default(),
        })
    }

    pub(super) fn client(&self) -> &Address {
        &self.client
    }

    /// Writes a log line.
    pub(super) fn write(&self, record: &LogRecord) {
        self.log.write(record);
    }

    /// Adds a response that hyper is about to send.
    pub(super) fn add(&self, response: PendingResponse) {
        self.outgoing().responses.push_back(response);
    }

    /// Records that the body of the last response has yielded another `bytes` bytes, and whether it
    /// has ended.
    pub(super) fn note_body_bytes(&self, bytes: usize, has_body_ended: bool) {
        if let Some(response) = self.outgoing().responses.back_mut() {
            response.yielded += bytes as u64;
            response.has_body_ended = has_body_ended;
        }
    }

    /// Records the outcome of a write, and logs the responses that are now complete. `offered` is
    /// the number of bytes that hyper offered to the socket. These are always all bytes that hyper
    /// holds, so their end locates the body of the last response (see the module documentation).
    pub(super) fn note_write(&self, offered: usize, outcome: &Poll<io::Result<usize>>) {
        let taken = match outcome {
            Poll::Ready(Ok(taken)) => *taken,
            Poll::Ready(Err(_)) | Poll::Pending => 0,
        };
        let mut outgoing = self.outgoing();
        outgoing.note_write(offered as u64, taken as u64);
        while let Some(record) = outgoing.pop_complete() {
            self.write(&record);
        }
    }

    /// Whether the socket has accepted everything that hyper has offered.
    pub(super) fn is_all_taken(&self) -> bool {
        let outgoing = self.outgoing();
        outgoing.taken == outgoing.end
    }

    fn outgoing(&self) -> MutexGuard<'_, OutgoingBytes> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for DeliveryTracker {
    fn drop(&mut self) {
        let outgoing = self
            .outgoing
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        for response in &mut outgoing.responses {
            self.log.write(response.update_record(outgoing.taken));
        }
    }
}

impl OutgoingBytes {
    fn note_write(&mut self, offered: u64, taken: u64) {
        self.end = self.taken + offered;
        let last = self.responses.back().map_or(0, |response| response.yielded);
        for response in self.responses.iter_mut().rev() {
            if response.body_position.is_some() {
                break;
            }
            // If hyper offers several new responses at once, only the last can have a body. The
            // exact ends of the other heads are unknown, so all new responses get the position of
            // the last body. Those without a body thus count as complete once the socket has
            // accepted everything before that body.
            response.body_position = Some(self.end.saturating_sub(last));
        }
        self.taken += taken;
    }

    /// Removes the first response and returns its log record, if the socket has accepted all of the
    /// response.
    fn pop_complete(&mut self) -> Option<LogRecord> {
        let first = self.responses.front_mut()?;
        if !first.update_record(self.taken).is_complete {
            return None;
        }
        self.responses.pop_front().map(|response| response.record)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::{Duration, SystemTime};

    use http::StatusCode;

    use super::*;
    use crate::commands::serve::access_log::line::LineFormat;

    fn response(status: u16, has_body_ended: bool) -> PendingResponse {
        let record = LogRecord {
            at: SystemTime::now(),
            took: Duration::ZERO,
            client: Address::Unix,
            request: None,
            status: StatusCode::from_u16(status).unwrap(),
            body_bytes: 0,
            is_complete: false,
        };
        PendingResponse::new(Instant::now(), record, has_body_ended)
    }

    struct Harness {
        log: Arc<AccessLog>,
        tracker: Arc<DeliveryTracker>,
    }

    impl Harness {
        fn new() -> Self {
            let log = Arc::new(AccessLog::unstarted(LineFormat::Json));
            let tracker = DeliveryTracker::new(Arc::clone(&log), Address::Unix);
            Self { log, tracker }
        }

        fn write(&self, offered: usize, taken: usize) {
            self.tracker.note_write(offered, &Poll::Ready(Ok(taken)));
        }

        /// Returns the log lines so far, reduced to status, bytes and completeness.
        fn lines(&self) -> Vec<String> {
            let text = String::from_utf8(self.log.buffered_lines()).unwrap();
            let reduce = |line: &str| {
                let from = line.find("\"status\":").unwrap();
                line[from..line.find(",\"seconds\"").unwrap()].to_owned()
            };
            text.lines().map(reduce).collect()
        }
    }

    fn line(status: u16, bytes: u64, complete: bool) -> String {
        format!("\"status\":{status},\"bytes\":{bytes},\"complete\":{complete}")
    }

    #[test]
    fn a_response_is_logged_once_its_last_byte_is_taken() {
        let harness = Harness::new();
        harness.tracker.add(response(200, false));
        harness.tracker.note_body_bytes(1000, true);
        harness.write(1100, 100);
        harness.write(1000, 999);
        harness.tracker.note_write(1, &Poll::Pending);
        assert!(harness.lines().is_empty(), "a byte is missing");
        harness.write(1, 1);
        assert_eq!(harness.lines(), [line(200, 1000, true)]);
    }

    #[test]
    fn a_response_that_is_cut_short_counts_the_body_bytes_taken() {
        for (taken, bytes) in [(0, 0), (99, 0), (100, 0), (101, 1), (1099, 999)] {
            let harness = Harness::new();
            harness.tracker.add(response(200, false));
            harness.tracker.note_body_bytes(1000, true);
            harness.write(1100, taken);
            assert!(harness.lines().is_empty());
            let Harness { log, tracker } = harness;
            drop(tracker);
            let tracker = DeliveryTracker::new(Arc::clone(&log), Address::Unix);
            assert_eq!(Harness { log, tracker }.lines(), [line(200, bytes, false)]);
        }
    }

    #[test]
    fn a_body_may_yield_bytes_while_its_head_is_written() {
        let harness = Harness::new();
        harness.tracker.add(response(200, false));
        harness.write(100, 60);
        harness.tracker.note_body_bytes(10, false);
        harness.write(50, 50);
        assert!(harness.lines().is_empty(), "the body has not ended");
        harness.tracker.note_body_bytes(5, true);
        harness.write(5, 5);
        assert_eq!(harness.lines(), [line(200, 15, true)]);
    }

    #[test]
    fn responses_without_a_body_are_logged_in_order() {
        let harness = Harness::new();
        harness.tracker.add(response(304, true));
        harness.write(100, 10);
        harness.tracker.add(response(404, true));
        harness.tracker.add(response(200, false));
        harness.tracker.note_body_bytes(7, true);
        harness.write(90 + 100 + 100 + 7, 90);
        assert_eq!(harness.lines(), [line(304, 0, true)]);
        harness.write(207, 200);
        assert_eq!(harness.lines()[1..], [line(404, 0, true)]);
        harness.write(7, 7);
        assert_eq!(harness.lines()[2..], [line(200, 7, true)]);
        assert!(harness.tracker.is_all_taken());
    }

    #[test]
    fn a_response_that_was_never_offered_is_not_complete() {
        let harness = Harness::new();
        harness.tracker.add(response(304, true));
        let Harness { log, tracker } = harness;
        drop(tracker);
        let tracker = DeliveryTracker::new(Arc::clone(&log), Address::Unix);
        assert_eq!(Harness { log, tracker }.lines(), [line(304, 0, false)]);
    }
}
