//! One connection: hyper's, plus orders from outside. Nothing here allocates for a request.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use http::header::CONNECTION;
use http::{HeaderValue, Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{HttpService, Service};
use hyper_util::rt::TokioIo;
use pin_project_lite::pin_project;
use tokio::sync::Semaphore;
use uncopied_http::{FileBody, ResponseFuture, ServeFiles, Stream};

use super::heads::Guarded;
use super::table::{Order, Seat};
use super::thread::Shared;

/// The place of a connection: entered in the table, one permit of `--max-connections`. Both are
/// given back when it is dropped, however the connection ends.
pub(crate) struct Place {
    pub(crate) seat: Arc<Seat>,
    thread: Arc<Shared>,
    permits: Arc<Semaphore>,
    key: usize,
}

impl Place {
    pub(crate) fn take(seat: Seat, thread: &Arc<Shared>, permits: &Arc<Semaphore>) -> Self {
        let seat = Arc::new(seat);
        let key = thread.table.insert(Arc::clone(&seat));
        Self {
            seat,
            thread: Arc::clone(thread),
            permits: Arc::clone(permits),
            key,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.thread.table.remove(self.key);
        self.permits.add_permits(1);
    }
}

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
    }
}

impl Future for AnswerFuture {
    type Output = Result<Response<FileBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut answer = ready!(this.answer.poll(cx));
        if *this.is_last
            && let Ok(response) = &mut answer
        {
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Poll::Ready(answer)
    }
}

impl Service<Request<Incoming>> for Answers {
    type Response = Response<FileBody>;
    type Error = Infallible;
    type Future = AnswerFuture;

    fn call(&self, request: Request<Incoming>) -> AnswerFuture {
        self.seat.requested();
        self.thread.count_request();
        AnswerFuture {
            is_last: !request.body().is_end_stream(),
            answer: self.files.respond(request),
        }
    }
}

/// What to do about a connection that ends with an error. Most are peers that went away.
pub(crate) trait OnError {
    fn ended(&self, error: &hyper::Error);
}

impl OnError for () {
    fn ended(&self, _error: &hyper::Error) {}
}

pin_project! {
    /// Serves one connection to its end, and obeys orders on the way.
    pub(crate) struct Serving<S: HttpService<Incoming>, E> {
        #[pin]
        connection: http1::Connection<TokioIo<Guarded<Stream>>, S>,
        on_error: E,
        place: Place,
        waker: Option<Waker>,
        is_finishing: bool,
    }
}

impl<S: HttpService<Incoming>, E> Serving<S, E> {
    pub(crate) fn new(
        connection: http1::Connection<TokioIo<Guarded<Stream>>, S>,
        on_error: E,
        place: Place,
    ) -> Self {
        Self {
            connection,
            on_error,
            place,
            waker: None,
            is_finishing: false,
        }
    }
}

impl<S, B, E> Future for Serving<S, E>
where
    S: HttpService<Incoming, ResBody = B>,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
    E: OnError,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        // A task keeps its waker, so this is one comparison for each poll but the first.
        if !this
            .waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            this.place.seat.wake_for_orders(cx.waker());
            *this.waker = Some(cx.waker().clone());
        }
        match this.place.seat.order() {
            Order::None => {}
            Order::Cut => return Poll::Ready(()),
            Order::Finish if *this.is_finishing => {}
            Order::Finish => {
                *this.is_finishing = true;
                this.connection.as_mut().graceful_shutdown();
            }
        }
        if let Err(error) = ready!(this.connection.poll(cx)) {
            this.on_error.ended(&error);
        }
        Poll::Ready(())
    }
}
