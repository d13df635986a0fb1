//! The service that logs: around the one that answers, and only there when the log is on.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::header::{REFERER, USER_AGENT};
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::Service;
use pin_project_lite::pin_project;

use super::delivery::{Answer, Ledger};
use super::line::{Record, RequestLine};
use crate::commands::serve::connection::{AnswerBody, AnswerFuture, Answers, ConnectionObserver};

/// What a request that ended without an answer is logged as; nginx uses the same.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Answers requests and enters the answers in the connection's ledger.
pub(crate) struct Logged {
    answers: Answers,
    ledger: Arc<Ledger>,
}

impl Logged {
    pub(crate) fn new(answers: Answers, ledger: Arc<Ledger>) -> Self {
        Self { answers, ledger }
    }
}

impl Service<Request<Incoming>> for Logged {
    type Response = Response<LoggedBody>;
    type Error = Infallible;
    type Future = LoggedFuture;

    fn call(&self, request: Request<Incoming>) -> LoggedFuture {
        let record = Record {
            at: SystemTime::now(),
            took: Duration::ZERO,
            client: self.ledger.client().clone(),
            request: Some(RequestLine {
                method: request.method().clone(),
                target: request.uri().clone(),
                version: request.version(),
                referer: request.headers().get(REFERER).cloned(),
                agent: request.headers().get(USER_AGENT).cloned(),
            }),
            status: StatusCode::from_u16(CLIENT_CLOSED_REQUEST).unwrap_or_default(),
            bytes: 0,
            is_complete: false,
        };
        LoggedFuture {
            answer: self.answers.call(request),
            asked: Asked {
                ledger: Arc::clone(&self.ledger),
                started: Instant::now(),
                record: Some(record),
            },
        }
    }
}

/// A request that waits for its answer. Dropped before there is one, it is logged without.
struct Asked {
    ledger: Arc<Ledger>,
    started: Instant,
    record: Option<Record>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(mut record) = self.record.take() {
            record.took = self.started.elapsed();
            self.ledger.write(&record);
        }
    }
}

pin_project! {
    /// The answer to come, and what will be said of it.
    pub(crate) struct LoggedFuture {
        #[pin]
        answer: AnswerFuture,
        asked: Asked,
    }
}

impl Future for LoggedFuture {
    type Output = Result<Response<LoggedBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = match ready!(this.answer.poll(cx)) {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let Asked {
            ledger,
            started,
            record,
        } = this.asked;
        if let Some(mut record) = record.take() {
            record.status = response.status();
            let is_head = record
                .request
                .as_ref()
                .is_some_and(|r| r.method == Method::HEAD);
            let has_ended = is_head || response.body().is_end_stream();
            ledger.begin(Answer::new(*started, record, has_ended));
        }
        let ledger = Arc::clone(ledger);
        Poll::Ready(Ok(response.map(|body| LoggedBody { body, ledger })))
    }
}

pin_project! {
    /// A body whose frames are noted in the ledger.
    pub(crate) struct LoggedBody {
        #[pin]
        body: AnswerBody,
        ledger: Arc<Ledger>,
    }
}

impl Body for LoggedBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let mut this = self.project();
        let frame = ready!(this.body.as_mut().poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                this.ledger.yielded(bytes, this.body.is_end_stream());
            }
            None => this.ledger.yielded(0, true),
            // It never ends, so it is never complete.
            Some(Err(_)) => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Logs the requests that hyper refuses before any service sees them.
#[derive(Clone)]
pub(crate) struct LogObserver {
    ledger: Arc<Ledger>,
}

impl LogObserver {
    pub(crate) fn new(ledger: Arc<Ledger>) -> Self {
        Self { ledger }
    }
}

impl ConnectionObserver for LogObserver {
    fn wrote(&self, offered: usize, outcome: &Poll<io::Result<usize>>) {
        self.ledger.wrote(offered, outcome);
    }

    fn failed(&self, error: &hyper::Error) {
        if !error.is_parse() || error.is_parse_version_h2() {
            return;
        }
        let record = Record {
            at: SystemTime::now(),
            took: Duration::ZERO,
            client: self.ledger.client().clone(),
            request: None,
            status: match error.is_parse_too_large() {
                true => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                false => StatusCode::BAD_REQUEST,
            },
            bytes: 0,
            is_complete: self.ledger.is_all_taken(),
        };
        self.ledger.write(&record);
    }
}
