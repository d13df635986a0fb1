//! Which answers the socket has taken.
//!
//! hyper asks a body for its frames long before the socket takes their bytes: a large file's body is a
//! single frame, an address. So a line waits here until its answer has been written, byte for byte.
//!
//! Everything that a connection sends is one row of bytes, answer after answer. At each write hyper
//! offers all that it still holds of that row, so the row's end so far is what has been taken plus
//! what is offered. Of the answers in hyper's hands only the last can have yielded a body (a head is
//! encoded only once no body waits), hence that body begins as many bytes before this end as it has
//! yielded.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Instant;

use uncopied_http::Address;

use super::line::Record;
use super::queue::AccessLog;

/// The answers of one connection that the socket has not taken whole yet.
///
/// They are logged when it has. Those that it never takes are logged when the ledger is dropped, and
/// with it the connection.
pub(crate) struct Ledger {
    log: Arc<AccessLog>,
    client: Address,
    row: Mutex<Row>,
}

/// What a connection sends. Positions are bytes since the connection began.
#[derive(Default)]
struct Row {
    /// What the socket has taken.
    taken: u64,
    /// The end of what hyper has put into the row.
    end: u64,
    answers: VecDeque<Answer>,
}

/// An answer on its way, and what will be said of it.
pub(super) struct Answer {
    pub(super) started: Instant,
    pub(super) record: Record,
    /// Whether the body has no more bytes to yield.
    pub(super) has_ended: bool,
    yielded: u64,
    /// Where the body begins in the row, once a write has told.
    body_at: Option<u64>,
}

impl Answer {
    pub(super) fn new(started: Instant, record: Record, has_ended: bool) -> Self {
        Self {
            started,
            record,
            has_ended,
            yielded: 0,
            body_at: None,
        }
    }

    /// The answer's line, if the row has been taken up to there.
    fn line(&mut self, taken: u64) -> &Record {
        let record = &mut self.record;
        if let Some(body_at) = self.body_at {
            record.bytes = taken.saturating_sub(body_at).min(self.yielded);
            record.is_complete = self.has_ended && record.bytes == self.yielded && taken >= body_at;
        }
        record.took = self.started.elapsed();
        record
    }
}

impl Ledger {
    pub(crate) fn new(log: Arc<AccessLog>, client: Address) -> Arc<Self> {
        Arc::new(Self {
            log,
            client,
            row: Mutex::default(),
        })
    }

    pub(super) fn client(&self) -> &Address {
        &self.client
    }

    /// Writes a line.
    pub(super) fn write(&self, record: &Record) {
        self.log.write(record);
    }

    /// Takes up an answer that hyper is about to send.
    pub(super) fn begin(&self, answer: Answer) {
        self.row().answers.push_back(answer);
    }

    /// Notes that the body of the last answer has yielded `bytes`, and whether these were the last.
    pub(super) fn yielded(&self, bytes: usize, has_ended: bool) {
        if let Some(answer) = self.row().answers.back_mut() {
            answer.yielded += bytes as u64;
            answer.has_ended = has_ended;
        }
    }

    /// Notes what came of a write in which hyper offered `offered` bytes, all that it held.
    pub(crate) fn wrote(&self, offered: usize, outcome: &Poll<io::Result<usize>>) {
        let taken = match outcome {
            Poll::Ready(Ok(taken)) => *taken,
            Poll::Ready(Err(_)) | Poll::Pending => 0,
        };
        let mut row = self.row();
        row.note(offered as u64, taken as u64);
        while let Some(record) = row.next_complete() {
            self.write(&record);
        }
    }

    /// Whether the socket has taken everything that hyper has offered.
    pub(super) fn is_all_taken(&self) -> bool {
        let row = self.row();
        row.taken == row.end
    }

    fn row(&self) -> MutexGuard<'_, Row> {
        self.row.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        let row = self.row.get_mut().unwrap_or_else(PoisonError::into_inner);
        for answer in &mut row.answers {
            self.log.write(answer.line(row.taken));
        }
    }
}

impl Row {
    fn note(&mut self, offered: u64, taken: u64) {
        self.end = self.taken + offered;
        let last = self.answers.back().map_or(0, |answer| answer.yielded);
        for answer in self.answers.iter_mut().rev() {
            if answer.body_at.is_some() {
                break;
            }
            // Those before the last have no body. Where their heads end is not known, but it is
            // before the last one's body.
            answer.body_at = Some(self.end.saturating_sub(last));
        }
        self.taken += taken;
    }

