//! One connection: hyper's, plus orders from outside. Nothing here allocates for a request.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::future::Future;
use std::mem;
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
use uncopied_http::{FileBody, Phase, ResponseFuture, ServeFiles, Stream};

use super::heads::Guarded;
use super::parking;
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

type Io = TokioIo<Guarded<Stream>>;

/// Serves one connection to its end, and obeys orders on the way.
pub(crate) struct Serving<S: HttpService<Incoming>, E> {
    state: State<S>,
    http: Arc<http1::Builder>,
    on_error: E,
    place: Place,
    waker: Option<Waker>,
    /// The last turn whose end [`parking`] was told of.
    ended: u32,
}

/// hyper's part of a connection, while there is one.
enum State<S: HttpService<Incoming>> {
    /// Waits for the first byte of a request, without buffers.
    Parked(Io, S),
    /// hyper is at work, or was not long ago.
    Awake(Box<http1::Connection<Io, S>>),
    /// In between.
    Moving,
}

impl<S: HttpService<Incoming>, E> Serving<S, E> {
    pub(crate) fn new(
        io: Io,
        service: S,
        http: Arc<http1::Builder>,
        on_error: E,
        place: Place,
    ) -> Self {
        let state = State::Parked(io, service);
        Self {
            state,
            http,
            on_error,
            place,
            waker: None,
            ended: 0,
        }
    }
}

impl<S, B, E> Serving<S, E>
where
    S: HttpService<Incoming, ResBody = B>,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
    E: OnError,
{
    /// Ready when the connection has something to read, or is to end.
    fn poll_parked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let seat = &self.place.seat;
        let State::Parked(io, _) = &self.state else {
            return Poll::Ready(());
        };
        match seat.order() {
            Order::Cut => return Poll::Ready(()),
            // What has not begun yet may be on its way.
            Order::Finish if seat.has_requested() => return Poll::Ready(()),
            Order::None | Order::Park | Order::Finish => {}
        }
        // An error is for hyper to meet: it reads what is left before.
        io.inner().get_ref().poll_read_ready(cx).map(|_| ())
    }

    fn wake(&mut self) {
        self.state = match mem::replace(&mut self.state, State::Moving) {
            State::Parked(io, service) => {
                State::Awake(Box::new(self.http.serve_connection(io, service)))
            }
            other => other,
        };
    }

    /// Gives hyper's part up. Only for a connection between two requests: nothing is then in hyper's
    /// buffers but empty lines, which mean nothing in front of a request.
    fn park(&mut self) {
        self.state = match mem::replace(&mut self.state, State::Moving) {
            State::Awake(connection) => {
                let parts = connection.into_parts();
                State::Parked(parts.io, parts.service)
            }
            other => other,
        };
    }

    fn is_idle(&self) -> bool {
        let seat = &self.place.seat;
        seat.activity.phase() == Phase::Idle && !seat.awaits_head()
    }
}

impl<S, B, E> Future for Serving<S, E>
where
    S: HttpService<Incoming, ResBody = B> + Unpin,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
    E: OnError + Unpin,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        // A task keeps its waker, so this is one comparison for each poll but the first.
        if !this
            .waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            this.place.seat.wake_for_orders(cx.waker());
            this.waker = Some(cx.waker().clone());
        }
        loop {
            if let State::Parked(..) = this.state {
                ready!(this.poll_parked(cx));
                this.wake();
            }
            let seat = &this.place.seat;
            let State::Awake(connection) = &mut this.state else {
                return Poll::Ready(());
            };
            match seat.order() {
                Order::None | Order::Park => {}
                Order::Cut => return Poll::Ready(()),
                // Told twice, hyper does nothing the second time.
                Order::Finish => Pin::new(&mut **connection).graceful_shutdown(),
            }
            if let Poll::Ready(end) = Pin::new(&mut **connection).poll(cx) {
                if let Err(error) = end {
                    this.on_error.ended(&error);
                }
                return Poll::Ready(());
            }
            let is_idle = this.is_idle();
            let seat = &this.place.seat;
            match seat.order() {
                Order::Park => {
                    seat.clear_park();
                    if !is_idle {
                        return Poll::Pending;
                    }
                    this.park();
                }
                _ => {
                    if is_idle && this.ended != seat.turn() {
                        this.ended = seat.turn();
                        parking::became_idle(seat);
                    }
                    return Poll::Pending;
                }
            }
        }
    }
}
