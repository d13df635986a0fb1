//! The service that logs: around the one that answers, and only there when the log is on.

use std::cell::RefCell;
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
use uncopied_http::{Address, FileBody};

use super::AccessLog;
use super::line::{Record, RequestLine};
use crate::serve::connection::{AnswerFuture, Answers, OnError};

/// What a request that ended without an answer is logged as; nginx uses the same.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Answers requests and logs them.
pub(crate) struct Logged {
    answers: Answers,
    log: Arc<AccessLog>,
    client: Address,
}

impl Logged {
    pub(crate) fn new(answers: Answers, log: Arc<AccessLog>, client: Address) -> Self {
        Self {
            answers,
            log,
            client,
        }
    }
}

impl Service<Request<Incoming>> for Logged {
    type Response = Response<LoggedBody>;
    type Error = Infallible;
    type Future = LoggedFuture;

    fn call(&self, request: Request<Incoming>) -> LoggedFuture {
        let entry = Entry {
            log: Arc::clone(&self.log),
            started: Instant::now(),
            record: Record {
                at: SystemTime::now(),
                took: Duration::ZERO,
                client: self.client.clone(),
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
            },
        };
        LoggedFuture {
            answer: self.answers.call(request),
            entry: Some(entry),
        }
    }
}

pin_project! {
    /// The answer to come, and what will be said of it.
    pub(crate) struct LoggedFuture {
        #[pin]
        answer: AnswerFuture,
        entry: Option<Entry>,
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
        let mut entry = this.entry.take();
        if let Some(Entry { record, .. }) = &mut entry {
            record.status = response.status();
            let is_head = record
                .request
                .as_ref()
                .is_some_and(|r| r.method == Method::HEAD);
            record.is_complete = is_head || response.body().is_end_stream();
        }
        Poll::Ready(Ok(response.map(|body| LoggedBody { body, entry })))
    }
}

pin_project! {
    /// A body that counts its bytes. The line is written when it is dropped: after its end, or when
    /// the connection is.
    pub(crate) struct LoggedBody {
        #[pin]
        body: FileBody,
        entry: Option<Entry>,
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
        if let Some(Entry { record, .. }) = this.entry {
            if let Some(Ok(frame)) = &frame {
                record.bytes += frame.data_ref().map_or(0, Bytes::len) as u64;
            }
            record.is_complete = frame.is_none() || this.body.is_end_stream();
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

/// A line in the making. It is logged when dropped, so that none is forgotten.
struct Entry {
    log: Arc<AccessLog>,
    started: Instant,
    record: Record,
}

thread_local! {
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.record.took = self.started.elapsed();
        write(&self.log, &self.record);
    }
}

fn write(log: &AccessLog, record: &Record) {
    LINE.with_borrow_mut(|line| {
        line.clear();
        record.write(log.format, line);
        log.push(line);
    });
}

/// Logs the requests that hyper refuses before any service sees them.
pub(crate) struct LogRefusals {
    log: Arc<AccessLog>,
    client: Address,
}

impl LogRefusals {
    pub(crate) fn new(log: Arc<AccessLog>, client: Address) -> Self {
        Self { log, client }
    }
}

impl OnError for LogRefusals {
    fn ended(&self, error: &hyper::Error) {
        if !error.is_parse() || error.is_parse_version_h2() {
            return;
        }
        let record = Record {
            at: SystemTime::now(),
            took: Duration::ZERO,
            client: self.client.clone(),
            request: None,
            status: match error.is_parse_too_large() {
                true => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                false => StatusCode::BAD_REQUEST,
            },
            bytes: 0,
            is_complete: true,
        };
        write(&self.log, &record);
    }
}