    /// Takes the first answer out if the socket has taken all of it.
    fn next_complete(&mut self) -> Option<Record> {
        let first = self.answers.front_mut()?;
        if !first.line(self.taken).is_complete {
            return None;
        }
        self.answers.pop_front().map(|answer| answer.record)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::{Duration, SystemTime};

    use http::StatusCode;

    use super::*;

    fn answer(status: u16, has_ended: bool) -> Answer {
        let record = Record {
            at: SystemTime::now(),
            took: Duration::ZERO,
            client: Address::Unix,
            request: None,
            status: StatusCode::from_u16(status).unwrap(),
            bytes: 0,
            is_complete: false,
        };
        Answer::new(Instant::now(), record, has_ended)
    }

    struct Scene {
        log: Arc<AccessLog>,
        ledger: Arc<Ledger>,
    }

    impl Scene {
        fn new() -> Self {
            let log = Arc::new(AccessLog::unstarted(super::super::line::Format::Json));
            let ledger = Ledger::new(Arc::clone(&log), Address::Unix);
            Self { log, ledger }
        }

        fn wrote(&self, offered: usize, taken: usize) {
            self.ledger.wrote(offered, &Poll::Ready(Ok(taken)));
        }

        /// What the lines so far say: status, bytes, complete.
        fn lines(&self) -> Vec<String> {
            let text = String::from_utf8(self.log.waiting()).unwrap();
            let part = |line: &str| {
                let from = line.find("\"status\":").unwrap();
                line[from..line.find(",\"seconds\"").unwrap()].to_owned()
            };
            text.lines().map(part).collect()
        }
    }

    fn line(status: u16, bytes: u64, complete: bool) -> String {
        format!("\"status\":{status},\"bytes\":{bytes},\"complete\":{complete}")
    }

    #[test]
    fn an_answer_is_logged_once_its_last_byte_is_taken() {
        let scene = Scene::new();
        scene.ledger.begin(answer(200, false));
        scene.ledger.yielded(1000, true);
        scene.wrote(1100, 100);
        scene.wrote(1000, 999);
        scene.ledger.wrote(1, &Poll::Pending);
        assert!(scene.lines().is_empty(), "a byte is still owed");
        scene.wrote(1, 1);
        assert_eq!(scene.lines(), [line(200, 1000, true)]);
    }

    #[test]
    fn an_answer_that_is_cut_counts_what_was_taken_of_its_body() {
        for (taken, bytes) in [(0, 0), (99, 0), (100, 0), (101, 1), (1099, 999)] {
            let scene = Scene::new();
            scene.ledger.begin(answer(200, false));
            scene.ledger.yielded(1000, true);
            scene.wrote(1100, taken);
            assert!(scene.lines().is_empty());
            let Scene { log, ledger } = scene;
            drop(ledger);
            let ledger = Ledger::new(Arc::clone(&log), Address::Unix);
            assert_eq!(Scene { log, ledger }.lines(), [line(200, bytes, false)]);
        }
    }

    #[test]
    fn a_body_may_yield_while_its_head_is_being_written() {
        let scene = Scene::new();
        scene.ledger.begin(answer(200, false));
        scene.wrote(100, 60);
        scene.ledger.yielded(10, false);
        scene.wrote(50, 50);
        assert!(scene.lines().is_empty(), "the body has not ended");
        scene.ledger.yielded(5, true);
        scene.wrote(5, 5);
        assert_eq!(scene.lines(), [line(200, 15, true)]);
    }

    #[test]
    fn heads_that_wait_together_are_logged_in_order() {
        let scene = Scene::new();
        scene.ledger.begin(answer(304, true));
        scene.wrote(100, 10);
        scene.ledger.begin(answer(404, true));
        scene.ledger.begin(answer(200, false));
        scene.ledger.yielded(7, true);
        scene.wrote(90 + 100 + 100 + 7, 90);
        assert_eq!(scene.lines(), [line(304, 0, true)]);
        scene.wrote(207, 200);
        assert_eq!(scene.lines()[1..], [line(404, 0, true)]);
        scene.wrote(7, 7);
        assert_eq!(scene.lines()[2..], [line(200, 7, true)]);
        assert!(scene.ledger.is_all_taken());
    }

    #[test]
    fn an_answer_that_was_never_offered_is_not_complete() {
        let scene = Scene::new();
        scene.ledger.begin(answer(304, true));
        let Scene { log, ledger } = scene;
        drop(ledger);
        let ledger = Ledger::new(Arc::clone(&log), Address::Unix);
        assert_eq!(Scene { log, ledger }.lines(), [line(304, 0, false)]);
    }
}
