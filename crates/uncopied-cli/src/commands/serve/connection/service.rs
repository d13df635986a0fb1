//! The service: it answers from files and counts.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::Service;
use pin_project_lite::pin_project;
use uncopied_http::{FileBody, ResponseFuture, ServeFiles};

use super::state::Seat;
use super::stats::Shared;

/// Answers requests from files and counts them.
///
/// A request with a body is the last of its connection: no file needs a body, so none is read, and what
/// is not read cannot be taken for the next request.
pub(crate) struct Answers {
    files: ServeFiles,
    seat: Arc<Seat>,
    thread: Arc<Shared>,
}

impl Answers {
    pub(crate) fn new(files: ServeFiles, seat: Arc<Seat>, thread: Arc<Shared>) -> Self {
        Self {
            files,
            seat,
            thread,
        }
    }
}

pin_project! {
    /// The library's own future, and whether its answer is the last one.
    pub(crate) struct AnswerFuture {
        #[pin]
        answer: ResponseFuture,
        is_last: bool,
        under_way: Option<UnderWay>,
    }
}

/// Notes on the seat that an answer is under way: from the call to the end of its body.
struct UnderWay(Arc<Seat>);

impl UnderWay {
    fn begin(seat: &Arc<Seat>) -> Self {
        seat.set_answering(true);
        Self(Arc::clone(seat))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.set_answering(false);
    }
}

impl Future for AnswerFuture {
    type Output = Result<Response<AnswerBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = match ready!(this.answer.poll(cx)) {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let under_way = this.under_way.take();
        if *this.is_last {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        } else if let Some(UnderWay(seat)) = &under_way {
            seat.tape.note(response.body());
        }
        Poll::Ready(Ok(response.map(|body| AnswerBody { body, under_way })))
    }
}

pin_project! {
    /// The library's own body; its end is noted.
    pub(crate) struct AnswerBody {
        #[pin]
        body: FileBody,
        under_way: Option<UnderWay>,
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Service<Request<Incoming>> for Answers {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = AnswerFuture;

    fn call(&self, request: Request<Incoming>) -> AnswerFuture {
        self.seat.requested();
        self.thread.count_request();
        AnswerFuture {
            is_last: !request.body().is_end_stream(),
            under_way: Some(UnderWay::begin(&self.seat)),
            answer: self.files.respond(request),
        }
    }
}
