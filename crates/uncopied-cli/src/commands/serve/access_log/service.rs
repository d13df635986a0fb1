//! A service that wraps [`FileService`] and logs its requests. Used only if there is an access log.

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

use super::delivery::{DeliveryTracker, PendingResponse};
use super::line::{LogRecord, RequestLine};
use crate::commands::serve::connection::{
    ConnectionObserver, FileService, FileServiceBody, FileServiceFuture,
};

/// The status that is logged if the connection ends before there is a response. nginx logs the same
/// status.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Passes requests to the [`FileService`], and adds its responses to the connection's tracker.
pub(crate) struct LoggedService {
    inner: FileService,
    tracker: Arc<DeliveryTracker>,
}

impl LoggedService {
    pub(crate) fn new(inner: FileService, tracker: Arc<DeliveryTracker>) -> Self {
        Self { inner, tracker }
    }
}

impl Service<Request<Incoming>> for LoggedService {
    type Response = Response<LoggedBody>;
    type Error = Infallible;
    type Future = LoggedFuture;

    fn call(&self, request: Request<Incoming>) -> LoggedFuture {
        let record = LogRecord {
            at: SystemTime::now(),
            took: Duration::ZERO,
            client: self.tracker.client().clone(),
            request: Some(RequestLine {
                method: request.method().clone(),
                target: request.uri().clone(),
                version: request.version(),
                referer: request.headers().get(REFERER).cloned(),
                agent: request.headers().get(USER_AGENT).cloned(),
            }),
            status: StatusCode::from_u16(CLIENT_CLOSED_REQUEST).unwrap_or_default(),
            body_bytes: 0,
            is_complete: false,
        };
        LoggedFuture {
            response: self.inner.call(request),
            pending: PendingRequest {
                tracker: Arc::clone(&self.tracker),
                started: Instant::now(),
                record: Some(record),
            },
        }
    }
}

/// A request that waits for its response. If this is dropped before there is a response, the
/// request is logged with status 499.
struct PendingRequest {
    tracker: Arc<DeliveryTracker>,
    started: Instant,
    record: Option<LogRecord>,
}

impl Drop for PendingRequest {
    fn drop(&mut self) {
        if let Some(mut record) = self.record.take() {
            record.took = self.started.elapsed();
            self.tracker.write(&record);
        }
    }
}

pin_project! {
    /// The future of a response that is to be logged. Adds the response to the tracker once the
    /// response is ready.
    pub(crate) struct LoggedFuture {
        #[pin]
        response: FileServiceFuture,
        pending: PendingRequest,
    }
}

impl Future for LoggedFuture {
    type Output = Result<Response<LoggedBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = match ready!(this.response.poll(cx)) {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let PendingRequest {
            tracker,
            started,
            record,
        } = this.pending;
        if let Some(mut record) = record.take() {
            record.status = response.status();
            let is_head = record
                .request
                .as_ref()
                .is_some_and(|r| r.method == Method::HEAD);
            let has_body_ended = is_head || response.body().is_end_stream();
            tracker.add(PendingResponse::new(*started, record, has_body_ended));
        }
        let tracker = Arc::clone(tracker);
        Poll::Ready(Ok(response.map(|body| LoggedBody { body, tracker })))
    }
}

pin_project! {
    /// A body that tells the tracker how many bytes it has yielded.
    pub(crate) struct LoggedBody {
        #[pin]
        body: FileServiceBody,
        tracker: Arc<DeliveryTracker>,
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
                this.tracker
                    .note_body_bytes(bytes, this.body.is_end_stream());
            }
            None => this.tracker.note_body_bytes(0, true),
            // A body that fails never reaches its end, so `has_body_ended` stays false and the
            // response is never logged as complete.
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

/// Reports writes to the tracker, and logs requests that hyper rejects before the service sees
/// them.
#[derive(Clone)]
pub(crate) struct AccessLogObserver {
    tracker: Arc<DeliveryTracker>,
}

impl AccessLogObserver {
    pub(crate) fn new(tracker: Arc<DeliveryTracker>) -> Self {
        Self { tracker }
    }
}

impl ConnectionObserver for AccessLogObserver {
    fn wrote(&self, offered: usize, outcome: &Poll<io::Result<usize>>) {
        self.tracker.note_write(offered, outcome);
    }

    fn failed(&self, error: &hyper::Error) {
        if !error.is_parse() || error.is_parse_version_h2() {
            return;
        }
        let record = LogRecord {
            at: SystemTime::now(),
            took: Duration::ZERO,
            client: self.tracker.client().clone(),
            request: None,
            status: match error.is_parse_too_large() {
                true => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                false => StatusCode::BAD_REQUEST,
            },
            body_bytes: 0,
            is_complete: self.tracker.is_all_taken(),
        };
        self.tracker.write(&record);
    }
}
